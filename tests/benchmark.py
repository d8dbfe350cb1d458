"""Benchmark of uploads: speed and memory, compared with other tools and with lower bounds.

    python tests/benchmark.py [--mib 512] [--rounds 5] [--link-mib 200] [--link-rounds 3]
        [--small-mib 128] [--huge-mib 5120] [--image-mib 700]

A server in a process of its own receives every upload, and discards the bytes. Each upload runs in
a new process. The variants take turns, so that a machine whose speed changes affects all of them
alike.

The other tools are a plain loop over botocore's method and, if they are installed, skopeo, oras
(for Python) and python-dxf. These push the same layer to the same server through the registry's
API, in one request, without signing and without base64.

On loopback, "two hashes" is the bound: those that ECR's API requires, the digest of the layer and
that of the signed payload, computed in two threads.

Behind a link, the server reads no faster than the link's rate, and processes each complete part, or
each blob of the registry's API, for some time before it answers. The bound is the time of all
transfers and the processing of the last part, or that of the first transfer and all processing,
whichever is longer. "Office" is a link of 30 MiB/s and 300 ms for each part.

Memory: the peak of a process that uploads a file, a huge file, a stream, or several files at once,
or writes a layer of the same size as the huge file.

Images: a docker archive of files of this machine in four plain layers, of which one is more than
half, and an OCI image layout with the same layers, gzipped. The server remembers the layers that it
got of an image, so that the second push sends none.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeAlias
from urllib.parse import urlsplit

QUICK = bool(os.environ.get("ECR_PARTS_BENCHMARK_TEST"))  # in this process, without figures
MIB = 1024 * 1024
PART = 10 * MIB
UPLOAD_ID = "00000000-0000-0000-0000-000000000001"


class Conditions(NamedTuple):
    """What a client meets. The path of its URL says it, such as ``/80-110``."""

    processing: int  # milliseconds for each part
    rate: int  # of the link, in MiB/s; 0 is unlimited

    @property
    def path(self) -> str:
        return f"{self.processing}-{self.rate}"

    def bound(self, size: int) -> float:
        """The fewest seconds in which a layer of ``size`` bytes can be uploaded by ECR's API."""
        transfer = 4 / 3 / (self.rate * MIB) if self.rate else 0  # seconds per byte of the layer
        processing, parts = self.processing / 1000, -(-size // PART)
        return max(size * transfer + processing, min(size, PART) * transfer + parts * processing)


LOOPBACK = Conditions(0, 0)
OFFICE = Conditions(300, 30)
OTHER_LINKS = [Conditions(80, 110), Conditions(300, 110), Conditions(80, 0)]


class Link:
    """A link that is shared by all connections of one URL path."""

    piece_size = 64 * 1024
    credit = 0.005  # seconds that are made up for when a thread wakes up late

    def __init__(self, rate: int) -> None:
        self.rate = rate * MIB
        self.free_at = 0.0
        self.lock = threading.Lock()

    def transfer(self, size: int) -> None:
        """Wait until ``size`` bytes have passed, after those of the calls before."""
        with self.lock:
            now = time.monotonic()
            self.free_at = max(self.free_at, now - self.credit) + size / self.rate
            wait = self.free_at - now
        if wait > 0:
            time.sleep(wait)  # the link's speed, which is what is measured


class Sink(BaseHTTPRequestHandler):
    """Answers like ECR or a registry, and discards all bytes."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    buffer = threading.local()
    links: ClassVar[dict[str, Link]] = {}
    kept: ClassVar[set[tuple[bytes, bytes]]] = set()
    """The layers that images have: their repositories and digests."""

    def do_GET(self) -> None:
        """Registry: the API exists, and nothing is stored."""
        self.answer(200 if self.path == "/v2/" else 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PATCH(self) -> None:
        """Registry: the content of a blob. In chunks, if the client compresses it on the way."""
        length = int(self.headers.get("Content-Length", 0))
        while "chunked" in self.headers.get("Transfer-Encoding", ""):
            size = int(self.rfile.readline(), 16)
            self.process(size, is_part=False)
            self.rfile.readline()
            if not size:
                break
        self.process(length, is_part=True)
        self.answer(202, Location=self.path)

    def do_PUT(self) -> None:
        """Registry: the end of a blob, which may have its content, or the manifest."""
        length = int(self.headers["Content-Length"])
        self.process(length, is_part=length > 0 and "/blobs/" in self.path)
        self.answer(201)

    def process(self, length: int, *, is_part: bool) -> None:
        """Receive ``length`` bytes, and process a part, under the conditions of the path."""
        found = re.search(r"/(\d+)-(\d+)(/|$)", self.path)
        assert found is not None
        processing, rate = int(found[1]), int(found[2])
        self.discard(length, self.links.setdefault(found[0], Link(rate)) if rate else None)
        if is_part and not QUICK:
            time.sleep(processing / 1000)  # the processing that is measured

    def discard(self, length: int, link: Link | None = None) -> None:
        if not hasattr(self.buffer, "view"):
            self.buffer.view = memoryview(bytearray(MIB))
        while length:
            piece = min(length, link.piece_size if link else MIB)
            received = self.rfile.readinto(self.buffer.view[:piece])
            if not received:
                raise ConnectionError("the client closed the connection during a request")
            if link:
                link.transfer(received)
            length -= received

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
            self.answer(202, Location=f"http://{self.headers['Host']}{self.path}1")
            return
        operation = self.headers["X-Amz-Target"].partition(".")[2]
        head = self.rfile.read(length if operation == "PutImage" else min(length, 1024))
        self.process(length - len(head), is_part=operation == "UploadLayerPart")
        digest = re.search(rb'"(?:imageDigest|layerDigests)": \[?"(sha256:\w+)', head)
        last = re.search(rb'"partLastByte": (\d+)', head)
        repository = re.search(rb'"repositoryName": "(image-\w+)"', head)
        if repository and digest and operation == "CompleteLayerUpload":
            self.kept.add((repository[1], digest[1]))
        layers = [
            {"layerDigest": one.decode(), "layerAvailability": "AVAILABLE"}
            for one in re.findall(rb"sha256:\w+", head)
            if repository and (repository[1], one) in self.kept
        ]
        image_id = {"imageId": {"imageDigest": digest[1].decode() if digest else ""}}
        answers: dict[str, dict[str, object]] = {
            "BatchCheckLayerAvailability": {"layers": layers, "failures": []},
            "PutImage": {"image": image_id},
            "DescribeRepositories": {"repositories": []},
            "InitiateLayerUpload": {"uploadId": UPLOAD_ID, "partSize": PART},
            "UploadLayerPart": {"lastByteReceived": int(last[1]) if last else 0},
            "CompleteLayerUpload": {"layerDigest": digest[1].decode() if digest else ""},
        }
        self.answer(200, json.dumps(answers[operation]).encode())

    def log_message(self, *_args: object) -> None:
        """Log nothing."""


def serve() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    # Inherited by connections: the kernel accepts few bytes that have not yet passed the link.
    # On loopback, uploads are as fast as with the default.
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


@cache
def _shared_loader() -> Any:
    from botocore.loaders import create_loader

    return create_loader()


def make_client(url: str) -> Any:
    import botocore.session
    from botocore.config import Config

    from ecr_parts import CLIENT_CONFIG

    session = botocore.session.Session()
    if QUICK:  # loading ECR's model takes longer than an upload
        session.register_component("data_loader", _shared_loader())
    return session.create_client(
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


def ecr_parts(
    url: str, path: str, *, overlap: bool = True, check_existing: bool = False
) -> Callable[[], object]:
    from ecr_parts import LayerUploader

    uploader = LayerUploader(make_client(url), "demo", overlap=overlap)
    return lambda: uploader.upload(path, check_existing=check_existing)


def ecr_parts_without_overlap(url: str, path: str) -> Callable[[], object]:
    return ecr_parts(url, path, overlap=False)


def ecr_parts_without_pybase64(url: str, path: str) -> Callable[[], object]:
    if not QUICK:
        sys.modules["pybase64"] = None  # type: ignore[assignment]  # makes its import fail
    return ecr_parts(url, path)


def ecr_parts_checked(url: str, path: str) -> Callable[[], object]:
    return ecr_parts(url, path, check_existing=True)


def ecr_parts_from_a_pipe(url: str, path: str) -> Callable[[], object]:
    from ecr_parts import LayerUploader

    uploader = LayerUploader(make_client(url), "demo")

    def upload() -> None:
        with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
            assert cat.stdout is not None
            uploader.upload(cat.stdout)

    return upload


def ecr_parts_written(url: str, path: str) -> Callable[[], object]:
    """Write the layer to ``open_layer``, as a program does that makes it."""
    from ecr_parts import LayerUploader

    uploader = LayerUploader(make_client(url), "demo")

    def upload() -> None:
        with uploader.open_layer() as file, Path(path).open("rb") as source:
            shutil.copyfileobj(source, file)

    return upload


def upload_many(url: str, max_workers: str, *paths: str) -> Callable[[], object]:
    from ecr_parts import LayerUploader

    uploader, workers = LayerUploader(make_client(url), "demo"), int(max_workers)
    return lambda: uploader.upload_many(paths, max_workers=workers, check_existing=False)


def skopeo(url: str, path: str) -> Callable[[], object]:
    """Push an image whose only layer is this one to a registry."""
    layout, (_, host, conditions, *_) = Path(path).parent / "layout", urlsplit(url)
    command = ["skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false"]
    command += [f"oci:{layout}", f"docker://{host}{conditions}/demo:v1"]
    return lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def oras_for_python(url: str, path: str) -> Callable[[], object]:
    """Push the layer as an artifact to a registry."""
    client = import_module("oras.client").OrasClient(insecure=True)
    target = f"{url.removeprefix('http://')}/demo:v1"
    return lambda: client.push(target, files=[path], disable_path_validation=True, quiet=True)


def python_dxf(url: str, path: str) -> Callable[[], object]:
    """Push the layer as a blob to a registry."""
    _, host, conditions, *_ = urlsplit(url)
    dxf = import_module("dxf").DXF(host, f"{conditions[1:]}/demo", insecure=True)
    return lambda: dxf.push_blob(path)


def push_image(url: str, path: str, repository: str) -> Callable[[], object]:
    from ecr_parts import LayerUploader

    uploader = LayerUploader(make_client(url), repository)
    return lambda: uploader.push_image(path, tags=["v1"])


def push_image_without_speed(url: str, path: str, repository: str) -> Callable[[], object]:
    if not QUICK:
        for name in ("isal", "isal.isal_zlib", "pybase64"):
            sys.modules[name] = None  # type: ignore[assignment]  # makes its import fail
    return push_image(url, path, repository)


def skopeo_push(url: str, path: str, _repository: str) -> Callable[[], object]:
    source = f"oci:{path}" if Path(path).is_dir() else f"docker-archive:{path}"
    command = ["skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false", source]
    command.append(f"docker://{urlsplit(url).netloc}{urlsplit(url).path}/demo:v1")
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


Variant: TypeAlias = Callable[..., Callable[[], object]]
"""Prepares an upload, and returns the function that is measured."""
REGISTRY_VARIANTS: list[Variant] = [
    *([skopeo] if shutil.which("skopeo") else []),
    *([oras_for_python] if find_spec("oras") else []),
    *([python_dxf] if find_spec("dxf") else []),
]
LINK_VARIANTS: list[Variant] = [botocore_loop, ecr_parts_without_overlap, ecr_parts]
OFFICE_VARIANTS: list[Variant] = [
    botocore_loop,
    *REGISTRY_VARIANTS,
    *(ecr_parts, ecr_parts_without_pybase64, ecr_parts_without_overlap),
    *(ecr_parts_checked, ecr_parts_from_a_pipe, ecr_parts_written),
]
LOOPBACK_VARIANTS: list[Variant] = [*OFFICE_VARIANTS, two_hashes]
IMAGE_VARIANTS: list[Variant] = [
    *([skopeo_push] if shutil.which("skopeo") else []),
    *(push_image, push_image_without_speed),
]
VARIANTS = {
    variant.__name__: variant for variant in (*LOOPBACK_VARIANTS, *IMAGE_VARIANTS, upload_many)
}


def run_variant(variant: str, *arguments: str) -> None:
    """Run one upload in this process, and print its seconds and its peak memory (MiB) as JSON."""
    upload = VARIANTS[variant](*arguments)
    started = time.perf_counter()
    upload()
    seconds = time.perf_counter() - started
    who = resource.RUSAGE_CHILDREN if "skopeo" in variant else resource.RUSAGE_SELF
    print(json.dumps((seconds, resource.getrusage(who).ru_maxrss / 1024)))


def measure(variant: Variant, url: str, *arguments: object) -> tuple[float, float]:
    """Run one upload in a new process."""
    if QUICK:
        variant(url, *map(str, arguments))()
        return 1.0, 1.0
    command = [sys.executable, __file__, "--run-variant", variant.__name__, url]
    command += map(str, arguments)
    completed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak = json.loads(completed.stdout)
    return seconds, peak


def make_image(path: Path, mib: int) -> None:
    """Create a layer of random bytes, and the layout of an image with this layer.

    The layer is in gzip format, without compression: otherwise, skopeo would compress it.
    """
    layout = path.with_name("layout")
    blobs = layout / "blobs" / "sha256"
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
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
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
    (layout / "index.json").write_text(json.dumps(index))


def make_sparse_layer(path: Path, mib: int) -> Path:
    """Create a layer of zeros that starts with the name of its file, so that layers differ."""
    path.write_bytes(path.name.encode())
    os.truncate(path, mib * MIB)
    return path


def digest_of(path: Path) -> str:
    """The digest of a file, in little memory: a child inherits the peak of this process."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def make_images(directory: Path, mib: int) -> tuple[Path, Path]:
    """Write a docker archive of real files, and an OCI image layout with the same layers."""
    archive, layout = directory / "archive.tar", directory / "layout"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    files = (
        Path(root) / name
        for start in ("/usr/lib", "/usr/share", sys.prefix)
        for root, _, names in os.walk(start)
        for name in sorted(names)
    )

    def blob(content: bytes, media_type: str) -> dict[str, object]:
        name = hashlib.sha256(content).hexdigest()
        (blobs / name).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(content)}

    prefix, names, diff_ids, layers = "application/vnd.oci.image", [], [], []
    with tarfile.open(archive, "w") as tar:
        for number, share in enumerate((0.55, 0.2, 0.15, 0.1)):
            layer = directory / "layer.tar"
            with tarfile.open(layer, "w") as members:
                while members.offset < share * mib * MIB and (file := next(files, None)):
                    if file.is_file() and not file.is_symlink() and os.access(file, os.R_OK):
                        members.add(file, recursive=False)
            tar.add(layer, f"{number}.tar")
            names.append(f"{number}.tar")
            diff_ids.append(digest_of(layer))
            compressed = directory / "layer.tar.gz"
            with layer.open("rb") as source, gzip.open(compressed, "wb", 6) as target:
                shutil.copyfileobj(source, target, MIB)
            digest, size = digest_of(compressed), compressed.stat().st_size
            compressed.rename(blobs / digest[7:])
            media_type = f"{prefix}.layer.v1.tar+gzip"
            layers.append({"mediaType": media_type, "digest": digest, "size": size})
        rootfs = {"type": "layers", "diff_ids": diff_ids}
        config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
        document = [{"Config": "config.json", "RepoTags": ["demo:v1"], "Layers": names}]
        for name, content in (
            ("config.json", config),
            ("manifest.json", json.dumps(document).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    manifest = {"schemaVersion": 2, "config": blob(config, f"{prefix}.config.v1+json")}
    text = json.dumps({**manifest, "layers": layers}).encode()
    index = {"schemaVersion": 2, "manifests": [blob(text, f"{prefix}.manifest.v1+json")]}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps(index))
    return archive, layout


def print_images(url: str, directory: Path, mib: int, rounds: int) -> None:
    rows = []
    for image in make_images(directory, mib):
        seconds: dict[str, list[float]] = {}
        peaks: dict[str, list[float]] = {}
        for number in range(rounds):
            for variant in IMAGE_VARIANTS:
                repository = f"image-{image.stem}{variant.__name__}{number}".replace("_", "")
                for push in ("first push", "second push"):
                    name = f"{variant.__name__.replace('_', ' ')}, {push}"
                    if push == "first push" or variant is not skopeo_push:
                        taken, peak = measure(variant, url, image, repository)
                        seconds.setdefault(name, []).append(taken)
                        peaks.setdefault(name, []).append(peak)
        first = statistics.median(next(iter(seconds.values())))
        rows += [
            {
                "image": "docker archive" if image.is_file() else "OCI layout",
                "variant": name,
                "seconds": f"{statistics.median(taken):.1f}",
                "of the first": f"{statistics.median(taken) / first:.2f}",
                "peak MiB": f"{statistics.median(peaks[name]):.0f}",
            }
            for name, taken in seconds.items()
        ]
    print_table(f"Images of {mib} MiB on loopback, medians of {rounds} rounds:", rows)


class Figures(NamedTuple):
    """Medians of the uploads with one variant."""

    mib_per_second: float
    peak: float  # MiB

    @property
    def speed(self) -> str:
        return f"{self.mib_per_second:.0f}"


def compare(
    url: str, layer: Path, rounds: int, variants: list[Variant], conditions: Conditions
) -> dict[Variant, Figures]:
    """Upload a layer with the variants in turns."""
    mib = layer.stat().st_size / MIB
    results: dict[Variant, list[tuple[float, float]]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant, measured in results.items():
            measured.append(measure(variant, f"{url}/{conditions.path}", layer))
    medians = {
        variant: [statistics.median(figures) for figures in zip(*measured, strict=True)]
        for variant, measured in results.items()
    }
    return {variant: Figures(mib / seconds, peak) for variant, (seconds, peak) in medians.items()}


def print_variants(loopback: dict[Variant, Figures], office: dict[Variant, Figures]) -> None:
    rows = [
        {
            "variant": variant.__name__.replace("_", " "),
            "loopback": figures.speed,
            "office": office[variant].speed if variant in office else "",
            "peak MiB": f"{figures.peak:.0f}",
        }
        for variant, figures in loopback.items()
    ]
    print_table("MiB/s of the variants, and the peak of their memory on loopback:", rows)


def print_links(links: dict[Conditions, dict[Variant, Figures]], mib: float) -> None:
    rows = [
        {
            "processing": f"{link.processing} ms",
            "link": f"{link.rate} MiB/s" if link.rate else "unlimited",
            **{
                variant.__name__.replace("_", " "): measured[variant].speed
                for variant in LINK_VARIANTS
            },
            "bound": f"{mib / link.bound(round(mib * MIB)):.0f}",
        }
        for link, measured in links.items()
    ]
    print_table("MiB/s behind a link, and what the link and the processing allow:", rows)


def print_table(title: str, rows: list[dict[str, str]]) -> None:
    print(f"{title}\n\n| {' | '.join(rows[0])} |\n|---|{'---:|' * (len(rows[0]) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row.values())} |")
    print(flush=True)


def print_peaks(url: str, directory: Path, small_mib: int, huge_mib: int) -> None:
    def peak(variant: Variant, *arguments: object) -> int:
        return round(measure(variant, url, *arguments)[1])

    small = [make_sparse_layer(directory / f"small-{i}", small_mib) for i in range(8)]
    huge = make_sparse_layer(directory / "huge", huge_mib)
    print(f"peak at {small_mib} MiB: {peak(ecr_parts, small[0])} MiB", end="; ")
    print(f"at {huge_mib} MiB: {peak(ecr_parts, huge)} MiB", end="; ")
    print(f"at {small_mib} MiB from a pipe: {peak(ecr_parts_from_a_pipe, small[0])} MiB", end="; ")
    print(f"at {huge_mib} MiB written: {peak(ecr_parts_written, huge)} MiB")
    # A worker needs more memory from its second layer on, so the last two have two for each worker.
    runs = ((4, 1), (4, 2), (4, 4), (8, 8), (2, 1), (8, 4))
    peaks = {run: peak(upload_many, run[1], *small[: run[0]]) for run in runs}
    names = ("layers", "workers", "peak MiB")
    rows = [dict(zip(names, map(str, (*run, peaks[run])), strict=True)) for run in runs]
    print_table(f"\nupload_many with layers of {small_mib} MiB:", rows)
    print(f"each further worker, 4 layers: {(peaks[4, 4] - peaks[4, 1]) / 3:.0f} MiB", end="; ")
    print(f"2 layers for each worker: {(peaks[8, 4] - peaks[2, 1]) / 3:.0f} MiB")


def benchmark(options: argparse.Namespace, url: str, directory: Path) -> None:
    link_mib = min(options.mib, options.link_mib)
    layer, link_layer = directory / "loopback" / "layer", directory / "link" / "layer"
    make_image(layer, options.mib)
    make_image(link_layer, link_mib)
    link_rounds = min(options.rounds, options.link_rounds)
    print(
        f"Medians on {os.cpu_count()} cores: of {options.rounds} rounds with {options.mib} MiB on "
        f"loopback, of {link_rounds} rounds with {link_mib} MiB behind a link.\n"
    )
    loopback = compare(url, layer, options.rounds, LOOPBACK_VARIANTS, LOOPBACK)
    office = compare(url, link_layer, link_rounds, OFFICE_VARIANTS, OFFICE)
    print_variants(loopback, office)
    links = {
        link: compare(url, link_layer, link_rounds, LINK_VARIANTS, link) for link in OTHER_LINKS
    }
    print_links({OFFICE: office, **links}, link_layer.stat().st_size / MIB)
    print_peaks(f"{url}/{LOOPBACK.path}", directory, options.small_mib, options.huge_mib)
    print_images(f"{url}/{LOOPBACK.path}", directory, options.image_mib, link_rounds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number = partial(parser.add_argument, type=int)
    number("--mib", default=512, help="size of the layer on loopback")
    number("--rounds", default=5, help="uploads with each variant on loopback")
    number("--link-mib", default=200, help="size of the layer behind a link, at most --mib")
    number("--link-rounds", default=3, help="uploads behind a link, at most --rounds")
    number("--small-mib", default=128, help="size of the other layers for memory figures")
    number("--huge-mib", default=5_120, help="size of the huge layer, for its memory figure")
    number("--image-mib", default=700, help="size of the images, before compression")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--run-variant", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
    elif options.run_variant:
        run_variant(*options.run_variant)
    else:
        command = [sys.executable, __file__, "--serve"]
        with (
            tempfile.TemporaryDirectory() as directory,
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        ):
            assert server.stdout is not None
            try:
                benchmark(options, server.stdout.readline().strip(), Path(directory))
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
