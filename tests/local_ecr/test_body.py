"""How LocalECR reads the bodies of requests, and how much memory they take."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ConnectionClosedError
from ecr_calls import Caller
from helpers import digest_of, random_bytes
from hypothesis import given
from hypothesis import strategies as st
from pytest_mock import MockerFixture

from ecr_parts import LayerUploader, Limits
from ecr_parts.testing import LocalECR, Unknowns, _body
from ecr_parts.testing._body import BodyBuffers, parse_body

MIB = 1024 * 1024


@pytest.mark.parametrize("size", [MIB - 1, MIB, 2 * MIB + 1])
def test_stores_large_parts(size: int) -> None:
    blob = random_bytes(2 * size)
    limits = Limits(min_part=1, max_part=size, max_parts=2, max_layer=2 * size)
    with LocalECR(limits=limits) as ecr:
        call = Caller(ecr.client())
        upload_id = call.initiate()
        call.part(upload_id, 0, blob[:size])
        call.part(upload_id, size, blob[size:])
        assert call.complete(upload_id, digest_of(blob))["layerDigest"] == digest_of(blob)
        assert ecr.layer("demo", digest_of(blob)) == blob


@pytest.mark.parametrize("fault", ["reset", "stored_in_part"])
def test_stores_start_of_large_part(fault: Any) -> None:
    blob = random_bytes(4 * MIB)
    limits = Limits(min_part=1, max_part=4 * MIB, max_parts=2, max_layer=4 * MIB)
    with LocalECR(limits=limits, unknowns=Unknowns(broken_part="fragment")) as ecr:
        call = Caller(ecr.client())
        upload_id = call.initiate()
        ecr.fail("UploadLayerPart", fault)
        with pytest.raises(ConnectionClosedError):
            call.part(upload_id, 0, blob)
        stored = call.part(upload_id, 0, blob)["lastValidByteReceived"] + 1
        assert MIB < stored < 3 * MIB
        call.part(upload_id, stored, blob[stored:])
        assert call.complete(upload_id, digest_of(blob))["layerDigest"] == digest_of(blob)


texts = st.one_of(st.text(max_size=3), st.sampled_from(['"layerPartBlob":"AAAA"', "layerPartBlob"]))
values = st.one_of(texts, st.dictionaries(texts, texts, max_size=2))


@given(
    parameters=st.dictionaries(texts, values, max_size=3),
    blob=st.binary(max_size=5),
    ascii_only=st.booleans(),
    separators=st.sampled_from([(",", ":"), (" , ", " : ")]),
    escaped=st.booleans(),
)
def test_parses_any_request(
    parameters: dict[str, Any],
    blob: bytes,
    ascii_only: bool,
    separators: tuple[str, str],
    escaped: bool,
) -> None:
    text = base64.b64encode(blob).decode()
    body = json.dumps(
        {**parameters, "layerPartBlob": text}, ensure_ascii=ascii_only, separators=separators
    )
    if escaped:
        body = body.replace("/", "\\/")
    assert parse_body(body.encode()) == {**parameters, "layerPartBlob": blob}


@pytest.mark.parametrize(
    "text",
    ["A", "AA=A", "====", "A" * MIB * 2 + "=", "AA==" * MIB, "A" * MIB + "\n" * 4, "\u2603" * 4],
    ids=lambda text: f"{text[-4:]!r}",
)
def test_rejects_malformed_base64(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_body(json.dumps({"layerPartBlob": text}).encode())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_rejects_body_that_is_not_utf8(encoding: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_body('{"other": "\u00e9"}'.encode(encoding))


@pytest.mark.parametrize("size", [5, 5_000, MIB], ids=str)
@pytest.mark.parametrize("rest", [{}, {"other": "text"}, {"other": "x" * 5_000}], ids=len)
def test_finds_part_before_other_parameters(size: int, rest: dict[str, str]) -> None:
    blob = random_bytes(size)
    body = json.dumps({"layerPartBlob": base64.b64encode(blob).decode(), **rest}).encode()
    assert parse_body(body) == {**rest, "layerPartBlob": blob}


@pytest.mark.parametrize("body", [b'{"layerPartBlob": "AAAA', b'{"layerPartBlob": "'])
def test_rejects_part_without_an_end(body: bytes) -> None:
    with pytest.raises(ValueError, match="Unterminated string"):
        parse_body(body)


def test_uses_few_buffers_again() -> None:
    buffers = BodyBuffers()
    taken = [buffers.take(2 * MIB) for _ in range(3)]
    assert len({id(buffer) for buffer in taken}) == 3
    for buffer in (buffers.take(5), *taken):
        buffers.give_back(buffer)
    assert len(buffers.take(5)) == 5
    again = [buffers.take(MIB) for _ in range(3)]
    assert again[0] is taken[1]
    assert again[1] is taken[0]
    assert again[2] is not taken[2]
    buffers.give_back(again[0])
    assert len(buffers.take(3 * MIB)) >= 3 * MIB


def test_receives_all_parts_in_one_buffer(mocker: MockerFixture) -> None:
    new_buffer = mocker.spy(_body, "new_buffer")
    limits = Limits(min_part=1, max_part=2 * MIB, max_parts=5, max_layer=10 * MIB)
    with LocalECR(limits=limits) as ecr:
        call = Caller(ecr.client())
        upload_id = call.initiate()
        for part in range(5):
            call.part(upload_id, part * 2 * MIB, bytes(2 * MIB))
    sizes = [args.args[0] for args in new_buffer.call_args_list]
    assert len([size for size in sizes if size > 2 * MIB]) == 1  # bodies, with their base64


def test_parts_of_other_sizes_do_not_mix() -> None:
    sizes = (3 * MIB, 2 * MIB, 5, 4 * MIB, MIB)
    limits = Limits(min_part=1, max_part=4 * MIB, max_parts=5, max_layer=sum(sizes))
    blobs = [random_bytes(size, size) for size in sizes]
    with LocalECR(limits=limits) as ecr:
        call = Caller(ecr.client())
        upload_id, first = call.initiate(), 0
        for blob in blobs:
            call.part(upload_id, first, blob)
            first += len(blob)
        digest = digest_of(b"".join(blobs))
        assert call.complete(upload_id, digest)["layerDigest"] == digest


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_stored_layers_take_little_more_memory_than_their_size(
    start_server: Callable[..., tuple[subprocess.Popen[str], str]], tmp_path: Path
) -> None:
    server, url = start_server()
    client = LocalECR().client(endpoint_url=url)

    def memory() -> int:
        status = Path(f"/proc/{server.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def upload(number: int) -> None:
        path = tmp_path / str(number)
        path.write_text(path.name)
        os.truncate(path, 40 * MIB)
        LayerUploader(client, "demo").upload(path)

    before = memory()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upload, range(4)))
    kept = 2 * 14  # for bodies of requests
    assert memory() - before < (160 + 4 * 10 + kept) * MIB


def test_leaves_what_is_no_text_to_the_check_of_parameters() -> None:
    assert parse_body(b'{"layerPartBlob": 5}') == {"layerPartBlob": 5}


def test_finds_part_beside_a_nested_member_of_that_name() -> None:
    body = b'{"nested": {"layerPartBlob": "AAAA"}, "layerPartBlob": "AQID"}'
    nested = {"layerPartBlob": "AAAA"}
    assert parse_body(body) == {"nested": nested, "layerPartBlob": b"\1\2\3"}
