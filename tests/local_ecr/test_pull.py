"""LocalECR can be pulled from by the registry's API."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from helpers import SMALL_LIMITS, digest_of, random_bytes
from hypothesis import given
from hypothesis import strategies as st

from ecr_parts import LayerUploader
from ecr_parts.testing import LocalECR

LAYER = random_bytes(45)  # six parts
DIGEST = digest_of(LAYER)
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
DESCRIPTOR = {"mediaType": "layer", "digest": DIGEST, "size": len(LAYER)}
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": DESCRIPTOR,
        "layers": [DESCRIPTOR],
    }
).encode()


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The code of an error in the format of OCI."""
        (error,) = json.loads(self.body)["errors"]
        assert error["message"]
        return str(error["code"])


class Puller:
    """Sends requests to LocalECR on one connection, which must survive them."""

    def __init__(self, ecr: LocalECR) -> None:
        self.host = ecr.endpoint_url.removeprefix("http://")
        self.connection = http.client.HTTPConnection(self.host, timeout=10)

    def __call__(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> Answer:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body, headers)
        with self.connection.getresponse() as response:
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, fields, response.read())


@pytest.fixture(scope="module")
def ecr() -> Iterator[LocalECR]:
    """A LocalECR with one image, for tests that only read."""
    with LocalECR(["demo", "team/app", "empty"], limits=SMALL_LIMITS, part_size=8) as ecr:
        client = ecr.client()
        for repository in ("demo", "team/app"):
            LayerUploader(client, repository, limits=SMALL_LIMITS).upload(LAYER)
            for tag in ("v1", "v2", "v10"):
                client.put_image(
                    repositoryName=repository, imageManifest=MANIFEST.decode(), imageTag=tag
                )
        yield ecr


@pytest.fixture
def pull(ecr: LocalECR) -> Iterator[Puller]:
    puller = Puller(ecr)
    yield puller
    puller.connection.close()


@pytest.mark.parametrize("path", ["/v2/", "/v2"])
def test_answers_that_it_is_a_registry(path: str, pull: Puller) -> None:
    answer = pull(path)
    assert answer.status == 200
    assert answer.headers["docker-distribution-api-version"] == "registry/2.0"


@pytest.mark.parametrize("repository", ["demo", "team/app"])
@pytest.mark.parametrize("reference", ["v1", digest_of(MANIFEST), f"sha256%3A{DIGEST[7:]}"])
def test_returns_content_and_its_headers(repository: str, reference: str, pull: Puller) -> None:
    kind, content = ("blobs", LAYER) if "%3A" in reference else ("manifests", MANIFEST)
    answer = pull(f"/v2/{repository}/{kind}/{reference}")
    assert (answer.status, answer.body) == (200, content)
    assert answer.headers["docker-content-digest"] == digest_of(content)
    head = pull(f"/v2/{repository}/{kind}/{reference}", "HEAD")
    assert head.body == b""
    for name in ("content-type", "content-length", "docker-content-digest"):
        assert head.headers[name] == answer.headers[name]


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        (MANIFEST_TYPE, 200),
        (f"text/html, {MANIFEST_TYPE};q=0.5", 200),
        ("*/*", 200),
        ("application/*;q=0.1", 200),
        ("application/vnd.oci.image.index.v1+json", 404),
        (MANIFEST_TYPE.upper(), 200),
        (f"{MANIFEST_TYPE};q=0", 404),
        (f"{MANIFEST_TYPE};q=0.0, */*", 200),
    ],
)
def test_respects_accept(accept: str, status: int, pull: Puller) -> None:
    answer = pull("/v2/demo/manifests/v1", Accept=accept)
    assert answer.status == status
    assert (answer.body == MANIFEST) == (status == 200)


def test_joins_accept_headers(pull: Puller) -> None:
    pull.connection.putrequest("GET", "/v2/demo/manifests/v1")
    for accept in ("text/html", MANIFEST_TYPE):
        pull.connection.putheader("Accept", accept)
    pull.connection.endheaders()
    assert pull.connection.getresponse().status == 200


