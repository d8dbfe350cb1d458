"""``python -m ecr_parts.testing``: a LocalECR for any SDK and for the AWS CLI."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import threading

DESCRIPTION = (
    "Serve a LocalECR, which keeps everything in memory, until Ctrl-C. Prints its URL, and the "
    "environment variables that point the AWS SDKs, the AWS CLI and ecr-parts at it."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--port", type=int, default=0, help="the port (default: any free one)")
    parser.add_argument(
        "--repository",
        action="append",
        metavar="NAME",
        help="a repository that exists from the start; may be repeated (default: demo)",
    )
    parser.add_argument(
        "--slow", type=float, default=0, metavar="SECONDS", help="delay of the answer to each part"
    )


def serve(options: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM."""
    # Here, because the other commands need the options only.
    from ecr_parts.testing._local_ecr import LocalECR

    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    try:
        ecr = LocalECR(options.repository or ["demo"], port=options.port, slow=options.slow)
    except ValueError as error:
        sys.exit(f"error: {error}")
    try:
        ecr.start()
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it must be 0 to 65535"
        sys.exit(f"cannot listen on port {options.port}: {reason}. Pass another --port, or none")
    if options.slow:
        ecr.fail("UploadLayerPart", "slow", times=sys.maxsize)
    print(ecr.endpoint_url, flush=True)
    for name, value in ecr.environ().items():
        print(f"export {name}={shlex.quote(value)}", flush=True)
    done.wait()
    ecr.stop()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m ecr_parts.testing", description=DESCRIPTION)
    add_options(parser)
    serve(parser.parse_args())


if __name__ == "__main__":
    main()
