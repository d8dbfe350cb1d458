"""Which image of a file is pushed, what is attached to it, and which platforms are the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ecr_parts._base.validation import short_repr, to_printable
from ecr_parts._images.contents import Contents, Descriptor

TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,299}")  # 300 characters (API reference)
_COSIGN_TAG = re.compile(r"sha256-([0-9a-f]{64})(\.[a-z]+)?")
_COSIGN_KINDS = {"sigs": "sig", "atts": "att", "sboms": "sbom"}
"""The end of the annotation ``kind``, and of the tag that cosign looks for."""
_HUB = ("docker.io/library/", "index.docker.io/library/", "docker.io/", "index.docker.io/")
_MAX_SHOWN = 20  # items in a message


@dataclass(frozen=True)
class Wanted:
    """What the caller asks for."""

    repository_name: str
    """That of the target."""
    name: str | None
    tags: tuple[str, ...] | None
    platforms: tuple[str, ...] | None


@dataclass(frozen=True)
class Chosen:
    """The image that is pushed."""

    root: Descriptor
    tags: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    """Names that are no tags."""
    notice: str = ""
    """Why it was chosen, if the file has several images."""


def choose(contents: Contents, attached: Mapping[str, frozenset[str]], wanted: Wanted) -> Chosen:
    """Choose the image. Raises ``InvalidImageError`` if there is none, or if there are several."""
    below = [child for one in contents.manifests.values() for child in one.children]
    if wanted.name is not None:
        named = _find_named([*contents.listed, *below], wanted.name, contents)
        named = [one for one in named if one.digest not in attached] or named
        if not named:
            there = _list_of(contents.listed, contents)
            raise contents.error(f"it has no image {short_repr(wanted.name)}. It has {there}")
        if _are_several(named):
            raise contents.error(
                f"several images are called {short_repr(wanted.name)}: pass the full name or the "
                f"digest of one. They are {_list_of(named, contents)}"
            )
        return _with_tags(named, wanted)
    digests_below = {child.digest for child in below}
    images = [
        one
        for one in contents.listed
        if one.digest not in attached and (one.names or one.digest not in digests_below)
    ]
    for one in contents.listed:
        tags = _tags_of(one, wanted.tags or ()) if one.digest in attached else []
        if tags and not any(_tags_of(image, tags) for image in images):
            raise contents.error(
                f"the tag {tags[0]!r} is that of {one.digest}, which refers to an image: pass "
                "name to choose one of them"
            )
    among = len({one.digest for one in images})
    if _are_several(images):
        images = _closest(images, wanted.repository_name)
    if _are_several(images) and wanted.tags:
        images = _with_digests(images, [one for one in images if _tags_of(one, wanted.tags)])
    if _are_several(images):
        platforms = {one.digest: one.platform for one in images}
        has_own = "" not in platforms.values() and len(set(platforms.values())) == len(platforms)
        if contents.index is None or not has_own or any(one.names for one in images):
            there = _list_of(images, contents)
            raise contents.error(
                f"it has several images: pass name to choose one. They are {there}"
            )
        index = contents.index
        root = Descriptor(index.media_type, index.digest, len(index.content))
        return Chosen(root, wanted.tags or ())
    if not images:
        raise contents.error("it has no image")
    chosen = _with_tags(images, wanted)
    if among == 1:
        return chosen
    names = to_printable(_list_of(images, contents))
    return replace(
        chosen,
        notice=f"of the {among:,} images in the file, {names} was chosen, because its repository "
        "or tag is the target's",
    )


def _are_several(images: Iterable[Descriptor]) -> bool:
    return len({one.digest for one in images}) > 1


def _with_digests(images: list[Descriptor], some: list[Descriptor]) -> list[Descriptor]:
    """All names of the images that are in ``some``; all images if that is empty."""
    digests = {one.digest for one in some}
    return [one for one in images if one.digest in digests] or images


def _find_named(
    candidates: Sequence[Descriptor], name: str, contents: Contents
) -> list[Descriptor]:
    """What is called ``name``, by the first way in which anything is."""
    ways: tuple[Callable[[Descriptor], bool], ...] = (
        lambda one: name.rpartition("@")[2] in (one.digest, _config_digest(contents, one)),
        lambda one: name in one.names,
        lambda one: _normalized(name) in map(_normalized, one.names),
        lambda one: name in map(tag_of, one.names),
        lambda one: name in map(_last_part, one.names),
    )
    for is_meant in ways:
        if found := [one for one in candidates if is_meant(one)]:
            return found
    return []


def _config_digest(contents: Contents, one: Descriptor) -> str:
    """The digest of an image's config, which docker shows as the image's ID."""
    manifest = contents.manifests.get(one.digest)
    config = None if manifest is None else manifest.config
    return "" if config is None else config.digest


def _normalized(name: str) -> str:
    """A name without the registry that docker adds, and with the tag that it adds."""
    for prefix in _HUB:
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    return name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"


def _last_part(name: str) -> str:
    """The last part of the name of an image's repository."""
    return _repository_of(name)[-1]


def _repository_of(name: str) -> list[str]:
    directory, slash, last = name.partition("@")[0].rpartition("/")
    return f"{directory}{slash}{last.partition(':')[0]}".split("/")


def _closest(images: list[Descriptor], repository_name: str) -> list[Descriptor]:
    """The images whose repository ends as the target's does; all of them if none does."""
    target = repository_name.split("/")

    def common(name: str) -> int:
        """How many of the last parts are the same."""
        count = 0
        for ours, theirs in zip(reversed(_repository_of(name)), reversed(target), strict=False):
            if ours != theirs:
                break
            count += 1
        return count

    counts = [max(map(common, one.names), default=0) for one in images]
    most = max(counts)
    some = [one for one, count in zip(images, counts, strict=True) if count == most > 0]
    return _with_digests(images, some)