# Ranges


def expected_range(first: str, last: str) -> bytes | None:
    """The bytes of ``LAYER`` that a range selects; ``None`` if it selects none."""
    positions = range(len(LAYER))
    if first:
        selected = positions[int(first) : int(last) + 1 if last else None]
    else:
        selected = positions[max(0, len(LAYER) - int(last)) :]
    return LAYER[selected.start : selected.stop] or None


numbers = st.one_of(st.integers(0, 60), st.integers(0, 10**25)).flatmap(
    lambda number: st.sampled_from([str(number), f"{number:030}"])
)


def test_returns_ranges_of_blobs(pull: Puller) -> None:
    path = f"/v2/demo/blobs/{DIGEST}"

    @given(first=st.one_of(st.just(""), numbers), last=st.one_of(st.just(""), numbers))
    def check(first: str, last: str) -> None:
        answer = pull(path, Range=f"bytes={first}-{last}")
        if not first and not last:
            assert (answer.status, answer.body) == (200, LAYER)
            return
        expected = expected_range(first, last)
        if expected is None:
            assert answer.status == 416
            assert answer.code == "RANGE_INVALID"
            assert answer.headers["content-range"] == "bytes */45"
            return
        assert (answer.status, answer.body) == (206, expected)
        start = LAYER.index(expected)
        content_range = f"bytes {start}-{start + len(expected) - 1}/45"
        assert answer.headers["content-range"] == content_range

    check()


@pytest.mark.parametrize(
    "byte_range",
    ["bytes=1-2,4-5", "lines=1-2", "bytes=a-b", "bytes=-", "bytes=\xb2-\xb3", "bytes 1-2"],
)
def test_ignores_ranges_that_it_does_not_understand(byte_range: str, pull: Puller) -> None:
    answer = pull(f"/v2/demo/blobs/{DIGEST}", Range=byte_range)
    assert (answer.status, answer.body) == (200, LAYER)


@pytest.mark.parametrize("byte_range", [f"bytes={'9' * 5_000}-", f"bytes=0-{'9' * 5_000}"])
def test_answers_range_with_thousands_of_digits(byte_range: str, pull: Puller) -> None:
    answer = pull(f"/v2/demo/blobs/{DIGEST}", Range=byte_range)
    assert answer.status == (206 if "0-" in byte_range else 416)


def test_ignores_range_of_head_and_with_if_range(pull: Puller) -> None:
    path = f"/v2/demo/blobs/{DIGEST}"
    assert pull(path, "HEAD", Range="bytes=1-2").status == 200
    assert pull(path, Range="bytes=1-2", If_Range='"x"').body == LAYER
    assert pull(path, Range="bytes=1-2 ").body == LAYER[1:3]
    assert "accept-ranges" not in pull("/v2/demo/manifests/v1").headers


# Tags


def test_lists_tags_in_pages(pull: Puller) -> None:
    assert json.loads(pull("/v2/demo/tags/list").body) == {
        "name": "demo",
        "tags": ["v1", "v10", "v2"],
    }
    first = pull("/v2/demo/tags/list?n=2")
    assert json.loads(first.body)["tags"] == ["v1", "v10"]
    assert first.headers["link"] == '</v2/demo/tags/list?n=2&last=v10>; rel="next"'
    second = pull("/v2/demo/tags/list?n=2&last=v10")
    assert json.loads(second.body)["tags"] == ["v2"]
    assert "link" not in second.headers
    for query in ("n=0", "last=v9"):
        none = pull(f"/v2/demo/tags/list?{query}")
        assert json.loads(none.body)["tags"] == []
        assert "link" not in none.headers
    assert json.loads(pull("/v2/empty/tags/list").body)["tags"] == []
    assert json.loads(pull(f"/v2/demo/tags/list?n={'9' * 5_000}").body)["tags"]


