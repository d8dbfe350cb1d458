"""The options of the command."""

from __future__ import annotations

import argparse
import re

from ecr_parts._version import __version__
from ecr_parts.testing.__main__ import DESCRIPTION, add_options

_EXIT_STATUS = (
    "Exit status: 0 if the {} is complete at ECR, 1 after an error, 2 for an invalid command line, "
    "130 after Ctrl-C, 143 after SIGTERM."
)
_UNITS = {
    "": 1, "B": 1, "kB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30,
}  # fmt: skip


def parse_options() -> argparse.Namespace:
    """The options of the command line. Exits with 2 if it is not valid."""
    parser = argparse.ArgumentParser(
        prog="ecr-parts", description="Upload images and layers to Amazon ECR in parts."
    )
    parser.add_argument("--version", action="version", version=f"ecr-parts {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    push = commands.add_parser(
        "push",
        help="push an image",
        description="Push an image from an OCI image layout, an archive of one, or a docker "
        "archive (docker save, podman save). Prints its digest to standard output, and everything "
        "else to standard error.",
        epilog=_EXIT_STATUS.format("image"),
    )
    push.add_argument("image", metavar="IMAGE", help="the image's directory or archive")
    push.add_argument(
        "repository", metavar="REPOSITORY[:TAG]", help="the repository's name, and a tag"
    )
    push.add_argument(
        "--tag",
        action="append",
        metavar="TAG",
        dest="tags",
        help="a tag; may be repeated (default: the tags that the image has in its archive)",
    )
    push.add_argument(
        "--platform",
        action="append",
        metavar="OS/ARCH",
        dest="platforms",
        help="push only the image for this platform, such as linux/arm64; may be repeated",
    )
    push.add_argument(
        "--max-workers",
        type=int,
        default=4,
        metavar="N",
        help="how many layers are uploaded at a time (default: 4)",
    )
    push.add_argument(
        "--checkpoint-dir",
        metavar="DIR",
        help="save progress in this directory (default: ~/.local/state/ecr-parts, for a week); run "
        "the same command again to resume",
    )
    _add_common_options(push)
    upload = commands.add_parser(
        "upload",
        help="upload one layer",
        description="Upload one layer. Prints its digest to standard output, and everything else "
        "to standard error.",
        epilog=_EXIT_STATUS.format("layer"),
    )
    upload.add_argument("file", metavar="FILE", help="the layer's file, or - for standard input")
    upload.add_argument("repository", metavar="REPOSITORY", help="the repository's name")
    upload.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="save progress in this file (default: in ~/.local/state/ecr-parts, for a week); run "
        "the same command again to resume",
    )
    upload.add_argument(
        "--digest", metavar="D", help="the layer's digest, sha256:..., if known; verified by ECR"
    )
    upload.add_argument(
        "--size",
        type=_size,
        metavar="N",
        help="the layer's size, in bytes or as 5MiB; a stream that ends before is not completed",
    )
    _add_common_options(upload)
    local = commands.add_parser(
        "local", help="serve a local emulator of ECR", description=DESCRIPTION
    )
    local.set_defaults(progress="none", quiet=False)
    add_options(local)
    return parser.parse_args()


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18})(|B|kB|KiB|MB|MiB|GB|GiB)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be bytes, or a size such as 5MiB, not {text!r}")
    return int(match[1]) * _UNITS[match[2]]


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress",
        choices=("auto", "bar", "plain", "none"),
        default="auto",
        help="a bar, a line every ten seconds, or nothing (default: a bar on a terminal, otherwise "
        "lines)",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print nothing but warnings and errors"
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object instead of the digest"
    )
    parser.add_argument("--no-checkpoint", action="store_true", help="do not save progress")
    parser.add_argument("--public", action="store_true", help="use ECR Public")
    parser.add_argument(
        "--part-size", type=_size, metavar="N", help="the size of the parts, such as 10MiB"
    )
    parser.add_argument(
        "--limit-rate",
        type=_size,
        metavar="N",
        help="send at most this many bytes per second, such as 5MiB",
    )
    parser.add_argument(
        "--registry-id",
        metavar="ID",
        help="the AWS account ID of the registry (default: that of the credentials)",
    )
    parser.add_argument("--region", metavar="R", help="the AWS region of the registry")
    parser.add_argument("--profile", metavar="P", help="a profile of the AWS configuration")
    parser.add_argument(
        "--endpoint-url",
        metavar="URL",
        help="the URL of ECR, if it is not the default of the region",
    )
