"""The command ``ecr-parts``, also ``python -m ecr_parts``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command, and exit with its status."""
    try:
        from ecr_parts._command.cli import (
            main as run,  # here, because Ctrl-C may interrupt the import
        )

        status = run()
    except KeyboardInterrupt:
        status = 130
    except MemoryError:
        from ecr_parts.testing.__main__ import print_to_stderr

        print_to_stderr("error: there is not enough memory\n")
        status = 1
    sys.exit(status)


if __name__ == "__main__":
    main()
