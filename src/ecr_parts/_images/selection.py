"""Which manifests of the chosen image are pushed: its platforms, as far as they are complete."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ecr_parts._base.validation import short_repr
from ecr_parts._images.choice import fitting, joined
from ecr_parts._images.contents import Contents, Descriptor, Manifest, platform_name
from ecr_parts._images.documents import parse_json
from ecr_parts._images.files import read_file
from ecr_parts._images.rewrite import rewrite_indexes
from ecr_parts._model.limits import MAX_MANIFEST
from ecr_parts._model.manifests import INDEX_TYPES
from ecr_parts.errors import InvalidImageError


@dataclass(frozen=True)
class Leaf:
    """A manifest of an image that is no index: that of a platform, or an attestation."""

    descriptor: Descriptor
    absent: tuple[Descriptor, ...]
    """What the file lacks of it: itself, or some of its blobs."""

    def is_complete(self, present: Collection[str]) -> bool:
        """Whether the file, or else the repository, has all of it."""
        return all(blob.digest in present for blob in self.absent)

    @property
    def is_attestation(self) -> bool:
        one = self.descriptor
        return bool(one.attested) or one.platform.startswith("unknown/")


@dataclass(frozen=True)
class Selection:
    """What is pushed of an image."""

    manifests: tuple[Manifest, ...]
    """All that the file has, children before their index. The last one is that of the image."""
    notice: str = ""


def leaves_of(contents: Contents, root: Descriptor) -> list[Leaf]:
    """The leaves of an image. Raises ``InvalidImageError``."""
    contents.manifest(root.digest)  # raises if it is absent, or cannot be pushed
    found: dict[tuple[str, str], Descriptor] = {}
    waiting, seen = [root], {root.digest}
    while waiting:
        one = waiting.pop()
        manifest = contents.manifests.get(one.digest)
        if manifest is None or not manifest.is_index:
            found.setdefault((one.digest, one.platform), one)
            continue
        for child in reversed(manifest.children):
            is_index = child.media_type in INDEX_TYPES
            if not (is_index and child.digest in seen):  # it may be listed any number of times
                waiting.append(child)
                seen.add(child.digest)
    return [Leaf(one, tuple(absent_of(contents, one))) for one in found.values()]


def absent_of(contents: Contents, one: Descriptor) -> Iterator[Descriptor]:
    """What the file lacks of a manifest: itself, or some of its blobs."""
    if one.digest in contents.problems:
        return
    manifest = contents.manifests.get(one.digest)
    if manifest is None:
        yield one
        return
    for blob in manifest.blobs:
        if not (blob.has_urls or blob.data) and contents.find(blob.digest) is None:
            yield blob


def choose_leaves(
    contents: Contents, leaves: Sequence[Leaf], platforms: Sequence[str] | None
) -> list[Leaf]:
    """The leaves for ``platforms``, with their attestations; all of them without ``platforms``."""
    if platforms is None:
        return list(leaves)
    names = [_platform(contents, one.descriptor) for one in leaves]
    chosen: set[str] = set()
    for platform in platforms:
        fits = fitting(platform, names)
        if not fits:
            there = joined(sorted({name or "none" for name in names}))
            raise contents.error(
                f"it has no image for the platform {short_repr(platform)}. Available: {there}"
            )
        found = zip(leaves, names, strict=True)
        chosen |= {one.descriptor.digest for one, name in found if name in fits}
    return [
        one
        for one in leaves
        if one.descriptor.digest in chosen or one.descriptor.attested in chosen
    ]


def _platform(contents: Contents, one: Descriptor) -> str:
    """The platform in the descriptor, or else in the image's config."""
    manifest = contents.manifests.get(one.digest)
    config = None if manifest is None else manifest.config
    if one.platform or config is None:
        return one.platform
    region = contents.find(config.digest)
    if region is None or region.size > MAX_MANIFEST:
        return ""
    where = f"config {config.digest}"
    return platform_name(parse_json(read_file(region), contents.error, where))


def select(
    contents: Contents,
    root: Descriptor,
    platforms: Sequence[str] | None,
    present: Collection[str],
) -> Selection:
    """Select what is pushed. Raises ``InvalidImageError``.

    ``present`` has the digests of what the file lacks and the repository has. An image that was
    saved without some of its platforms, as docker and containerd do, is pushed as one platform if
    only one is complete.
    """
    leaves = leaves_of(contents, root)
    chosen = choose_leaves(contents, leaves, platforms)
    complete = {one.descriptor.digest for one in chosen if one.is_complete(present)}
    images = [one.descriptor for one in chosen if not one.is_attestation]
    images = images or [one.descriptor for one in chosen]
    there = {one.digest: one for one in images if one.digest in complete}
    if not there or (platforms is not None and not there.keys() >= {one.digest for one in images}):
        raise _incomplete(contents, [one for one in chosen if not one.is_attestation], present)
    all_digests = {one.descriptor.digest for one in leaves}
    if complete == all_digests and (platforms is None or len(there) > 1):
        return Selection(tuple(contents.tree(root.digest)))
    if len(there) == 1:
        (one,) = there.values()
        contents.manifest(one.digest)  # raises if only the repository has it
        notice = ""
        if platforms is None:
            notice = (
                f"the file lacks a part of {root.digest}: only the image for "
                f"{one.platform or 'one platform'}, {one.digest}, is pushed"
            )
        return Selection(tuple(contents.tree(one.digest)), notice)
    if platforms is None:
        names = joined(sorted(one.platform for one in there.values()))
        raise contents.error(
            f"the file lacks a part of {root.digest}: pass platforms to push some of {names}"
        )
    left_out = all_digests - complete
    tree = tuple(contents.tree(root.digest, left_out))
    return Selection(rewrite_indexes(tree, dict.fromkeys(left_out), contents.error))


def _incomplete(
    contents: Contents, leaves: Sequence[Leaf], present: Collection[str]
) -> InvalidImageError:
    lacking = [
        (blob.digest, one.descriptor.platform)
        for one in leaves
        for blob in one.absent
        if blob.digest not in present
    ]
    if not lacking:
        return contents.error("it has no image, but only an index of none")
    digest, platform = lacking[0]
    image = f" of the image for {platform}" if platform else ""
    return contents.error(f"it has no blob {digest}{image}. Save the image again, whole")
