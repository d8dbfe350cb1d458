"""Benchmark of uploads: speed and memory, compared with other tools and with a lower bound.

    python tests/benchmark.py [--mib 512] [--rounds 5] [--huge-mib 5120]

A server in a process of its own receives every upload, and discards the bytes. Each upload runs in
a new process. The variants take turns, so that a machine whose speed changes affects all of them
alike. The other tools are a plain loop over botocore's method and, if it is installed, skopeo,
which pushes the same layer to the same server through the registry's HTTP API, without signing. The
lower bound of the time is that of the two hashes that the protocol requires, the digest of the
layer and that of the signed payload, computed in two threads.
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
    """Answers like ECR or a registry, and discards all bytes.

    The path of an ECR client's URL is the delay of the answer to each part (milliseconds).
    """

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    buffer = threading.local()

    def do_GET(self) -> None:
        """Registry: the API exists, and nothing is stored."""
        self.answer(200 if self.path == "/v2/" else 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PATCH(self) -> None:
        """Registry: the content of a blob."""
        self.discard(int(self.headers["Content-Length"]))
        self.answer(202, Location=self.path)

    def do_PUT(self) -> None:
        """Registry: the end of a blob, or the manifest."""
        self.discard(int(self.headers["Content-Length"]))
        self.answer(201)

    def discard(self, length: int) -> None:
        if not hasattr(self.buffer, "view"):
            self.buffer.view = memoryview(bytearray(MIB))
        while length:
            length -= self.rfile.readinto(self.buffer.view[:length])

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """ECR: any operation. Registry: the start of a blob."""
        length = int(self.headers["Content-Length"])
        if "X-Amz-Target" not in self.headers:
            self.answer(202, Location=f"{self.path}1")
            return
        operation = self.headers["X-Amz-Target"].partition(".")[2]
        head = self.rfile.read(min(length, 1024))
        self.discard(length - len(head))
        if operation == "UploadLayerPart":
            # The latency of a real service, which is part of what is measured.
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
        """Log nothing."""


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
    """The simplest program without a library. It neither retries nor resumes."""
    client = make_client(url)

    def upload() -> None:
        upload_id = client.initiate_layer_upload(repositoryName="demo")["uploadId"]
        digest, first_byte = hashlib.sha256(), 0
        with Path(path).open("rb") as file:
            while blob := file.read(PART):
                digest.update(blob)
                client.upload_layer_part(
                    repositoryName="demo",
                    uploadId=upload_id,
                    partFirstByte=first_byte,
                    partLastByte=first_byte + len(blob) - 1,
                    layerPartBlob=blob,
                )
                first_byte += len(blob)
        client.complete_layer_upload(
            repositoryName="demo",
            uploadId=upload_id,
            layerDigests=[f"sha256:{digest.hexdigest()}"],
        )

    return upload


def ecr_parts(url: str, path: str, *, check_existing: bool = False) -> Callable[[], object]:
    from ecr_parts import LayerUploader

    uploader = LayerUploader(make_client(url), "demo")
    return lambda: uploader.upload(path, check_existing=check_existing)


def ecr_parts_checked(url: str, path: str) -> Callable[[], object]:
    return ecr_parts(url, path, check_existing=True)


def ecr_parts_without_pybase64(url: str, path: str) -> Callable[[], object]:
    sys.modules["pybase64"] = None  # type: ignore[assignment]  # makes its import fail
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
    """Push an image whose only layer is this one to a registry."""
    layout, host = Path(path).parent / "layout", urlsplit(url).netloc
    command = ["skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false"]
    command += [f"oci:{layout}", f"docker://{host}/demo:v1"]
    return lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def two_hashes(_url: str, path: str) -> Callable[[], object]:
    """Hash as many bytes as the layer has, and as its base64 has."""

    def hash_parts(part_size: int) -> None:
        digest, part = hashlib.sha256(), os.urandom(part_size)
        for _ in range(-(-Path(path).stat().st_size // PART)):
            digest.update(part)

    def hash_both() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(hash_parts, (PART, PART * 4 // 3)))

    return hash_both


VARIANTS = {
    variant.__name__: variant
    for variant in (
        botocore_loop,
        ecr_parts,
        ecr_parts_without_pybase64,
        ecr_parts_checked,
        ecr_parts_from_a_pipe,
        skopeo,
        two_hashes,
    )
    if variant is not skopeo or shutil.which("skopeo")
}
"""For each name: a function that prepares an upload, and returns the function that is measured."""


def run_variant(variant: str, url: str, path: str) -> None:
    """Run one upload in this process, and print its seconds and its peak memory (MiB) as JSON."""
    upload = VARIANTS[variant](url, path)
    started = time.perf_counter()
    upload()
    seconds = time.perf_counter() - started
    who = resource.RUSAGE_CHILDREN if variant == "skopeo" else resource.RUSAGE_SELF
    peak = resource.getrusage(who).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def measure(variant: str, url: str, path: Path) -> dict[str, float]:
    """Run one upload in a new process."""
    command = [sys.executable, __file__, "--run-variant", variant, url, str(path)]
    completed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(completed.stdout)
    return measured


def make_layer(path: Path, mib: int) -> None:
    """Create a layer of random bytes, and the layout of an image with this layer.

    The layer is in gzip format, without compression: otherwise, skopeo would compress it.
    """
    blobs = path.parent / "layout" / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes, media_type: str) -> dict[str, object]:
        name = hashlib.sha256(content).hexdigest()
        (blobs / name).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(content)}

    gzip, digest = zlib.compressobj(level=0, wbits=31), hashlib.sha256()
    with path.open("wb") as file:
        for left in range(mib, -1, -1):
            content = gzip.compress(os.urandom(MIB)) if left else gzip.flush()
            file.write(content)
            digest.update(content)
    path.with_name("layout").joinpath("oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (blobs / digest.hexdigest()).symlink_to(path)
    type_prefix = "application/vnd.oci.image"
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest.hexdigest()}"]}
    config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
    layer = {
        "mediaType": f"{type_prefix}.layer.v1.tar+gzip",
        "digest": f"sha256:{digest.hexdigest()}",
        "size": path.stat().st_size,
    }
    manifest = {
        "schemaVersion": 2,
        "config": blob(json.dumps(config).encode(), f"{type_prefix}.config.v1+json"),
        "layers": [layer],
    }
    descriptor = blob(json.dumps(manifest).encode(), f"{type_prefix}.manifest.v1+json")
    index = {"schemaVersion": 2, "manifests": [descriptor]}
    path.with_name("layout").joinpath("index.json").write_text(json.dumps(index))


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
        rows = [(variant, 0) for variant in VARIANTS]
        rows += [("botocore_loop", 80), ("ecr_parts", 80)]
        results: dict[tuple[str, int], list[dict[str, float]]] = {row: [] for row in rows}
        try:
            for _ in range(rounds):
                for variant, delay in rows:
                    results[variant, delay].append(measure(variant, f"{url}/{delay}", layer))
            peaks = [measure("ecr_parts", url, path)["peak"] for path in (small, huge)]
        finally:
            server.terminate()

    def median(row: tuple[str, int], quantity: str = "seconds") -> float:
        return statistics.median(measured[quantity] for measured in results[row])

    print(f"{mib} MiB in parts of 10 MiB, {rounds} rounds, {os.cpu_count()} cores, medians\n")
    print("| variant | delay per part | MiB/s | x botocore loop | x lower bound | peak MiB |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        variant, delay = row
        speed = mib / median(row)
        relative_to_loop = median(("botocore_loop", delay)) / median(row)
        relative_to_bound = median(("two_hashes", 0)) / median(row)
        print(
            f"| {variant.replace('_', ' ')} | {delay} ms | {speed:.0f} | {relative_to_loop:.2f} "
            f"| {relative_to_bound:.2f} | {median(row, 'peak'):.0f} |"
        )
    print(f"\npeak at 128 MiB: {peaks[0]:.0f} MiB; at {huge_mib} MiB: {peaks[1]:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=512, help="size of the layer")
    parser.add_argument("--rounds", type=int, default=5, help="uploads with each variant")
    parser.add_argument(
        "--huge-mib", type=int, default=5_120, help="size of the layer for the last memory figure"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--run-variant", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
    elif options.run_variant:
        run_variant(*options.run_variant)
    else:
        with tempfile.TemporaryDirectory() as directory:
            compare(options.mib, options.rounds, options.huge_mib, Path(directory))


if __name__ == "__main__":
    main()
