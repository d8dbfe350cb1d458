"""Seconds and memory of an upload, side by side with its peers and with the limit.

    python tests/benchmark.py [--mib 512] [--rounds 5] [--huge-mib 5120]

One server, in a process of its own, takes every upload: it reads the bytes and throws them away.
Each upload is a fresh process, and all ways take turns, so that a machine whose speed drifts
drifts for all of them. The peers are a plain botocore loop and, where it is installed, skopeo,
which pushes the same layer by the registry's HTTP API, unsigned, to the same server. The limit is
what nobody can avoid: the layer's digest and the signed payload's, on two threads, without any
sending.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MIB = 1024 * 1024
PART = 10 * MIB
UPLOAD_ID = "00000000-0000-0000-0000-000000000001"


class Sink(BaseHTTPRequestHandler):
    """Answers as ECR does, and keeps nothing. The path of the URL is the delay of a part (ms)."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    buffer = threading.local()

    def do_GET(self) -> None:
        """Of a registry: it is one, and it is empty."""
        self.answer(200 if self.path == "/v2/" else 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PATCH(self) -> None:
        """Of a registry: the layer."""
        self.throw_away(int(self.headers["Content-Length"]))
        self.answer(202, Location=self.path)

    def do_PUT(self) -> None:
        """Of a registry: the end of a layer, or the manifest."""
        self.throw_away(int(self.headers["Content-Length"]))
        self.answer(201)

    def throw_away(self, left: int) -> None:
        if not hasattr(self.buffer, "view"):
            self.buffer.view = memoryview(bytearray(MIB))
        while left:
            left -= self.rfile.readinto(self.buffer.view[:left])

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        if "X-Amz-Target" not in self.headers:
            self.answer(202, Location=f"{self.path}1")
            return
        operation = self.headers["X-Amz-Target"].partition(".")[2]
        head = self.rfile.read(min(length, 1024))
        self.throw_away(length - len(head))
        if operation == "UploadLayerPart":
            # A server takes its time here, and that is measured: no test waits for it.
            time.sleep(float(self.path.strip("/") or 0) / 1000)
        digest = re.search(rb"sha256:\w+", head)
        last = re.search(rb'"partLastByte": (\d+)', head)
        answers: dict[str, dict[str, object]] = {
            "BatchCheckLayerAvailability": {"layers": [], "failures": []},
            "InitiateLayerUpload": {"uploadId": UPLOAD_ID, "partSize": PART},
            "UploadLayerPart": {"lastByteReceived": int(last[1]) if last else 0},
            "CompleteLayerUpload": {"layerDigest": digest[0].decode() if digest else ""},
        }
        self.answer(200, json.dumps(answers[operation]).encode())

    def log_message(self, *_args: object) -> None:
        """Quiet."""


def serve() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


def make_client(url: str) -> Any:
    import botocore.session
    from botocore.config import Config

    from ecr_parts import CLIENT_CONFIG

    return botocore.session.Session().create_client(
        "ecr",
        region_name="us-east-1",
        endpoint_url=url,
        aws_access_key_id="local",
        aws_secret_access_key="local",
        config=CLIENT_CONFIG.merge(Config(proxies={})),
    )


def botocore_loop(url: str, path: str) -> Callable[[], object]:
    """What one writes without a library: no retry, no resumption."""
    client = make_client(url)

    def upload() -> None:
        upload_id = client.initiate_layer_upload(repositoryName="demo")["uploadId"]
        digest, first = hashlib.sha256(), 0
        with Path(path).open("rb") as file:
            while blob := file.read(PART):
                digest.update(blob)
                client.upload_layer_part(
                    repositoryName="demo",
                    uploadId=upload_id,
                    partFirstByte=first,
                    partLastByte=first + len(blob) - 1,
                    layerPartBlob=blob,
                )
                first += len(blob)
        client.complete_layer_upload(
            repositoryName="demo",
            uploadId=upload_id,
            layerDigests=[f"sha256:{digest.hexdigest()}"],
        )

    return upload


def ecr_parts(url: str, path: str, *, check: bool = False) -> Callable[[], object]:
    from ecr_parts import LayerUploader

    uploader = LayerUploader(make_client(url), "demo")
    return lambda: uploader.upload(path, check_existing=check)


def ecr_parts_checked(url: str, path: str) -> Callable[[], object]:
    return ecr_parts(url, path, check=True)


def ecr_parts_without_pybase64(url: str, path: str) -> Callable[[], object]:
    sys.modules["pybase64"] = None  # type: ignore[assignment]  # as if it were not installed
    return ecr_parts(url, path)


def ecr_parts_from_a_pipe(url: str, path: str) -> Callable[[], object]:
    from ecr_parts import LayerUploader

    uploader = LayerUploader(make_client(url), "demo")

    def upload() -> None:
        with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
            assert cat.stdout is not None
            uploader.upload(cat.stdout)

    return upload


def skopeo(url: str, path: str) -> Callable[[], object]:
    """The same layer as an image's only one, pushed to a registry."""
    layout, host = Path(path).parent / "layout", urlsplit(url).netloc
    command = ["skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false"]
    command += [f"oci:{layout}", f"docker://{host}/demo:v1"]
    return lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def two_hashes(_url: str, path: str) -> Callable[[], object]:
    """The layer's digest, and the digest of as many bytes as its base64 has."""

    def digest(per_part: int) -> None:
        running, part = hashlib.sha256(), os.urandom(per_part)
        for _ in range(-(-Path(path).stat().st_size // PART)):
            running.update(part)

    def both() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(digest, (PART, PART * 4 // 3)))

    return both


WAYS = {
    way.__name__: way
    for way in (
        botocore_loop,
        ecr_parts,
        ecr_parts_without_pybase64,
        ecr_parts_checked,
        ecr_parts_from_a_pipe,
        skopeo,
        two_hashes,
    )
    if way is not skopeo or shutil.which("skopeo")
}


def one(way: str, url: str, path: str) -> None:
    """In a process of its own: one upload, and what it took."""
    upload = WAYS[way](url, path)
    begun = time.perf_counter()
    upload()
    seconds = time.perf_counter() - begun
    of = resource.RUSAGE_CHILDREN if way == "skopeo" else resource.RUSAGE_SELF
    peak = resource.getrusage(of).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def measure(way: str, url: str, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", way, url, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def make_layer(path: Path, mib: int) -> None:
    """A layer of random bytes, gzip in form (or skopeo would compress it), and an image of it."""
    blobs = path.parent / "layout" / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes, media_type: str) -> dict[str, object]:
        name = hashlib.sha256(content).hexdigest()
        (blobs / name).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(content)}

    pack, digest = zlib.compressobj(level=0, wbits=31), hashlib.sha256()
    with path.open("wb") as file:
        for left in range(mib, -1, -1):
            content = pack.compress(os.urandom(MIB)) if left else pack.flush()
            file.write(content)
            digest.update(content)
    path.with_name("layout").joinpath("oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (blobs / digest.hexdigest()).symlink_to(path)
    oci = "application/vnd.oci.image"
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest.hexdigest()}"]}
    config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
    layer = {
        "mediaType": f"{oci}.layer.v1.tar+gzip",
        "digest": f"sha256:{digest.hexdigest()}",
        "size": path.stat().st_size,
    }
    manifest = {
        "schemaVersion": 2,
        "config": blob(json.dumps(config).encode(), f"{oci}.config.v1+json"),
        "layers": [layer],
    }
    index = [blob(json.dumps(manifest).encode(), f"{oci}.manifest.v1+json")]
    top = {"schemaVersion": 2, "manifests": index}
    path.with_name("layout").joinpath("index.json").write_text(json.dumps(top))


def compare(mib: int, rounds: int, huge_mib: int, directory: Path) -> None:
    layer, small, huge = directory / "layer", directory / "small", directory / "huge"
    make_layer(layer, mib)
    for path, size in ((small, 128), (huge, huge_mib)):
        with path.open("wb") as file:
            file.truncate(size * MIB)
    with subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        lines = [(way, 0) for way in WAYS] + [("botocore_loop", 80), ("ecr_parts", 80)]
        taken: dict[tuple[str, int], list[dict[str, float]]] = {line: [] for line in lines}
        try:
            for _ in range(rounds):
                for way, delay in lines:
                    taken[way, delay].append(measure(way, f"{url}/{delay}", layer))
            peaks = [measure("ecr_parts", url, path)["peak"] for path in (small, huge)]
        finally:
            server.terminate()

    def median(line: tuple[str, int], what: str = "seconds") -> float:
        return statistics.median(measured[what] for measured in taken[line])

    print(f"{mib} MiB in parts of 10 MiB, {rounds} rounds, {os.cpu_count()} cores, medians\n")
    print("| way | delay a part | MiB/s | x botocore loop | of the limit | peak MiB |")
    print("|---|---:|---:|---:|---:|---:|")
    for way, delay in lines:
        line = (way, delay)
        ratio = median(("botocore_loop", delay)) / median(line)
        limit = median(("two_hashes", 0)) / median(line)
        print(
            f"| {way.replace('_', ' ')} | {delay} ms | {mib / median(line):.0f} | {ratio:.2f} "
            f"| {limit:.2f} | {median(line, 'peak'):.0f} |"
        )
    print(f"\npeak at 128 MiB: {peaks[0]:.0f} MiB; at {huge_mib} MiB: {peaks[1]:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--huge-mib", type=int, default=5_120)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
    elif options.one:
        one(*options.one)
    else:
        with tempfile.TemporaryDirectory() as directory:
            compare(options.mib, options.rounds, options.huge_mib, Path(directory))


if __name__ == "__main__":
    main()
