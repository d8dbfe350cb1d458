"""``python -m ecr_parts``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    status: int
    try:
        from ecr_parts._cli import main  # here, because Ctrl-C may interrupt the import

        status = main()
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
