"""``python -m ecr_parts``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from ecr_parts.command import main  # here, as Ctrl-C may come while it is imported

        status = main()
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
