"""``IMAGE`` as skopeo, podman and docker write it: a path, what kind of file it is, and a name."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

_FILES = ("oci", "oci-archive", "docker-archive", "dir")
"""What may stand before the path of a file. The format is found out from the file anyway."""
_STORES = {
    "containers-storage": "podman save {name} | ecr-parts push - {repository}",
    "docker": "skopeo copy docker:{name} oci:image && ecr-parts push image {repository}",
    "docker-daemon": "docker save {name} | ecr-parts push - {repository}",
}
"""What may stand before an image that is not in a file, and how that image is pushed."""


class ImageArgument(NamedTuple):
    """What ``IMAGE`` says."""

    path: str
    name: str | None
    """Which image, if the file has several."""


def parse_image(
    text: str, repository: str, exists: Callable[[str], bool] = os.path.lexists
) -> ImageArgument:
    """Split ``IMAGE`` into a path and a name.

    A file whose name is the whole text goes first. Raises ``ValueError`` for an image that is not
    in a file, with the command that pushes it to ``repository``.
    """
    if text == "-" or exists(text):
        return ImageArgument(text, None)
    kind, colon, rest = text.partition(":")
    if not colon:
        return ImageArgument(text, None)
    if kind in _STORES:
        advice = _STORES[kind].format(name=rest, repository=repository)
        raise ValueError(f"{text} is not a file. Run: {advice}")
    if kind not in _FILES:
        found = _split(text, exists)
        if found is None:
            advice = _STORES["docker-daemon"].format(name=text, repository=repository)
            raise ValueError(f"there is no file {text}. For an image in docker, run: {advice}")
        return found
    if not rest:
        raise ValueError(f"there is no path after {text}")
    if kind == "dir" or exists(rest):
        return ImageArgument(rest, None)
    path, _, name = rest.partition(":")
    return _split(rest, exists) or ImageArgument(path, name or None)


def _split(text: str, exists: Callable[[str], bool]) -> ImageArgument | None:
    """Split at the first colon that ends the path of a file; ``None`` if there is none."""
    for i, character in enumerate(text):
        if character == ":" and exists(text[:i]):
            return ImageArgument(text[:i], text[i + 1 :] or None)
    return None
