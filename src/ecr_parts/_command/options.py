"""The options of the command, checked."""

from __future__ import annotations

import argparse
import re

from typing_extensions import override

from ecr_parts._base.validation import short_repr
from ecr_parts._command import values
from ecr_parts._model.limits import ECR_LIMITS, ECR_PUBLIC_LIMITS, Limits
from ecr_parts._upload.plan import Planner
from ecr_parts._version import __version__
from ecr_parts._wire.bandwidth import min_bandwidth
from ecr_parts._wire.clients import find_conflict
from ecr_parts._wire.registries import parse_repository
from ecr_parts.testing.__main__ import DESCRIPTION, Parser, add_options, print_or_exit
from ecr_parts.testing.__main__ import EPILOG as LOCAL_EPILOG

_EXIT_STATUS = (
    "Exit status: 0 if ECR has everything, 1 after an error, 2 for an invalid command line, 130 "
    "after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."
)
_EPILOG = """\
examples:
  ecr-parts push image.tar team/app:v1
  ecr-parts upload layer.tar.gz team/app
  ecr-parts local --repository team/app"""
_PUSH_EPILOG = f"""\
{_EXIT_STATUS}

examples:
  ecr-parts push image.tar team/app:v1
  ecr-parts push oci:build/image:latest team/app:v1 --platform linux/arm64
  docker save app:v1 | ecr-parts push - team/app:v1"""
_UPLOAD_EPILOG = f"""\
If the producer of a pipe fails, its output looks like a shorter layer, which is uploaded without an
error. Pass --digest or --size: then a truncated layer is not completed. If you know neither, run
'set -o pipefail' first, so that the shell reports that the producer failed.

{_EXIT_STATUS}

examples:
  ecr-parts upload layer.tar.gz team/app
  ecr-parts upload base.tar.gz app.tar.gz team/app --json
  curl --fail URL | ecr-parts upload - team/app --digest sha256:..."""


