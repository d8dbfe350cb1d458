"""Which image of a file is pushed, for which platforms, with what is attached to it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, cast

import pytest
from ecr_calls import PushingClient
from helpers import SMALL_LIMITS, digest_of, operations
from image_makers import (
    EMPTY_TYPE,
    INDEX_TYPE,
    LAYER_TYPE,
    LAYERS,
    MANIFEST_TYPE,
    PLAIN_TYPE,
    REF_NAME,
    Descriptor,
    Layout,
    attested,
    docker_archive,
    named,
    saved,
    two_platforms,
)

from ecr_parts import EcrClient, InvalidImageError, LayerUploader
from ecr_parts._images.choice import normalized_platform
from ecr_parts.testing import EcrError, LocalECR


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def images_of(ecr: LocalECR, repository: str = "demo") -> set[str]:
    return set(ecr.registry.repositories[repository].images)


def tags_of(ecr: LocalECR) -> dict[str, str]:
    return ecr.registry.repositories["demo"].tags


def three_images(layout: Layout) -> list[Descriptor]:
    return [
        layout.add_image(name, LAYERS[i : i + 1])
        for i, name in enumerate(["amd64", "arm64", "arm"])
    ]


# By name


@pytest.mark.parametrize(
    ("name", "number", "tags"),
    [
        ("docker.io/library/app:v1", 0, ("v1",)),
        ("app:v1", 0, ("v1",)),
        ("index.docker.io/library/app:v1", 0, ("v1",)),
        ("docker.io/team/app:v2", 1, ("v2",)),
        ("team/app:v2", 1, ("v2",)),
        ("v2", 1, ("v2",)),
        ("redis", 2, ("latest", "7")),
        ("redis:latest", 2, ("latest",)),
        ("docker.io/library/redis", 2, ("latest",)),
        ("localhost/redis:7", 2, ("7",)),
        ("7", 2, ("7",)),
    ],
)
def test_finds_image_by_its_name(
    name: str, number: int, tags: tuple[str, ...], layout: Layout, uploader: LayerUploader
) -> None:
    """By the first way that finds any: exactly, as docker writes it, the tag, the last part."""
    images = three_images(layout)
    layout.finish(
        saved(images[0], "docker.io/library/app:v1"),
        saved(images[1], "docker.io/team/app:v2"),
        *named(images[2], "docker.io/library/redis:latest", "localhost/redis:7"),
    )
    if name == "redis":  # "redis:latest" is found first, as docker means it
        tags = ("latest",)
    pushed = uploader.push_image(layout.path, name=name)
    assert (pushed.digest, pushed.tags) == (images[number]["digest"], tags)
    assert uploader.push_image(layout.path, name=name, tags=["x"]).tags == ("x",)


@pytest.mark.parametrize("prefix", ["", "app@", "docker.io/library/app@"])
def test_finds_image_by_its_digest(prefix: str, layout: Layout, uploader: LayerUploader) -> None:
    """Also one that is listed in an index only."""
    images = three_images(layout)
    layout.finish(*named(layout.add_index(*images), "app:v1"))
    name = f"{prefix}{images[1]['digest']}"
    pushed = uploader.push_image(layout.path, name=name)
    assert (pushed.digest, pushed.tags) == (images[1]["digest"], ())


def test_name_of_several_images(layout: Layout, ecr: LocalECR, uploader: LayerUploader) -> None:
    first, second, _ = three_images(layout)
    layout.finish(*named(first, "a/app:v1"), *named(second, "b/app:v1"))
    for name in ("v1", "app"):
        with pytest.raises(InvalidImageError, match="several images are called") as raised:
            uploader.push_image(layout.path, name=name)
        assert f"a/app:v1 ({first['digest']}); b/app:v1 ({second['digest']})" in str(raised.value)
    with pytest.raises(InvalidImageError, match=r"has no image 'other'\. It has a/app:v1"):
        uploader.push_image(layout.path, name="other")
    assert ecr.calls == []


@pytest.mark.parametrize("name", ["", 1, "a\nb"])
def test_refuses_bad_name(name: Any, uploader: LayerUploader, tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^name must be"):
        uploader.push_image(tmp_path, name=name)
    with pytest.raises(ValueError, match="image must be a path, not ''"):
        uploader.push_image("")
    with pytest.raises(TypeError, match="preserve_digests must be True or False, not 'yes'"):
        uploader.push_image(tmp_path, preserve_digests="yes")  # type: ignore[arg-type]  # wrong on purpose


# Without a name


@pytest.mark.parametrize(
    ("repository", "tags", "number"),
    [
        ("team/app", ["latest"], 0), ("app", None, 0), ("team/redis", ["v1"], 1),
        ("other/tool", None, 2), ("tool", ["x"], 2), ("unknown", ["v3"], 2),
        ("unknown", ["x", "v1"], 0),
    ],
)  # fmt: skip
def test_repository_and_tag_tell_which_image_is_meant(
    repository: str, tags: Any, number: int, layout: Layout
) -> None:
    """``docker save app redis`` to ``team/app``."""
    images = three_images(layout)
    layout.finish(
        saved(images[0], "docker.io/library/app:v1"),
        saved(images[1], "docker.io/library/redis:7"),
        saved(images[2], "registry:5000/other/tool:v3"),
    )
    with LocalECR([repository]) as ecr:
        uploader = LayerUploader(ecr.client(), repository)
        pushed = uploader.push_image(layout.path, tags=tags)
        assert pushed.digest == images[number]["digest"]


def test_repository_that_ends_more_alike_is_meant(
    layout: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    images = three_images(layout)
    layout.finish(*named(images[0], "x/app:v1"), *named(images[1], "b/app:v1"))
    notice = (
        f"of the 2 images in the file, b/app:v1 ({images[1]['digest']}) was chosen, because its "
        "repository or tag is the target's"
    )
    with LocalECR(["a/b/app"]) as ecr:
        uploader = LayerUploader(ecr.client(), "a/b/app")
        assert uploader.push_image(layout.path).digest == images[1]["digest"]
        assert notice in caplog.messages
        caplog.clear()
        uploader.push_image(layout.path, name="b/app:v1")
        assert notice not in caplog.messages


def test_notice_has_all_names_of_the_image_that_was_chosen(
    layout: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    """It may also be listed without a name, and a name may have any characters."""
    images = three_images(layout)
    layout.finish(images[0], *named(images[0], "v9", "app:\x1bv1"), *named(images[1], "redis:v1"))
    with LocalECR(["app"]) as ecr:
        pushed = LayerUploader(ecr.client(), "app").push_image(layout.path)
    assert pushed.digest == images[0]["digest"]
    assert caplog.messages[0].startswith(
        f"of the 2 images in the file, linux/amd64, v9, app: v1 ({pushed.digest}) was chosen, "
    )


def test_several_images_are_an_error(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    images = three_images(layout)
    layout.finish(*named(images[0], "a:v1", "a:v2"), *named(images[1], "b:v1"), images[2])
    all_options: list[dict[str, Any]] = [{}, {"tags": ["v3"]}, {"platforms": ["linux/amd64"]}]
    for options in all_options:
        with pytest.raises(InvalidImageError, match="pass name to choose one") as raised:
            uploader.push_image(layout.path, **options)
    assert f"a:v1, a:v2 ({images[0]['digest']}); b:v1" in str(raised.value)
    assert ecr.calls == []


def test_message_names_twenty_images_at_most(layout: Layout, uploader: LayerUploader) -> None:
    document = json.loads(layout.blob_path(layout.add_image("amd64", LAYERS[:1])).read_text())
    images = [
        layout.add_json({**document, "annotations": {"n": str(n)}}, MANIFEST_TYPE)
        for n in range(30)
    ]
    layout.finish(*(one for n, image in enumerate(images) for one in named(image, f"app:{n}")))
    with pytest.raises(InvalidImageError, match=r"app:19 \(sha256:[0-9a-f]+\); 10 more$"):
        uploader.push_image(layout.path)


def test_unnamed_images_of_several_platforms_are_an_index(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """``index.json`` itself, as crane and ko write it."""
    path = layout.finish(*three_images(layout))
    content = (path / "index.json").read_bytes()
    pushed = uploader.push_image(path, tags=["v1"])
    assert tags_of(ecr) == {"v1": digest_of(content)}
    assert len(images_of(ecr)) == 4
    assert uploader.push_image(path, platforms=["linux/arm64"]).media_type == MANIFEST_TYPE
    assert uploader.push_image(path).digest == pushed.digest


def test_children_of_an_index_are_no_images(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """oras and buildx list them beside it."""
    images = three_images(layout)
    attestation = attested(images[0], layout.add_artifact())
    index = layout.add_index(*images, attestation)
    layout.finish(*named(index, "1.0"), attestation, *images)
    assert uploader.push_image(layout.path).digest == index["digest"]
    alone = uploader.push_image(layout.path, platforms=["linux/amd64"])
    assert alone.digest == images[0]["digest"]
    assert len(ecr.calls_of("PutImage")) == 6  # the attestation is not put with the one image


@pytest.mark.parametrize(
    ("names", "tags", "dropped"),
    [
        (["1.0.0+build"], (), "'1.0.0+build' is not a tag"),
        (["localhost/app"], (), "'localhost/app' is not a tag"),
        (["1.0.0+build", "v1"], ("v1",), "'1.0.0+build' is not a tag"),
        (["v1"], ("v1",), ""),
    ],
)
def test_name_that_is_no_tag_is_not_dropped_in_silence(
    names: list[str], tags: tuple[str, ...], dropped: str, layout: Layout,
    uploader: LayerUploader, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    layout.finish(*named(layout.add_image("amd64", LAYERS[:1]), *names))
    assert uploader.push_image(layout.path).tags == tags
    assert dropped in caplog.text
    assert ("is not a tag" in caplog.text) == bool(dropped)


# Platforms


@pytest.mark.parametrize(
    ("platform", "normal"),
    [
        ("linux/arm64/v8", "linux/arm64"), ("linux/arm64/8", "linux/arm64"),
        ("linux/aarch64", "linux/arm64"), ("linux/x86_64", "linux/amd64"),
        ("linux/x86-64/v1", "linux/amd64"), ("linux/amd64/v2", "linux/amd64/v2"),
        ("linux/i386", "linux/386"), ("linux/arm", "linux/arm/v7"),
        ("linux/arm/7", "linux/arm/v7"), ("linux/arm/v6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"), ("linux/armel", "linux/arm/v6"),
        ("macos/aarch64", "darwin/arm64"), ("Linux/AMD64", "linux/amd64"),
        ("linux/riscv64", "linux/riscv64"), ("", "/"),
    ],
)  # fmt: skip
def test_normalizes_platforms_as_containerd_does(platform: str, normal: str) -> None:
    assert normalized_platform(platform) == normal
    assert normalized_platform(normal) == normal


def variants(layout: Layout, *names: str) -> list[Descriptor]:
    images = []
    for i, name in enumerate(names):
        architecture, _, variant = name.partition("/")
        image = layout.add_image(architecture, LAYERS[i % 3 : i % 3 + 1], annotations={"n": name})
        images.append({**image, "platform": {**image["platform"], "variant": variant}})
    return images


@pytest.mark.parametrize(
    ("platform", "number"),
    [
        ("linux/arm64", 1), ("linux/arm64/v8", 1), ("linux/aarch64", 1), ("linux/amd64", 0),
        ("linux/amd64/v3", 2), ("linux/arm", 4), ("linux/arm/v6", 3), ("linux/arm/v5", None),
        ("linux/riscv64", 5),
    ],
)  # fmt: skip
def test_chooses_variant(
    platform: str, number: int | None, layout: Layout, uploader: LayerUploader
) -> None:
    images = variants(layout, "amd64", "arm64/v8", "amd64/v3", "arm/v6", "arm/v7", "riscv64/rva20")
    layout.finish(layout.add_index(layout.add_index(*images[:3]), *images[3:]))
    if number is None:
        with pytest.raises(InvalidImageError, match="no image for the platform 'linux/arm/v5'"):
            uploader.push_image(layout.path, platforms=[platform])
    else:
        pushed = uploader.push_image(layout.path, platforms=[platform])
        assert pushed.digest == images[number]["digest"]


def test_some_platforms_of_nested_indexes(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """An index of which all is left stays as it is, and one of which nothing is left goes."""
    images = variants(layout, "amd64", "arm64", "arm/v7", "s390x")
    whole = layout.add_index(images[0])
    layout.finish(
        layout.add_index(whole, layout.add_index(*images[1:3]), layout.add_index(images[3]))
    )
    pushed = uploader.push_image(layout.path, platforms=["linux/amd64", "linux/arm64"])
    index = json.loads(ecr.registry.repositories["demo"].images[pushed.digest].manifest)
    first, second = index["manifests"]
    assert first == whole
    assert second["digest"] in images_of(ecr)
    nested = json.loads(ecr.registry.repositories["demo"].images[second["digest"]].manifest)
    assert nested["manifests"] == [images[1]]
    with pytest.raises(InvalidImageError, match="an index of some of its platforms"):
        uploader.push_image(
            layout.path, platforms=["linux/amd64", "linux/arm64"], preserve_digests=True
        )


# What the file lacks


def without(layout: Layout, *digests: str) -> None:
    for digest in digests:
        layout.blob_path({"digest": digest}).unlink()


def test_blobs_that_the_repository_has_need_not_be_in_the_file(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    layout = two_platforms(tmp_path / "layout")
    whole = uploader.push_image(layout.path)
    without(layout, *(layer.digest for layer in whole.layers[1:]))
    ecr.calls.clear()
    pushed = uploader.push_image(layout.path)
    assert (pushed.digest, len(pushed.layers)) == (whole.digest, len(whole.layers))
    assert ecr.calls_of("UploadLayerPart") == []


@pytest.mark.parametrize("can_ask", [True, False])
def test_images_that_the_repository_has_need_not_be_in_the_file(
    can_ask: bool, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """docker saves only the platform that was pulled, and another job has pushed the others."""
    layout = two_platforms(tmp_path / "layout")
    whole = uploader.push_image(layout.path)
    (root,) = json.loads((layout.path / "index.json").read_text())["manifests"]
    here, absent = json.loads(layout.blob_path(root).read_text())["manifests"]
    without(layout, absent["digest"])
    if not can_ask:
        ecr.respond("DescribeImages", EcrError("AccessDeniedException", "no"), times=9)
    pushed = uploader.push_image(layout.path)
    assert pushed.digest == (whole.digest if can_ask else here["digest"])
    assert "DescribeImages" in operations(ecr)


def test_absent_images_are_asked_for_in_blocks(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    document = json.loads(layout.blob_path(layout.add_image("amd64", LAYERS[:1])).read_text())
    images = [
        layout.add_json(
            {**document, "annotations": {"n": str(n)}},
            MANIFEST_TYPE,
            platform={"os": "linux", "architecture": f"a{n}"},
        )
        for n in range(102)
    ]
    path = layout.finish(layout.add_index(*images))
    whole = uploader.push_image(path)
    without(layout, *(one["digest"] for one in images[1:]))
    ecr.calls.clear()
    assert uploader.push_image(path).digest == whole.digest
    assert len(ecr.calls_of("DescribeImages")) == 2
    ecr.respond("DescribeImages", {"imageDetails": []})
    assert uploader.push_image(path).digest == images[0]["digest"]


def test_client_that_cannot_describe_images(ecr: LocalECR, tmp_path: Path) -> None:
    layout = two_platforms(tmp_path / "layout")
    (root,) = json.loads((layout.path / "index.json").read_text())["manifests"]
    here, absent = json.loads(layout.blob_path(root).read_text())["manifests"]
    without(layout, absent["digest"])
    client = PushingClient(ecr.client())
    uploader = LayerUploader(cast("EcrClient", client), "demo", limits=SMALL_LIMITS)
    assert uploader.push_image(layout.path).digest == here["digest"]


def test_several_complete_platforms_are_an_error(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """As docker decides: nobody knows which of them is meant."""
    images = three_images(layout)
    layout.finish(layout.add_index(*images))
    without(layout, images[2]["digest"])
    message = "lacks a part of .*: pass platforms to push some of linux/amd64, linux/arm64"
    with pytest.raises(InvalidImageError, match=message):
        uploader.push_image(layout.path)
    assert ecr.calls_of("PutImage") == []
    chosen = uploader.push_image(layout.path, platforms=["linux/amd64", "linux/arm64"])
    assert len(json.loads(ecr.registry.repositories["demo"].images[chosen.digest].manifest)) == 3


def test_attestation_that_is_absent_is_left_out(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    images = three_images(layout)[:2]
    attestations = [
        attested(image, layout.add_artifact(annotations={"n": image["digest"]})) for image in images
    ]
    layout.finish(layout.add_index(*images, *attestations))
    without(layout, attestations[0]["digest"])
    pushed = uploader.push_image(layout.path, platforms=["linux/amd64", "linux/arm64"])
    index = json.loads(ecr.registry.repositories["demo"].images[pushed.digest].manifest)
    assert index["manifests"] == [*images, attestations[1]]


def test_platform_that_only_the_repository_has(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """Its manifest is not known, so it cannot be put under a tag."""
    layout = two_platforms(tmp_path / "layout")
    uploader.push_image(layout.path)
    (root,) = json.loads((layout.path / "index.json").read_text())["manifests"]
    absent = json.loads(layout.blob_path(root).read_text())["manifests"][1]
    without(layout, absent["digest"])
    with pytest.raises(InvalidImageError, match=f"has no blob {absent['digest']}"):
        uploader.push_image(layout.path, platforms=["linux/arm64"])


def test_platform_that_is_left_out_may_be_damaged(layout: Layout, uploader: LayerUploader) -> None:
    images = three_images(layout)
    layout.blob_path(images[2]).write_bytes(b"damaged")
    layout.finish(layout.add_index(*images))
    pushed = uploader.push_image(layout.path, platforms=["linux/amd64", "linux/arm64"])
    assert len(pushed.layers) == 4


def test_one_manifest_for_two_platforms(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    image, other, _ = three_images(layout)
    again = {**image, "platform": {"os": "linux", "architecture": "riscv64"}}
    index = layout.add_index(image, again, other)
    layout.finish(index)
    for platform in ("linux/amd64", "linux/riscv64"):
        assert uploader.push_image(layout.path, platforms=[platform]).digest == image["digest"]
    assert uploader.push_image(layout.path).digest == index["digest"]


def test_lists_twenty_platforms_at_most(layout: Layout, uploader: LayerUploader) -> None:
    images = variants(layout, *(f"a{n}" for n in range(24)))
    layout.finish(layout.add_index(*images))
    without(layout, images[0]["digest"])
    with pytest.raises(InvalidImageError, match=r"pass platforms to push some of .*, 3 more$"):
        uploader.push_image(layout.path)


def test_indexes_that_are_listed_many_times_are_read_once(
    layout: Layout, uploader: LayerUploader
) -> None:
    """In each other, they would have 2,000 ** 4 images."""
    image = layout.add_image("amd64", LAYERS[:1])
    root = image
    for _ in range(4):
        root = layout.add_index(*[root] * 2_000)
    layout.finish(root)
    for platforms in (None, ["linux/amd64"]):
        pushed = uploader.push_image(layout.path, platforms=platforms)
        assert pushed.digest == (root if platforms is None else image)["digest"]


@pytest.mark.parametrize("nested", [True, False])
def test_index_of_nothing(nested: bool, layout: Layout, uploader: LayerUploader) -> None:
    index = layout.add_index()
    layout.finish(layout.add_index(index) if nested else index)
    for platforms in (None, ["linux/amd64"]):
        with pytest.raises(InvalidImageError, match=r"an index of none|Available: $"):
            uploader.push_image(layout.path, platforms=platforms)


def test_manifest_that_is_called_an_index(layout: Layout, uploader: LayerUploader) -> None:
    layout.finish({**three_images(layout)[0], "mediaType": INDEX_TYPE})
    with pytest.raises(InvalidImageError, match="is no index, as its media type says"):
        uploader.push_image(layout.path)


def test_digest_of_one_platform_alone_is_not_preserved(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    images = three_images(layout)[:2]
    layout.finish(layout.add_index(*images))
    without(layout, images[1]["digest"])
    with pytest.raises(InvalidImageError, match="another digest: push it without preserve_digests"):
        uploader.push_image(layout.path, preserve_digests=True)
    pushed = uploader.push_image(layout.path, preserve_digests=True, platforms=["linux/amd64"])
    assert pushed.digest == images[0]["digest"]


# What is attached


@pytest.mark.parametrize("how", ["subject", "cosign tag", "full cosign tag", "referrers tag"])
def test_pushes_what_is_attached_with_the_image(
    how: str, layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    image, other, _ = three_images(layout)
    hexadecimal = image["digest"].removeprefix("sha256:")
    tags = {"v1": image["digest"]}
    if how == "subject":
        signature = layout.add_artifact(image)
        listed = [signature]
        below = layout.add_artifact(signature, annotations={"n": "of the signature"})
        listed.append(below)
    else:
        tag = f"sha256-{hexadecimal}" + (".sig" if "cosign" in how else "")
        signature = layout.add_artifact()
        if how == "referrers tag":
            signature = layout.add_index(layout.add_artifact(image))
        listed = named(signature, f"registry/demo:{tag}" if "full" in how else tag)
        tags[tag] = signature["digest"]
    unrelated = layout.add_artifact(other, annotations={"n": "of another image"})
    layout.finish(*named(image, "app:v1"), *listed, *named(other, "other:v1"), unrelated)
    pushed = uploader.push_image(layout.path, name="app:v1")
    assert pushed.digest == image["digest"]
    assert tags_of(ecr) == tags
    assert {one["digest"] for one in listed} < images_of(ecr)
    assert unrelated["digest"] not in images_of(ecr)
    put_last = ecr.registry.repositories["demo"].tags
    assert list(put_last)[-1] == "v1"  # when all that belongs to it is there


def test_image_without_a_tag_is_put_once_with_what_is_attached(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    image = three_images(layout)[0]
    layout.finish(image, layout.add_artifact(image))
    assert uploader.push_image(layout.path).tags == ()
    assert len(ecr.calls_of("PutImage")) == len(images_of(ecr)) == 2


def test_cosign_save(layout: Layout, ecr: LocalECR, uploader: LayerUploader) -> None:
    """Its signatures have the image's name, and get the tag that cosign looks for."""
    image = three_images(layout)[0]
    parts = {
        "image": image,
        "sigs": layout.add_artifact(),
        "atts": layout.add_artifact(annotations={"n": "1"}),
    }
    layout.finish(
        *(
            {**one, "annotations": {REF_NAME: "app:v1", "kind": f"dev.cosignproject.cosign/{kind}"}}
            for kind, one in parts.items()
        )
    )
    pushed = uploader.push_image(layout.path)
    assert pushed.digest == image["digest"]
    assert uploader.push_image(layout.path, name="app:v1").digest == image["digest"]
    start = image["digest"].replace(":", "-")
    assert tags_of(ecr) == {
        "v1": image["digest"],
        f"{start}.sig": parts["sigs"]["digest"],
        f"{start}.att": parts["atts"]["digest"],
    }


