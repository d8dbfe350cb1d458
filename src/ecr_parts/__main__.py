"""``python -m ecr_parts``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from ecr_parts._cli import main  # here, because Ctrl-C may interrupt the import

        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