def parse_options() -> argparse.Namespace:
    """The options of the command line. Exits with 2 if it is not valid."""
    parser = Parser(
        prog="ecr-parts",
        description="Upload images and layers to Amazon ECR in parts, resumably.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--version", action=_PrintVersion, nargs=0, help="show program's version number and exit"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    push = commands.add_parser(
        "push",
        help="push an image",
        usage="ecr-parts push [OPTION]... IMAGE REPOSITORY[:TAG]",
        description="Push an image from an OCI image layout, a docker archive (docker save, podman "
        "save) or dir:, each as a directory or an archive, which may be compressed. Prints its "
        "digest to standard output, and everything else to standard error.",
        epilog=_PUSH_EPILOG,
        allow_abbrev=False,
    )
    push.add_argument(
        "image",
        type=values.path,
        metavar="IMAGE",
        help="the image's directory or archive, also as oci:PATH[:NAME], oci-archive:PATH[:NAME], "
        "docker-archive:PATH[:NAME], dir:PATH or PATH:NAME; or - for an archive from standard "
        "input, which is saved to a temporary file first",
    )
    push.add_argument(
        "repository", metavar="REPOSITORY[:TAG]", help="the repository's name or URI, and a tag"
    )
    push.add_argument(
        "--tag",
        type=values.tag,
        action="append",
        metavar="TAG",
        dest="tags",
        help="a tag; may be repeated (default: the tags that the image has in its archive)",
    )
    push.add_argument(
        "--platform",
        type=values.platform,
        action="append",
        metavar="OS/ARCH",
        dest="platforms",
        help="push only the image for this platform, such as linux/arm64; may be repeated",
    )
    push.add_argument(
        "--image",
        type=values.name,
        metavar="NAME",
        dest="image_name",
        help="which image to push, if IMAGE has several: its name, tag or digest",
    )
    push.add_argument(
        "--preserve-digests",
        action="store_true",
        help="fail rather than change the image's digest; otherwise, plain layers are compressed",
    )
    push.add_argument(
        "--create-repository",
        action="store_true",
        help="create the repository if it does not exist",
    )
    _add_common_options(push, "layers")
    push.add_argument(
        "--checkpoint-dir",
        type=values.path,
        metavar="DIR",
        help="save progress in this directory (default: ~/.local/state/ecr-parts, for a week); run "
        "the same command again to resume",
    )
    upload = commands.add_parser(
        "upload",
        help="upload layers",
        usage="ecr-parts upload [OPTION]... FILE... REPOSITORY",
        description="Upload layers. Prints their digests to standard output, and everything else "
        "to standard error.",
        epilog=_UPLOAD_EPILOG,
        allow_abbrev=False,
    )
    upload.add_argument(
        "files", metavar="FILE", nargs="+", help="a layer's file, or - for standard input"
    )
    upload.add_argument("repository", metavar="REPOSITORY", help="the repository's name or URI")
    upload.add_argument(
        "--digest",
        type=values.digest,
        metavar="D",
        help="the layer's digest, sha256:..., if known; verified by ECR",
    )
    upload.add_argument(
        "--size",
        type=values.size,
        metavar="N",
        help="the layer's size, in bytes or as 5MiB; a stream that ends before is not completed",
    )
    _add_common_options(upload, "layers")
    upload.add_argument(
        "--checkpoint",
        type=values.path,
        metavar="FILE",
        help="save progress in this file (default: in ~/.local/state/ecr-parts, for a week); run "
        "the same command again to resume",
    )
    local = commands.add_parser(
        "local",
        help="serve a local emulator of ECR",
        description=DESCRIPTION,
        epilog=LOCAL_EPILOG.format(command="ecr-parts local"),
    )
    add_options(local)
    options, rest = parser.parse_known_args()
    if options.command == "upload" and not any(text.startswith("-") for text in rest):
        # argparse gives the files before the first option only to FILE and REPOSITORY.
        names = [*options.files, options.repository, *rest]
        options.files, options.repository = names[:-1], names[-1]
        rest = []
    command = {"push": push, "upload": upload, "local": local}[options.command]
    problem = f"unrecognized arguments: {' '.join(rest)}" if rest else _find_problem(options)
    if problem is not None:
        command.error(f"{problem}; see {command.prog} --help")
    return options


class _PrintVersion(argparse.Action):
    @override
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print_or_exit(f"ecr-parts {__version__}\n")
        parser.exit()


def _add_common_options(parser: argparse.ArgumentParser, items: str) -> None:
    parser.add_argument(
        "--max-workers",
        type=values.count,
        default=4,
        metavar="N",
        help=f"how many {items} are uploaded at a time (default: 4)",
    )
    parser.add_argument(
        "--part-size", type=values.size, metavar="N", help="the size of the parts, such as 10MiB"
    )
    parser.add_argument(
        "--limit-rate",
        type=values.size,
        metavar="N",
        help="send at most this many bytes per second, such as 5MiB; a layer takes a third more "
        "than its size",
    )
    parser.add_argument(
        "--retry-for",
        type=values.duration,
        metavar="T",
        help="repeat a call that fails for this long, such as 90s or 10m (default: ten attempts, "
        "within about two minutes)",
    )
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
        "--debug",
        action="store_true",
        help="print which calls are made, and where an error comes from, without secrets",
    )
    parser.add_argument("--json", action="store_true", help="print JSON objects instead of digests")
    parser.add_argument("--no-checkpoint", action="store_true", help="do not save progress")
    aws = parser.add_argument_group("AWS options")
    aws.add_argument("--public", action="store_true", help="use ECR Public")
    aws.add_argument(
        "--registry-id",
        type=values.name,
        metavar="ID",
        help="the AWS account ID of the registry (default: that of the credentials)",
    )
    aws.add_argument(
        "--region", type=values.region, metavar="R", help="the AWS region of the registry"
    )
    aws.add_argument(
        "--profile", type=values.name, metavar="P", help="a profile of the AWS configuration"
    )
    aws.add_argument(
        "--endpoint-url",
        type=values.url,
        metavar="URL",
        help="the URL of ECR, if it is not the default of the region",
    )


