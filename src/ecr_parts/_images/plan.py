"""What is sent for an image: its manifests, what is attached to it, and its blobs; all checked."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ecr_parts._base.validation import short_repr
from ecr_parts._images.choice import tag_of_attached
from ecr_parts._images.contents import Contents, Descriptor, Manifest, verified
from ecr_parts._images.documents import member, parse_json
from ecr_parts._images.files import read_file
from ecr_parts._images.observer import Summary
from ecr_parts._images.plain import PlainLayer, stored_compression
from ecr_parts._images.rewrite import (
    PLAIN_TYPES,
    CompressedLayer,
    rewrite_indexes,
    with_compressed_layers,
)
from ecr_parts._images.selection import Selection
from ecr_parts._model.layers import FileRegion, Layer
from ecr_parts._model.limits import MAX_MANIFEST
from ecr_parts._model.manifests import find_violation
from ecr_parts._sources.compression import REGISTRY_COMPRESSIONS, can_decompress


@dataclass(frozen=True)
class Attached:
    """What refers to the image, such as a signature."""

    manifests: tuple[Manifest, ...]
    """Children before their index. The last one is that of the artifact."""
    tag: str | None


@dataclass(frozen=True)
class Plan:
    """What is sent, all of it there and checked, but some layers yet to be compressed."""

    contents: Contents
    manifests: tuple[Manifest, ...]
    """Children before their index. The last one is that of the image."""
    attached: tuple[Attached, ...]
    plain: Mapping[str, PlainLayer]
    """By digest: the layers that are compressed or checked before they are sent."""
    frozen: frozenset[str]
    """The digests of manifests that are sent as they are."""
    blobs: Mapping[str, Layer]
    """By digest: what is sent as it is."""
    notices: tuple[str, ...]

    @property
    def size_to_send(self) -> int:
        """The bytes of all blobs, as if those to be compressed did not become smaller."""
        return self.size_to_read + sum(layer.size or 0 for layer in self.blobs.values())

    @property
    def size_to_read(self) -> int:
        """The bytes of the layers that are compressed or checked before they are sent."""
        return sum(layer.region.size for layer in self.plain.values())

    def summary(self, sizes_at_ecr: Mapping[str, int | None]) -> Summary:
        """What is sent, if ``sizes_at_ecr`` is what ECR has: sizes by digest, ``None`` if not."""
        others = [manifest for one in self.attached for manifest in one.manifests]
        configs = {one.config.digest for one in (*self.manifests, *others) if one.config}
        missing = [digest for digest in self.blobs if sizes_at_ecr.get(digest) is None]
        return Summary(
            layers=len({*self.blobs, *self.plain} - configs),
            size=self.size_to_send,
            missing=len({*missing, *self.plain} - configs),
            missing_size=sum(self.blobs[digest].size or 0 for digest in missing),
            to_prepare=len(self.plain),
            to_compress=sum(not layer.compression for layer in self.plain.values()),
        )

    def with_layers(self, prepared: Mapping[str, tuple[CompressedLayer, Layer]]) -> Plan:
        """The plan whose ``plain`` layers are ``prepared``; by digest."""
        compressed = {digest: one for digest, (one, _) in prepared.items()}
        error_of = self.contents.error
        replaced = {
            manifest.digest: with_compressed_layers(manifest, compressed, error_of)
            for manifest in self.manifests
            if manifest.digest not in self.frozen
            and any(layer.digest in compressed for layer in _plain_layers(manifest))
        }
        manifests = rewrite_indexes(self.manifests, replaced, error_of)
        before, after = self.manifests[-1], manifests[-1]
        notices = self.notices
        if before.digest != after.digest and not before.is_made:
            notice = f"its layers are compressed: {before.digest} in the file is {after.digest}"
            notices = (*notices, notice)
        blobs = {**self.blobs, **{one.digest: layer for one, layer in prepared.values()}}
        return replace(self, manifests=manifests, plain={}, blobs=blobs, notices=notices)


def make_plan(
    contents: Contents,
    selection: Selection,
    attached_to: Mapping[str, frozenset[str]],
    tags: Collection[str],
    present: Mapping[str, int],
    *,
    preserve_digests: bool,
) -> Plan:
    """Find and check what is sent. Raises ``InvalidImageError``.

    ``attached_to`` is what ``find_attached`` found, ``tags`` are those of the image. ``present``,
    by digest: the sizes of blobs that the repository has and the file lacks.
    """
    if preserve_digests:
        _check_preserves(contents, selection)
    attached = tuple(_find_attached_to(contents, selection, attached_to, tags))
    others = [manifest for one in attached for manifest in one.manifests]
    _check_sizes(contents, [*selection.manifests, *others])
    frozen = _frozen(contents, selection, others, attached_to) | {one.digest for one in others}
    if preserve_digests:
        frozen |= {one.digest for one in selection.manifests}
    plain: dict[str, PlainLayer] = {}
    blobs: dict[str, Layer] = {}
    notices = [notice for notice in (contents.notice, selection.notice) if notice]
    for manifest in (*selection.manifests, *others):
        _check_rules(contents, manifest)
        found = _find_plain(contents, manifest)
        if found and manifest.digest in frozen:
            found = {}
            if not preserve_digests:
                notices.append(
                    f"the layers of {manifest.digest} are not compressed, because something refers "
                    "to it by its digest"
                )
        plain |= found
        for blob in manifest.blobs:
            if blob.digest not in found and blob.digest not in present:
                source = _find_blob(contents, blob)
                if source is not None:
                    blobs[blob.digest] = Layer(source, digest=blob.digest, size=blob.size)
                if blob is manifest.config and isinstance(source, FileRegion):
                    _check_config(contents, blob, source)
    return Plan(contents, selection.manifests, attached, plain, frozen, blobs, tuple(notices))


def _check_preserves(contents: Contents, selection: Selection) -> None:
    """Raise ``InvalidImageError`` if the digest of the image in the file cannot be preserved."""
    root = selection.manifests[-1]
    if root.is_made:
        raise contents.error(
            "a docker archive has no digest that could be preserved: push it without "
            "preserve_digests, or save the image as an OCI layout"
        )
    if root.digest not in contents.manifests:
        raise contents.error(
            "an index of some of its platforms has another digest: push it without "
            "preserve_digests, or without platforms"
        )
    if selection.notice:
        raise contents.error(
            f"{selection.notice}, which has another digest: push it without preserve_digests, or "
            "pass platforms"
        )


def _find_attached_to(
    contents: Contents,
    selection: Selection,
    attached: Mapping[str, frozenset[str]],
    tags: Collection[str],
) -> Iterable[Attached]:
    """What refers to the image or to what is below it, to that, and so on."""
    pushed = {one.digest for one in selection.manifests}
    # buildkit's attestations are found in their index only, so without that they are of no use.
    waiting = {
        one.digest: one
        for one in contents.listed
        if one.digest in attached and one.digest not in pushed and not one.attested
    }
    while found := [one for one in waiting.values() if attached[one.digest] & pushed]:
        for one in found:
            del waiting[one.digest]
            contents.manifest(one.digest)  # raises if it is absent, or cannot be pushed
            pushed.add(one.digest)
            tag = tag_of_attached(one, attached)
            tree = tuple(contents.tree(one.digest))
            yield Attached(tree, None if tag in tags else tag)  # the image's tag is its own


def _frozen(
    contents: Contents,
    selection: Selection,
    others: Iterable[Manifest],
    attached: Mapping[str, frozenset[str]],
) -> frozenset[str]:
    """The digests of manifests to which, or to an index above which, something refers."""
    pushed = {one.digest: one for one in selection.manifests}
    frozen: set[str] = set()
    for referring in (*pushed, *(one.digest for one in others)):
        for digest in attached.get(referring, frozenset()) & pushed.keys():
            frozen |= {one.digest for one in contents.tree(digest)}
    return frozenset(frozen)


def _check_rules(contents: Contents, manifest: Manifest) -> None:
    """Raise ``InvalidImageError`` for a manifest that ECR will not accept."""
    where = "the image" if manifest.is_made else f"manifest {manifest.digest}"
    if len(manifest.content) > MAX_MANIFEST:
        raise contents.error(
            f"{where} has {len(manifest.content):,} bytes, more than {MAX_MANIFEST:,}"
        )
    document = parse_json(manifest.content, contents.error, where)
    violation = find_violation(document, manifest.media_type)
    if violation is not None:
        raise contents.error(f"{where} {violation.problem}")


def _check_sizes(contents: Contents, manifests: Sequence[Manifest]) -> None:
    """Raise ``InvalidImageError`` unless all descriptors of a digest agree on its size."""
    sizes: dict[str, int] = {one.digest: len(one.content) for one in manifests}
    known = {*sizes}
    listed = [one for one in contents.listed if one.digest in known and one.size]
    for one in (*listed, *(d for manifest in manifests for d in _descriptors(manifest))):
        size = sizes.setdefault(one.digest, one.size)
        if size != one.size:
            raise contents.error(
                f"a descriptor of {one.digest} says that it has {one.size:,} bytes, and it has "
                f"{size:,}, or another descriptor says so. Save the image again"
            )


def _descriptors(manifest: Manifest) -> tuple[Descriptor, ...]:
    return manifest.children or manifest.blobs


def _plain_layers(manifest: Manifest) -> list[Descriptor]:
    """The layers that may be plain, by their media type."""
    if not manifest.is_image:
        return []
    return [layer for layer in manifest.layers if layer.media_type in PLAIN_TYPES]


def _find_plain(contents: Contents, manifest: Manifest) -> dict[str, PlainLayer]:
    """The layers of an image that are compressed before they are sent, or checked; by digest."""
    found = {}
    for layer in _plain_layers(manifest):
        region = contents.find(layer.digest)
        if region is None:
            continue
        compression = stored_compression(region)
        if compression in REGISTRY_COMPRESSIONS and not manifest.is_made:
            continue
        if compression and compression not in REGISTRY_COMPRESSIONS and manifest.is_made:
            raise contents.error(
                f"the layer {layer.digest} is compressed with {compression}, which registries do "
                "not take: load the image with docker load, and save it again"
            )
        if compression and manifest.is_made and not can_decompress(compression):
            raise contents.error(
                f"the layer {layer.digest} is compressed with {compression}, which cannot be read "
                "here: install backports.zstd, or save the image as an OCI layout"
            )
        _check_size(contents, layer, region.size)
        found[layer.digest] = PlainLayer(
            layer.digest, region, compression if manifest.is_made else ""
        )
    if found and manifest.config is not None and not manifest.is_made:
        _check_diff_ids(contents, manifest.config, manifest.layers, found)
    return found


def _check_diff_ids(
    contents: Contents,
    config: Descriptor,
    layers: Sequence[Descriptor],
    plain: Collection[str],
) -> None:
    """Raise ``InvalidImageError`` unless the config names the layers that will be compressed."""
    region = contents.find(config.digest)
    if region is None or region.size > MAX_MANIFEST:
        return
    where, error_of = f"config {config.digest}", contents.error
    document = parse_json(read_file(region), error_of, where)
    diff_ids = member(document, "rootfs", dict, error_of, where).get("diff_ids")
    diff_ids = diff_ids if isinstance(diff_ids, list) else []
    if len(diff_ids) != len(layers):
        raise error_of(
            f"{where} has {len(diff_ids)} diff IDs, and the manifest {len(layers)} layers. Save "
            "the image again"
        )
    for number, (layer, diff_id) in enumerate(zip(layers, diff_ids, strict=True)):
        if layer.digest in plain and layer.digest != diff_id:
            raise error_of(
                f"{where} has the diff ID {short_repr(diff_id)} for layer {number}, which is "
                f"{layer.digest}. Save the image again"
            )


def _find_blob(contents: Contents, blob: Descriptor) -> FileRegion | bytes | None:
    """Where a blob is; ``None`` if it is downloaded from its URLs instead of ECR."""
    region = contents.find(blob.digest)
    if region is None and blob.data:
        try:
            content = base64.b64decode(blob.data, validate=True)
        except ValueError as error:
            raise contents.error(f"the data of {blob.digest} is not base64: {error}") from error
        _check_size(contents, blob, len(content))
        return verified(content, blob.digest, contents.error)
    if region is None and blob.has_urls:
        return None
    if region is None:
        raise contents.error(f"it has no blob {blob.digest}. Save the image again, whole")
    if not region.size:
        raise contents.error(f"blob {blob.digest} is empty, and ECR rejects empty layers")
    _check_size(contents, blob, region.size)
    return region


def _check_config(contents: Contents, config: Descriptor, region: FileRegion) -> None:
    if region.size <= MAX_MANIFEST:
        verified(read_file(region), config.digest, contents.error)


def _check_size(contents: Contents, blob: Descriptor, size: int) -> None:
    if size != blob.size:
        raise contents.error(
            f"blob {blob.digest} has {size:,} bytes instead of {blob.size:,}. Save the image again"
        )
