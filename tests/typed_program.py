"""A user's program, for the type checker alone: it is clean with the stubs installed."""

from __future__ import annotations

import boto3
import botocore.session
from typing_extensions import assert_type

from ecr_parts import (
    CLIENT_CONFIG,
    Chunker,
    LayerUploader,
    Part,
    UploadedLayer,
    UploadSession,
    default_retrying,
)


def with_botocore(path: str) -> UploadedLayer:
    client = botocore.session.get_session().create_client("ecr", config=CLIENT_CONFIG)
    return LayerUploader(client, "team/app", retrying=default_retrying()).upload(path)


def with_boto3(blob: bytes) -> dict[str, str | int]:
    private = LayerUploader(boto3.client("ecr"), "team/app", part_size=8 * 1024**2)
    public = LayerUploader(boto3.client("ecr-public"), "team/app")
    private.upload([blob], digest="sha256:…", size=len(blob), progress=print)
    return public.upload(memoryview(blob)).descriptor("application/vnd.oci.image.layer.v1.tar")


def step_by_step(uploader: LayerUploader, blob: bytes) -> None:
    session = uploader.initiate(layer_size=len(blob))
    assert_type(session, UploadSession)
    assert_type(Chunker(len(blob), part_size=session.part_size)[0], Part)
    assert_type(Chunker(len(blob), part_size=session.part_size)[1:], tuple[Part, ...])
    while session.next_byte < len(blob):
        uploader.upload_part(session, blob[session.next_byte :][: session.part_size])
    assert_type(uploader.missing(["sha256:…"]), set[str])
