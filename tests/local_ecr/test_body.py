"""How LocalECR reads the bodies of requests, and how much memory they take."""

from __future__ import annotations

import base64
import json
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

from ecr_parts import LayerUploader, Limits
from ecr_parts.testing import LocalECR, Unknowns
from ecr_parts.testing._body import parse_body

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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_stored_layers_take_little_more_memory_than_their_size(
    start_server: Callable[..., tuple[subprocess.Popen[str], str]],
) -> None:
    server, url = start_server()
    client = LocalECR().client(endpoint_url=url)

    def memory() -> int:
        status = Path(f"/proc/{server.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def upload(number: int) -> None:
        LayerUploader(client, "demo").upload([random_bytes(10 * MIB, number)] * 4)

    before = memory()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upload, range(4)))
    assert memory() - before < (160 + 4 * 10) * MIB


def test_leaves_what_is_no_text_to_the_check_of_parameters() -> None:
    assert parse_body(b'{"layerPartBlob": 5}') == {"layerPartBlob": 5}


def test_finds_part_beside_a_nested_member_of_that_name() -> None:
    body = b'{"nested": {"layerPartBlob": "AAAA"}, "layerPartBlob": "AQID"}'
    nested = {"layerPartBlob": "AAAA"}
    assert parse_body(body) == {"nested": nested, "layerPartBlob": b"\1\2\3"}