def test_tag_of_an_attached_artifact_is_not_given_to_the_image(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    image = three_images(layout)[0]
    signature = layout.add_artifact(image)
    layout.finish(*named(image, "base"), *named(signature, "app"))
    with pytest.raises(InvalidImageError, match=r"tag 'app' is that of .* pass name to choose"):
        uploader.push_image(layout.path, tags=["app"])
    assert ecr.calls == []
    assert uploader.push_image(layout.path, tags=["app"], name="base").digest == image["digest"]
    assert tags_of(ecr) == {"app": image["digest"]}
    assert signature["digest"] in images_of(ecr)


def test_image_and_artifact_of_the_same_name(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """The artifact never has the tag, or it would keep an immutable one."""
    ecr.registry.repositories["demo"].immutable_tags = True
    image = three_images(layout)[0]
    layout.finish(*named(image, "app:v1"), *named(layout.add_artifact(image), "app:v1"))
    for options in ({}, {"name": "app:v1"}, {"tags": ["v1"]}):
        assert uploader.push_image(layout.path, **options).digest == image["digest"]
        assert tags_of(ecr) == {"v1": image["digest"]}
    assert len(images_of(ecr)) == 2


@pytest.mark.parametrize("where", ["descriptor", "repository"])
def test_blobs_of_attached_artifacts_may_be_elsewhere(
    where: str, layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """oras writes the content of the empty config into its descriptor."""
    image = three_images(layout)[0]
    empty = layout.add(b"{}", EMPTY_TYPE, **({"data": "e30="} if where == "descriptor" else {}))
    layout.finish(image, layout.add_artifact(image, config=empty))
    without(layout, empty["digest"])
    if where == "repository":
        uploader.upload(b"{}")
    uploader.push_image(layout.path)
    assert ecr.layer("demo", empty["digest"]) == b"{}"


@pytest.mark.parametrize(
    ("data", "message"), [("e3k=", "has other content"), ("e3", "is not base64")]
)
def test_content_in_a_descriptor_is_verified(
    data: str, message: str, layout: Layout, uploader: LayerUploader
) -> None:
    empty = layout.add(b"{}", EMPTY_TYPE, data=data)
    layout.finish(layout.add_artifact(config=empty))
    without(layout, empty["digest"])
    with pytest.raises(InvalidImageError, match=message):
        uploader.push_image(layout.path)


def test_content_in_a_descriptor_has_its_size(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    empty = layout.add(b"{}", EMPTY_TYPE)
    layout.finish(layout.add_artifact(config={**empty, "data": "e30=", "size": 3}))
    without(layout, empty["digest"])
    with pytest.raises(InvalidImageError, match="has 2 bytes instead of 3"):
        uploader.push_image(layout.path)


def test_artifact_can_be_chosen_by_its_name(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    image = three_images(layout)[0]
    signature = layout.add_artifact(image)
    layout.finish(image, *named(signature, "signature"))
    assert uploader.push_image(layout.path, name="signature").digest == signature["digest"]
    assert images_of(ecr) == {signature["digest"]}


@pytest.mark.parametrize("lacking", ["manifest", "layer"])
def test_attached_artifact_that_is_absent(
    lacking: str, layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    image = three_images(layout)[0]
    start = image["digest"].replace(":", "-")
    signature = layout.add_artifact()
    layout.finish(image, *named(signature, f"{start}.sig"))
    without(layout, signature["digest"] if lacking == "manifest" else digest_of(b"signature"))
    with pytest.raises(InvalidImageError, match="has no blob"):
        uploader.push_image(layout.path)
    assert ecr.calls_of("PutImage") == []


# Plain layers: what is rewritten, and what is not


def plain_index(layout: Layout) -> list[Descriptor]:
    return [
        layout.add_plain_image("amd64", LAYERS[:2]),
        layout.add_plain_image("arm64", LAYERS[1:]),
    ]


def test_indexes_above_compressed_layers_are_rewritten(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader, caplog: pytest.LogCaptureFixture
) -> None:
    images = plain_index(layout)
    artifact = attested(images[1], layout.add_artifact())
    artifact["annotations"] = {"a": "b"}
    index = layout.add_index(images[0], {**images[1], "data": "e30=", "urls": []}, artifact)
    layout.finish(*named(index, "v1"))
    pushed = uploader.push_image(layout.path)
    assert f"{index['digest']} in the file is {pushed.digest}" in caplog.text
    after = json.loads(ecr.registry.repositories["demo"].images[pushed.digest].manifest)
    changed = [{**one, "digest": "", "size": 0} for one in after["manifests"]]
    assert changed == [{**one, "digest": "", "size": 0} for one in (*images, artifact)]
    assert after["manifests"][2] == artifact
    assert images_of(ecr) == {pushed.digest, *(one["digest"] for one in after["manifests"])}


@pytest.mark.parametrize("of", ["an image", "the index", "an attestation"])
def test_what_something_refers_to_is_frozen(
    of: str, layout: Layout, ecr: LocalECR, uploader: LayerUploader,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A signature would be lost if the digest changed."""
    images = plain_index(layout)
    more = [attested(images[0], layout.add_artifact())] if of == "an attestation" else []
    index = layout.add_index(*images, *more)
    subject = {"an image": images[0], "the index": index}.get(of)
    signature = [layout.add_artifact(subject)] if subject else []
    layout.finish(*named(index, "v1"), *signature)
    pushed = uploader.push_image(layout.path)
    assert images[0]["digest"] in images_of(ecr)
    assert f"layers of {images[0]['digest']} are not compressed" in caplog.text
    assert (pushed.digest == index["digest"]) == (of == "the index")
    assert (images[1]["digest"] in images_of(ecr)) == (of == "the index")


def test_preserve_digests_changes_nothing(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader, caplog: pytest.LogCaptureFixture
) -> None:
    index = layout.add_index(*plain_index(layout))
    layout.finish(*named(index, "v1"))
    assert uploader.push_image(layout.path, preserve_digests=True).digest == index["digest"]
    assert "compressed" not in caplog.text


def test_docker_archive_has_no_digest_to_preserve(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = docker_archive(tmp_path / "image.tar", LAYERS)
    with pytest.raises(InvalidImageError, match="a docker archive has no digest"):
        uploader.push_image(path, preserve_digests=True)
    assert ecr.calls == []


def test_tar_of_an_artifact_is_no_layer_to_compress(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    layer = layout.add(LAYERS[0], "application/vnd.oci.image.layer.v1.tar")
    artifact = layout.add_artifact(layers=[layer])
    layout.finish(artifact)
    assert uploader.push_image(layout.path).digest == artifact["digest"]


@pytest.mark.parametrize("start", [b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"])
def test_layer_that_is_compressed_already_stays(
    start: bytes, layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """Some builders give it the media type of a plain one."""
    image = layout.add_plain_image("amd64", [start + b"content"])
    layout.finish(image)
    assert uploader.push_image(layout.path).digest == image["digest"]


@pytest.mark.parametrize(
    ("diff_ids", "message"),
    [
        (None, "has 0 diff IDs, and the manifest 2 layers"),
        ([digest_of(LAYERS[0])], "has 1 diff IDs, and the manifest 2 layers"),
        (
            [digest_of(LAYERS[1]), digest_of(LAYERS[0])],
            f"for layer 0, which is {digest_of(LAYERS[0])}",
        ),
        ([digest_of(LAYERS[0]), 1], f"diff ID 1 for layer 1, which is {digest_of(LAYERS[1])}"),
    ],
)
def test_plain_layer_without_its_diff_id(
    diff_ids: Any, message: str, layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    rootfs = {"diff_ids": diff_ids}
    image = layout.add_plain_image("amd64", LAYERS[:2])
    manifest = json.loads(layout.blob_path(image).read_text())
    config = {"os": "linux", "architecture": "amd64", "rootfs": rootfs}
    manifest["config"] = layout.add_json(config, manifest["config"]["mediaType"])
    layout.finish(layout.add_json(manifest, MANIFEST_TYPE))
    with pytest.raises(InvalidImageError, match=message):
        uploader.push_image(layout.path)
    assert ecr.calls == []


def test_plain_and_compressed_layers_of_one_image(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    image = layout.add_plain_image("amd64", LAYERS[:2])
    manifest = json.loads(layout.blob_path(image).read_text())
    manifest["layers"][0] = layout.add(gzip.compress(LAYERS[0], mtime=0), LAYER_TYPE)
    layout.finish(layout.add_json(manifest, MANIFEST_TYPE))
    pushed = uploader.push_image(layout.path)
    after = json.loads(ecr.registry.repositories["demo"].images[pushed.digest].manifest)
    assert after["layers"][0] == manifest["layers"][0]
    assert after["layers"][1]["mediaType"] == LAYER_TYPE


def test_plain_layer_that_only_the_repository_has(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """It stays as it is there. Nor can a config that is absent be compared with the layers."""
    image = layout.add_plain_image("amd64", LAYERS[:2])
    layout.finish(image)
    whole = uploader.push_image(layout.path, preserve_digests=True)
    config = json.loads(layout.blob_path(image).read_text())["config"]
    without(layout, digest_of(LAYERS[0]), config["digest"])
    pushed = uploader.push_image(layout.path)
    after = json.loads(ecr.registry.repositories["demo"].images[pushed.digest].manifest)
    assert [layer["mediaType"] for layer in after["layers"]] == [PLAIN_TYPE, LAYER_TYPE]
    assert (whole.digest, after["config"]) == (image["digest"], config)


def test_damaged_platform_is_not_taken_for_an_absent_one(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    images = three_images(layout)[:2]
    layout.finish(layout.add_index(*images))
    layout.blob_path(images[1]).write_bytes(b"[]")
    with pytest.raises(InvalidImageError, match=f"blob {images[1]['digest']} has other content"):
        uploader.push_image(layout.path)
    layout.finish(layout.add_index(images[0], layout.add(b"[]", MANIFEST_TYPE)))
    with pytest.raises(InvalidImageError, match="is not a JSON object"):
        uploader.push_image(layout.path)
    assert ecr.calls == []


def test_platform_of_an_image_whose_config_is_not_read(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    layout.finish(layout.add_artifact(config=layout.add(bytes(4_194_305), "text/plain")))
    with pytest.raises(InvalidImageError, match="Available: none"):
        uploader.push_image(layout.path, platforms=["linux/amd64"])


def test_plain_layer_with_other_content(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    image = layout.add_plain_image("amd64", LAYERS[:1])
    layout.finish(image)
    layout.blob_path({"digest": digest_of(LAYERS[0])}).write_bytes(bytes(len(LAYERS[0])))
    with pytest.raises(InvalidImageError, match=f"does not match {digest_of(LAYERS[0])}"):
        uploader.push_image(layout.path)
    assert ecr.calls_of("PutImage") == []


# What ECR refuses


@pytest.mark.parametrize("layers", [[], None])
def test_image_without_layers(
    layers: Any, layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    layout.finish(layout.add_artifact(layers=layers))
    with pytest.raises(InvalidImageError, match="has no layers, and ECR accepts no image without"):
        uploader.push_image(layout.path)
    assert ecr.calls == []


def test_only_the_image_that_is_chosen_must_be_right(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    image = three_images(layout)[0]
    broken = [
        layout.add(b"no JSON", MANIFEST_TYPE),
        layout.add_json({"schemaVersion": 1}, MANIFEST_TYPE),
        layout.add(b"text", "text/plain"),
        layout.add_artifact(layers=None),
    ]
    layout.finish(*named(image, "app:v1"), *(named(one, "other:v1")[0] for one in broken))
    assert uploader.push_image(layout.path, name="app:v1").digest == image["digest"]
    with pytest.raises(InvalidImageError, match="is not JSON"):
        uploader.push_image(layout.path, name=broken[0]["digest"])


def test_large_index_json_cannot_be_an_index(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    images = three_images(layout)
    images[0]["annotations"] = {"large": "x" * 5_000_000}
    layout.finish(*images)
    with pytest.raises(InvalidImageError, match="bytes, more than 4,194,304"):
        uploader.push_image(layout.path)
    assert uploader.push_image(layout.path, platforms=["linux/arm"]).media_type == MANIFEST_TYPE