@pytest.mark.parametrize("number", ["-1", "a", "", "1.5"])
def test_rejects_invalid_number_of_tags(number: str, pull: Puller) -> None:
    answer = pull(f"/v2/demo/tags/list?n={number}")
    assert answer.status == 400
    assert answer.code == "PAGINATION_NUMBER_INVALID"


# Errors


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/none/manifests/v1", 404, "NAME_UNKNOWN"),
        ("/v2/None/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/../demo/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/%2e%2e/%2e%2e/etc/manifests/passwd", 400, "NAME_INVALID"),
        ("/v2/demo/../demo/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/demo/manifests/none", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/demo/manifests/{DIGEST}", 404, "MANIFEST_UNKNOWN"),
        ("/v2/demo/manifests/%00%ff", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/demo/blobs/{digest_of(b'none')}", 404, "BLOB_UNKNOWN"),
        (f"/v2/empty/blobs/{DIGEST}", 404, "BLOB_UNKNOWN"),
        ("/v2/demo/blobs/sha256:00", 400, "DIGEST_INVALID"),
        ("/v2/demo/blobs/..%2f..%2fetc", 404, "UNSUPPORTED"),
        ("/v2/demo/tags/none", 404, "UNSUPPORTED"),
        ("/v2/demo", 404, "UNSUPPORTED"),
        ("/v2/_catalog", 404, "UNSUPPORTED"),
        ("/v1/", 404, "UNSUPPORTED"),
        ("/", 404, "UNSUPPORTED"),
        ("//[", 404, "UNSUPPORTED"),
    ],
)
def test_answers_with_error_of_a_registry(path: str, status: int, code: str, pull: Puller) -> None:
    answer = pull(path)
    assert (answer.status, answer.code) == (status, code)
    assert pull(path, "HEAD").status == status
    assert pull("/v2/").status == 200


def test_answers_any_path(pull: Puller) -> None:
    characters = st.sampled_from("/%:.?&=#[]@;~_-aA1")

    @given(
        start=st.sampled_from(["/", "/v2/", "/v2/demo/", "/v2/demo/blobs/"]),
        rest=st.text(characters),
    )
    def check(start: str, rest: str) -> None:
        answer = pull(start + rest)
        assert answer.status == 200 or answer.code

    check()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("size", [0, 3_000_000])
def test_refuses_pushes(method: str, size: int, pull: Puller) -> None:
    answer = pull("/v2/demo/blobs/uploads/", method, bytes(size))
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    assert answer.headers["allow"] == "GET, HEAD"
    assert pull("/v2/").status == 200


def test_refuses_push_whose_body_never_ends(ecr: LocalECR) -> None:
    puller = Puller(ecr)
    puller.connection.putrequest("PATCH", "/v2/demo/blobs/uploads/1")
    puller.connection.putheader("Transfer-Encoding", "chunked")
    puller.connection.endheaders()
    with puller.connection.getresponse() as response:
        assert response.status == 405
    puller.connection.close()


def test_closes_connection_of_pull_with_body(pull: Puller) -> None:
    assert pull("/v2/", body=b"GET /v2/none HTTP/1.1\r\n\r\n").status == 200
    assert pull("/v2/").status == 200


@pytest.mark.parametrize("host", ["example.com", "127.0.0.1"])
def test_body_of_pull_is_not_taken_for_a_request(host: str, pull: Puller) -> None:
    hidden = b"GET /v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    head = f"GET /v2/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n"
    head += f"Content-Length: {len(hidden)}\r\n\r\n"
    answers = exchange(pull.host, head.encode() + hidden)
    assert answers.count(b"HTTP/1.1") == 1


