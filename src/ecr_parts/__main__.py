"""The command ``ecr-parts``, also ``python -m ecr_parts``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command, and exit with its status."""
    try:
        from ecr_parts._command.cli import (
            main as run,  # here, because Ctrl-C may interrupt the import
        )

        sys.exit(run())
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
