"""A program as users write it, checked by mypy and never run.

It must have no type errors if the stubs of boto3 and botocore are installed.
"""

from __future__ import annotations

import csv
import gzip
import io
import shutil
import tarfile
import zipfile
from typing import BinaryIO

import boto3
import botocore.session
from mypy_boto3_ecr import ECRClient
from mypy_boto3_ecr_public import ECRPublicClient
from typing_extensions import assert_type

from ecr_parts import (
    CLIENT_CONFIG,
    Chunker,
    LayerFile,
    LayerUploader,
    Part,
    PushedImage,
    UploadedLayer,
    UploaderOptions,
    UploadSession,
    default_retrying,
)
from ecr_parts.testing import LocalECR


def upload_with_botocore(path: str) -> UploadedLayer:
    client = botocore.session.get_session().create_client("ecr", config=CLIENT_CONFIG)
    return LayerUploader(client, "team/app", retrying=default_retrying()).upload(path)


def upload_with_boto3(blob: bytes) -> dict[str, str | int]:
    private = LayerUploader(boto3.client("ecr"), "team/app", part_size=8 * 1024**2)
    public = LayerUploader(boto3.client("ecr-public"), "team/app")
    private.upload([blob], digest="sha256:…", size=len(blob), progress=print)
    return public.upload(memoryview(blob)).descriptor("application/vnd.oci.image.layer.v1.tar")


def push(path: str) -> PushedImage:
    return LayerUploader(boto3.client("ecr"), "team/app").push_image(path, tags=["v1"])


def build(blob: bytes) -> PushedImage:
    options: UploaderOptions = {"part_size": 8 * 1024**2}
    uploader = LayerUploader.for_repository("team/app", region="eu-west-1", **options)
    LayerUploader.for_repository("team/app", partsize=1)  # type: ignore[call-arg]  # mypy must find it
    LayerUploader.for_repository("team/app", overlap="no")  # type: ignore[arg-type]  # this, too
    manifest: dict[str, object] = {"config": uploader.upload(blob).descriptor("application/json")}
    image = uploader.put_manifest(manifest, tags=["v1"])
    uploader.client.list_images(**uploader.location, maxResults=1)
    assert_type(image.descriptor(), dict[str, str | int])
    return uploader.put_manifest(b"{}", media_type=image.media_type)


def write_layers(uploader: LayerUploader, source: BinaryIO) -> str:
    with uploader.open_layer(compress=True, progress=print) as file:
        assert_type(file, LayerFile)
        with tarfile.open(fileobj=file, mode="w|") as tar:
            tar.add("app")
    with uploader.open_layer(size=45) as file, zipfile.ZipFile(file, "w") as archive:
        archive.write("app")
    with uploader.open_layer() as file, gzip.GzipFile(fileobj=file, mode="wb") as zipped:
        shutil.copyfileobj(source, zipped)
    with uploader.open_layer() as file, io.TextIOWrapper(file) as text:
        csv.writer(text).writerow(["a", 1])
    with uploader.open_layer() as file:
        shutil.copyfileobj(source, file)
        file.write(memoryview(b"end"))
        assert_type(file.complete(), UploadedLayer)
    return file.diff_id + file.layer.digest


def upload_in_single_steps(uploader: LayerUploader, blob: bytes) -> UploadedLayer:
    session = uploader.initiate(layer_size=len(blob))
    assert_type(session, UploadSession)
    while session.next_byte < len(blob):
        uploader.upload_part(session, blob[session.next_byte :][: session.part_size])
    return uploader.complete(session, "sha256:…")


def test_with_local_ecr(ecr: LocalECR) -> None:
    client = ecr.client(config=CLIENT_CONFIG)
    assert_type(client, ECRClient)
    layer = LayerUploader(client, "demo").upload(b"a layer")
    client.get_download_url_for_layer(repositoryName="demo", layerDigest=layer.digest)
    pages = client.get_paginator("list_images").paginate(repositoryName="demo")
    assert [page["imageIds"] for page in pages] == []
    public = ecr.client("ecr-public")
    assert_type(public, ECRPublicClient)
    public.describe_repositories(repositoryNames=["demo"])


def inspect_types(uploader: LayerUploader) -> None:
    chunker = Chunker(45, part_size=8)
    assert_type(chunker[0], Part)
    assert_type(chunker[1:], tuple[Part, ...])
    assert_type(uploader.missing(["sha256:…"]), set[str])