def exchange(host: str, request: bytes) -> bytes:
    """Everything that is answered to ``request``."""
    address, port = host.split(":")
    with socket.create_connection((address, int(port)), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while block := connection.recv(65_536):
            answer += block
    return answer


@pytest.mark.parametrize(
    ("request_line", "fields", "status"),
    [
        ("OPTIONS /v2/", [f"Content-Length: {3_000_000}", "", "x" * 3_000_000], 501),
        (f"GET /v2/{'x' * 70_000}", [], 414),
        (f"GET /v2/{'x' * 3_000_000}", [], 414),
        ("GET /v2/", ["Accept: */*"] * 150, 431),
        ("GET /v2/", [f"Accept: {'x' * 3_000_000}"], 431),
        ("GET /v2/ x", [], 400),
    ],
)
def test_refuses_malformed_request(
    request_line: str, fields: list[str], status: int, pull: Puller
) -> None:
    lines = [f"{request_line} HTTP/1.1", "Host: 127.0.0.1", *fields, "", ""]
    answer = exchange(pull.host, "\r\n".join(lines).encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b'"code": "UNSUPPORTED"' in answer


def test_accepts_absolute_url(pull: Puller) -> None:
    assert pull(f"http://{pull.host}/v2/demo/manifests/v1").body == MANIFEST
    assert pull("/v2/", Host=f"{pull.host} ").status == 200


def test_archived_layer_cannot_be_pulled(local_ecr: LocalECR) -> None:
    LayerUploader(local_ecr.client(), "demo").upload(LAYER)
    local_ecr.registry.repositories["demo"].layers[DIGEST].status = "ARCHIVED"
    puller = Puller(local_ecr)
    assert puller(f"/v2/demo/blobs/{DIGEST}").code == "BLOB_UNKNOWN"
    puller.connection.close()


def test_refuses_pull_for_another_host(pull: Puller) -> None:
    answer = pull("/v2/", Host="example.com")
    assert (answer.status, answer.code) == (400, "DENIED")


def test_ignores_client_that_closes_its_connection_while_it_pulls(
    ecr: LocalECR, pull: Puller, capfd: pytest.CaptureFixture[str]
) -> None:
    host, port = pull.host.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
    assert pull("/v2/").status == 200
    assert capfd.readouterr().err == ""


# Other people's tools


def skopeo(*arguments: str) -> str:
    completed = subprocess.run(
        ["skopeo", *arguments], check=True, capture_output=True, encoding="utf-8"
    )
    return completed.stdout


@pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")
def test_skopeo_inspects_tags_and_manifest(pull: Puller) -> None:
    tags = json.loads(skopeo("list-tags", "--tls-verify=false", f"docker://{pull.host}/demo"))
    assert tags["Tags"] == ["v1", "v10", "v2"]
    image = f"docker://{pull.host}/demo:v1"
    assert skopeo("inspect", "--raw", "--tls-verify=false", image).encode() == MANIFEST
    with pytest.raises(subprocess.CalledProcessError) as failed:
        skopeo("inspect", "--tls-verify=false", f"docker://{pull.host}/none:v1")
    error: Any = failed.value
    assert "The repository with name 'none' does not exist" in error.stderr


@pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")
def test_skopeo_shows_that_pushes_are_refused(pull: Puller) -> None:
    image = f"docker://{pull.host}/demo"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        skopeo(
            "--insecure-policy",
            *("copy", "--src-tls-verify=false", "--dest-tls-verify=false"),
            *(f"{image}:v1", f"docker://{pull.host}/empty:v1"),
        )
    error: Any = failed.value
    assert "push through ECR's API" in error.stderr


@pytest.mark.parametrize(
    "start",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01", b"\x16", b"nonsense\r\n\r\n", b"GET /v2/\r\n\r\n"],
)
def test_what_is_no_http_gets_a_status_line(start: bytes, ecr: LocalECR) -> None:
    """docker since 28 tries TLS first, and then HTTP if the answer is that. It sends no line."""
    host, _, port = ecr.endpoint_url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(start)
        with connection.makefile("rb") as answer:
            assert answer.readline().startswith(b"HTTP/1.1 400 ")
    assert ecr.client().describe_repositories()["repositories"]
