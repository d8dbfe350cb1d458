"""OCI image layouts, skopeo's and podman's ``dir:``, and what is none of these.

References: https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md, and ``dir:``
in the manual page ``containers-transports(5)``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from ecr_parts._images.contents import (
    OLD_SCHEMA,
    Contents,
    Descriptor,
    Manifest,
    ManifestReader,
    descriptors,
    digest_of,
)
from ecr_parts._images.documents import find_json, parse_json
from ecr_parts._images.files import ImageFiles, image_error, read_file
from ecr_parts._model.layers import FileRegion
from ecr_parts._model.manifests import OCI_INDEX, OCI_MANIFEST
from ecr_parts._sources.digest import hash_source
from ecr_parts._sources.kinds import open_source
from ecr_parts.errors import InvalidImageError

_FILE_SYSTEM = (".dockerenv", "etc/passwd", "etc/hostname", "bin/sh", "usr/bin/env")
_BUILD_FILES = ("Dockerfile", "Containerfile")


def read_layout(files: ImageFiles) -> Contents:
    """The contents of an OCI image layout. Raises ``InvalidImageError``."""
    find = _blob_finder(files, ("blobs/sha256/{}",))
    reader = ManifestReader(files.path, find)
    content = read_file(find_json(files, "index.json", reader.error_of))
    document = parse_json(content, reader.error_of, "index.json")
    if not isinstance(document, dict):
        raise reader.error_of("index.json is not a JSON object. Save the image again")
    listed = descriptors(document, "manifests", reader.error_of, "index.json")
    reader.read_all(listed)
    index = Manifest(digest_of(content), OCI_INDEX, content, listed)
    return Contents(files.path, listed, reader.manifests, reader.problems, find, index)


def read_directory(files: ImageFiles, document: dict[str, Any]) -> Contents:
    """The contents of ``dir:``, whose ``manifest.json`` is the image's manifest or index."""
    error_of = partial(image_error, files.path)
    if document.get("schemaVersion") == 1:
        raise error_of(f"its manifest {OLD_SCHEMA}")
    media_type = document.get("mediaType")
    if not isinstance(media_type, str):
        media_type = OCI_INDEX if "manifests" in document else OCI_MANIFEST
    region = find_json(files, "manifest.json", error_of)
    root = Descriptor(media_type, digest_of(read_file(region)), region.size)
    find_others = _blob_finder(files, ("{}", "{}.manifest.json"))

    def find(digest: str) -> FileRegion | None:
        return region if digest == root.digest else find_others(digest)

    reader = ManifestReader(files.path, find)
    reader.read_all([root])
    notice = ""
    if files.find("signature-1") is not None:
        notice = "signature-1 and others like it are not pushed, because ECR does not keep them"
    return Contents(files.path, (root,), reader.manifests, reader.problems, find, notice=notice)


def unknown_format(files: ImageFiles) -> InvalidImageError:
    """The error for files that are not an image in a format that is read here."""
    if files.find("repositories") is not None:
        problem = (
            "it was written by docker before version 1.10: load it with docker load, and save it "
            "again with docker save"
        )
    elif any(files.find(name) is not None for name in _BUILD_FILES):
        problem = (
            "it is not an image, but what one is built from: build it with docker build --tag "
            "NAME, and save it with docker save NAME"
        )
    elif any(files.find(name) is not None for name in _FILE_SYSTEM):
        problem = (
            "it is not an image, but a file system, such as docker export writes: save the image "
            "with docker save, or make one with docker import first"
        )
    else:
        problem = (
            "it is not an image: it has neither index.json, as an OCI image layout has, nor "
            "manifest.json, as a docker archive and dir: have"
        )
    return image_error(files.path, problem)


def _blob_finder(files: ImageFiles, names: tuple[str, ...]) -> Callable[[str], FileRegion | None]:
    """What finds the blob with a digest, under one of ``names``.

    A link may lead to a file that is not in the image's directory, as Bazel's rules write them.
    Such a file is the blob only if it has its digest.
    """

    @cache
    def find(digest: str) -> FileRegion | None:
        found = (files.find(name.format(digest.removeprefix("sha256:"))) for name in names)
        region = next(filter(None, found), None)
        if region is not None and files.is_linked(region):
            with open_source(region) as source:
                content, _ = hash_source(source, files.heartbeat)
            if content != digest:
                raise image_error(
                    files.path, f"blob {digest} is a link to a file with other content"
                )
        return region

    return find