def _tags_of(one: Descriptor, wanted: Iterable[str] | None = None) -> list[str]:
    tags = [tag for tag in map(tag_of, one.names) if tag is not None]
    return tags if wanted is None else [tag for tag in tags if tag in wanted]


def _with_tags(images: list[Descriptor], wanted: Wanted) -> Chosen:
    """The image, whose names ``images`` have, with the tags that are wanted or that it has."""
    root = images[0]
    if wanted.tags is not None:
        return Chosen(root, wanted.tags)
    tags = tuple(dict.fromkeys(tag for one in images for tag in _tags_of(one)))
    dropped = tuple(one.names[0] for one in images if one.names and not _tags_of(one))
    return Chosen(root, tags, dropped)


def tag_of(reference: str) -> str | None:
    """The tag in the name of an image, such as ``registry:5000/app:v1`` or ``v1``."""
    if "@" in reference:
        return None
    name = reference.rpartition("/")[2]
    tag = name.rpartition(":")[2]
    if "/" in reference and ":" not in name:
        return None
    return tag if TAG.fullmatch(tag) else None


def _list_of(images: Iterable[Descriptor], contents: Contents) -> str:
    """Images for a message, with their names and digests."""
    names: dict[str, list[str]] = {}
    for one in images:
        manifest = contents.manifests.get(one.digest)
        is_made = manifest is not None and manifest.is_made  # so its digest tells nobody anything
        digest = _config_digest(contents, one) if is_made else one.digest
        known = names.setdefault(digest, [])
        known += [*one.names[:1]] or [one.platform] * bool(one.platform)
    shown = [f"{', '.join(known)} ({digest})".strip() for digest, known in names.items()]
    return joined(shown, "; ") or "none"


def joined(items: Sequence[str], separator: str = ", ") -> str:
    """The first items, for a message, and how many more there are."""
    more = [f"{len(items) - _MAX_SHOWN:,} more"] if len(items) > _MAX_SHOWN else []
    return separator.join([*items[:_MAX_SHOWN], *more])


# What is attached


def find_attached(contents: Contents) -> dict[str, frozenset[str]]:
    """By digest: what a signature, an attestation or another artifact refers to in the file."""
    listed, manifests = contents.listed, contents.manifests
    children = [child for one in manifests.values() for child in one.children]
    known = {one.digest for one in (*listed, *children)}
    images: dict[str, set[str]] = {}
    """By name: what "cosign save" may have written a signature for, which has the same name."""
    for one in listed:
        if not _cosign_suffix(one):
            images.setdefault(_first_name(one), set()).add(one.digest)
    found: dict[str, set[str]] = {}
    for one in (*listed, *children):
        targets = found.setdefault(one.digest, set())
        targets.add(one.attested)
        tags = map(_COSIGN_TAG.fullmatch, _tags_of(one))
        targets.update(f"sha256:{match[1]}" for match in tags if match)
        if _cosign_suffix(one):
            targets |= images.get(_first_name(one), set())
        if one.digest in manifests:
            targets.add(manifests[one.digest].subject)
    attached = {
        digest: frozenset((targets & known) - {digest}) for digest, targets in found.items()
    }
    return {digest: targets for digest, targets in attached.items() if targets}


def tag_of_attached(one: Descriptor, attached: Mapping[str, frozenset[str]]) -> str | None:
    """The tag under which an artifact is found at a registry; ``None`` if it needs none."""
    if suffix := _cosign_suffix(one):
        (subject, *_) = sorted(attached[one.digest])
        return f"{subject.replace(':', '-')}.{suffix}"
    return next(iter(_tags_of(one)), None)


def _cosign_suffix(one: Descriptor) -> str:
    return _COSIGN_KINDS.get(one.kind.rpartition("/")[2], "") if "cosign" in one.kind else ""


def _first_name(one: Descriptor) -> str:
    return one.names[0] if one.names else ""


# Platforms

_ARCHITECTURES = {
    "i386": "386",
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm/v7",
    "armel": "arm/v6",
}


def normalized_platform(platform: str) -> str:
    """A platform as containerd writes it: ``linux/aarch64`` is ``linux/arm64``.

    Reference: https://github.com/containerd/platforms/blob/v1.0.0/database.go
    """
    system, _, architecture = platform.lower().partition("/")
    architecture, _, variant = architecture.partition("/")
    architecture, _, implied = _ARCHITECTURES.get(architecture, architecture).partition("/")
    variant = variant or implied
    if variant.isdigit():
        variant = f"v{variant}"
    if (architecture, variant) in (("amd64", "v1"), ("arm64", "v8")):
        variant = ""
    if (architecture, variant) == ("arm", ""):
        variant = "v7"
    system = "darwin" if system == "macos" else system
    return "/".join([system, architecture, *([variant] if variant else [])])


def fitting(platform: str, there: Iterable[str]) -> set[str]:
    """Those of the platforms ``there`` that are ``platform``.

    If none is, and it has no variant, those with any variant.
    """
    asked = normalized_platform(platform)
    same = {one for one in there if normalized_platform(one) == asked}
    if same or platform.count("/") > 1:
        return same
    start = "/".join(asked.split("/")[:2])
    return {one for one in there if normalized_platform(one).startswith(f"{start}/")}