# Checks of several options together


def _find_problem(options: argparse.Namespace) -> str | None:
    """Complete the options. Returns what is wrong with them, if anything."""
    if options.command == "local":
        return None
    try:
        _check(options)
    except ValueError as error:
        return str(error)
    return None


def service_limits(options: argparse.Namespace) -> Limits:
    """The limits of the service that the options choose."""
    return ECR_PUBLIC_LIMITS if options.public else ECR_LIMITS


def _check(options: argparse.Namespace) -> None:
    _split_repository(options)
    registry_id = options.registry_id
    if registry_id and not options.public and not re.fullmatch(r"[0-9]{12}", registry_id):
        raise ValueError(
            "argument --registry-id: must be an AWS account ID, which has 12 digits, not "
            f"{short_repr(registry_id)}"
        )
    limits = service_limits(options)
    part_size = options.part_size
    if part_size is not None and not limits.min_part <= part_size <= limits.max_part:
        raise ValueError(
            f"argument --part-size: must be between {limits.min_part:,} and {limits.max_part:,} "
            f"bytes, not {part_size:,}"
        )
    if options.command == "upload":
        _check_files(options)
        try:
            Planner(limits, part_size).check_layer(options.size)
        except ValueError as error:
            raise ValueError(f"argument --size: {error}") from None
    if options.limit_rate is not None and options.limit_rate < min_bandwidth(options.max_workers):
        raise ValueError(
            f"argument --limit-rate: must be at least {min_bandwidth(options.max_workers):,} bytes "
            f"per second for --max-workers {options.max_workers}, not {options.limit_rate:,}"
        )
    saved_in = "checkpoint" if options.command == "upload" else "checkpoint_dir"
    if options.no_checkpoint and getattr(options, saved_in) is not None:
        raise ValueError(
            f"argument --no-checkpoint: not allowed with --{saved_in}".replace("_", "-")
        )


def _check_files(options: argparse.Namespace) -> None:
    if "" in options.files:
        raise ValueError("argument FILE: must be a path, not ''")
    if len(options.files) == 1:
        options.max_workers = 1
        return
    if "-" in options.files:
        raise ValueError("argument FILE: - must be the only one")
    for name in ("digest", "size", "checkpoint"):
        if getattr(options, name) is not None:
            raise ValueError(f"argument --{name}: not allowed with several files")


def _split_repository(options: argparse.Namespace) -> None:
    """Take what ``REPOSITORY`` says into the options: registry, region, endpoint, tag."""
    try:
        uri = parse_repository(options.repository, public=options.public)
    except ValueError as error:
        raise ValueError(f"argument REPOSITORY: {error}") from None
    values_of = {name: getattr(options, name) for name in ("registry_id", "region", "endpoint_url")}
    conflict = find_conflict(uri, values_of, public=options.public)
    if conflict is not None:
        name, problem = conflict
        raise ValueError(f"argument --{name.replace('_', '-')}: {problem}")
    if options.command == "upload" and uri.tag is not None:
        raise ValueError(
            "argument REPOSITORY: a layer has no tag, so the name has no colon; an image is pushed "
            "by ecr-parts push"
        )
    if uri.digest is not None:
        raise ValueError(
            "argument REPOSITORY: must not have a digest, because that follows from the content"
        )
    if uri.tag is not None:
        try:
            options.tags = [values.tag(uri.tag), *(options.tags or [])]
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"argument REPOSITORY[:TAG]: the tag {error}") from None
    options.repository_uri, options.repository = uri, uri.name
    options.public = options.public or uri.public_alias is not None
    for name, value in values_of.items():
        setattr(options, name, value or getattr(uri, name))
