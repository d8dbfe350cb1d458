"""Compressed data: what tools write is read, damage is noticed, and gzip is always the same."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from helpers import random_bytes
from hypothesis import given
from hypothesis import strategies as st
from image_makers import Zstd

import ecr_parts._sources.compression
from ecr_parts._sources.compression import (
    PIECE_SIZE,
    DamagedError,
    GzipWriter,
    NoDecompressorError,
    compression_of,
    decompress,
)

ZSTD_FRAME = b"\x28\xb5\x2f\xfd\x04\x00\x19\x00\x00abc\xc6\x3f\xbd\xd8"  # of "abc"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


def reading(content: bytes, at_most: int = sys.maxsize) -> Callable[[int], bytes]:
    file = io.BytesIO(content)
    return lambda size: file.read(min(size, at_most))


def pieces_of(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), PIECE_SIZE):
        yield content[start : start + PIECE_SIZE]


def gzip_of(content: bytes, kind: Any = GzipWriter) -> bytes:
    writer = kind()
    pieces = [writer.add(piece)() for piece in pieces_of(content)]
    return b"".join([writer.header, *pieces, writer.trailer])


@pytest.fixture(params=["with isal", "without isal"])
def compression(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, as it is where isal is installed or not."""
    if request.param == "with isal":
        pytest.importorskip("isal")
    else:
        monkeypatch.setitem(sys.modules, "isal", None)
        monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    spec = ecr_parts._sources.compression.__spec__
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


# gzip that is written


@pytest.mark.parametrize("size", [0, 1, PIECE_SIZE - 1, PIECE_SIZE, PIECE_SIZE + 1, 3_500_000])
def test_gzip_of_any_size_is_read_by_gzip(size: int, compression: Any) -> None:
    content = (random_bytes(1_000) * (size // 1_000 + 1))[:size]
    compressed = gzip_of(content, compression.GzipWriter)
    assert gzip.decompress(compressed) == content
    assert size < 20_000 or len(compressed) < size / 2  # repeats are found across pieces, too


def test_gzip_has_no_time_and_no_name() -> None:
    """The digest of a layer must not depend on when it was compressed."""
    assert gzip_of(b"") == bytes.fromhex("1f8b08000000000000ff0300" + "00" * 8)
    assert len(gzip_of(b"")) == 20


def test_gzip_by_zlib_is_that_of_deflate_level_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers keep their digests from release to release: this is the format, piece by piece."""
    monkeypatch.setattr("ecr_parts._sources.compression._isal", None)
    content = random_bytes(1_000) * 2_000
    expected, dictionary = bytearray(bytes.fromhex("1f8b08000000000000ff")), b""
    for piece in pieces_of(content):
        options: dict[str, Any] = {"zdict": dictionary} if dictionary else {}
        compressor = zlib.compressobj(level=1, wbits=-15, **options)
        expected += compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH)
        dictionary = piece[-32_768:]
    expected += b"\x03\x00" + zlib.crc32(content).to_bytes(4, "little")
    expected += len(content).to_bytes(4, "little")
    assert gzip_of(content) == expected


# What is read


@pytest.mark.parametrize("name", COMPRESS)
@pytest.mark.parametrize("at_most", [1, 5, 1_000, sys.maxsize])
@pytest.mark.parametrize("parts", [[b""], [b"text"], [b"a", b"", b"b" * 1_000]])
def test_reads_streams_one_after_the_other(
    name: str, at_most: int, parts: list[bytes], compression: Any
) -> None:
    compressed = b"".join(map(COMPRESS[name], parts))
    assert compression_of(compressed) == name
    read = reading(compressed, at_most)
    assert b"".join(compression.decompress(read, name)) == b"".join(parts)


@pytest.mark.parametrize("name", COMPRESS)
def test_pieces_have_a_bounded_size(name: str, compression: Any) -> None:
    """A few bytes can become gigabytes."""
    compressed = COMPRESS[name](bytes(5 * PIECE_SIZE + 1))
    sizes = [len(piece) for piece in compression.decompress(reading(compressed), name)]
    assert sum(sizes) == 5 * PIECE_SIZE + 1
    assert max(sizes) <= PIECE_SIZE


@pytest.mark.parametrize("name", COMPRESS)
@pytest.mark.parametrize("rest", [b"x", b"another thing", bytes(512), bytes(3) + b"rest"])
def test_what_follows_is_ignored_only_where_it_may(name: str, rest: bytes) -> None:
    compressed = COMPRESS[name](b"content") + rest
    read = decompress(reading(compressed), name, may_be_followed=True)
    assert b"".join(read) == b"content"
    with pytest.raises(DamagedError, match="followed by something else"):
        list(decompress(reading(compressed), name))


@pytest.mark.parametrize("name", COMPRESS)
def test_streams_may_be_apart(name: str) -> None:
    compressed = COMPRESS[name](b"a") + bytes(100_000) + COMPRESS[name](b"b") + bytes(4)
    assert b"".join(decompress(reading(compressed), name, may_be_followed=True)) == b"ab"


@pytest.mark.parametrize("name", COMPRESS)
def test_cut_data_is_an_error(name: str, compression: Any) -> None:
    compressed = COMPRESS[name](random_bytes(3_000))
    for end in (len(compressed) - 1, len(compressed) // 2, 3):
        with pytest.raises(compression.DamagedError, match="cut off"):
            list(compression.decompress(reading(compressed[:end]), name))


@pytest.mark.parametrize("name", COMPRESS)
def test_damage_is_an_error(name: str, compression: Any) -> None:
    compressed = bytearray(COMPRESS[name](random_bytes(3_000)))
    compressed[100:200] = bytes(100)
    with pytest.raises(compression.DamagedError):
        list(compression.decompress(reading(bytes(compressed)), name))


@given(content=st.binary(max_size=100), name=st.sampled_from([*COMPRESS]))
def test_any_bytes_are_read_or_refused(content: bytes, name: str) -> None:
    start = COMPRESS[name](b"")[:4]
    for one in (content, start + content):
        with suppress(DamagedError):
            assert all(map(len, decompress(reading(one), name)))


def test_xz_that_needs_much_memory_is_refused() -> None:
    compressed = bytearray(lzma.compress(b"content"))
    end = 12 + 4 * compressed[12]  # of the header of the first block, before its checksum
    compressed[compressed.index(b"\x21\x01", 12) + 2] = 36  # a dictionary of 1 GiB
    compressed[end : end + 4] = zlib.crc32(compressed[12:end]).to_bytes(4, "little")
    with pytest.raises(NoDecompressorError):
        list(decompress(reading(bytes(compressed)), "xz"))


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\x1f\x8b\x08", "gzip"), (ZSTD_FRAME, "zstd"), (b"\x50\x2a\x4d\x18\0\0\0\0", "zstd"),
        (b"\x5f\x2a\x4d\x18\0\0\0\0", "zstd"), (b"\x60\x2a\x4d\x18\0\0\0\0", ""),
        (b"\xfd7zXZ\0", "xz"), (b"BZh9", "bzip2"), (b"\x04\x22\x4d\x18", "lz4"),
        (b"\x5d\0\0\x80", "lzma"), (b"LZIP", "lzip"), (b"", ""), (b"\x50", ""), (bytes(6), ""),
    ],
)  # fmt: skip
def test_tells_formats_by_their_first_bytes(start: bytes, name: str) -> None:
    assert compression_of(start) == name


@pytest.mark.parametrize("name", ["lz4", "lzma", "lzip", ""])
def test_other_formats_have_no_decompressor(name: str) -> None:
    with pytest.raises(NoDecompressorError):
        list(decompress(reading(b"x"), name))


def test_zstd_is_read_where_there_is_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = b"\x28\xb5\x2f\xfd"
    monkeypatch.setattr("ecr_parts._sources.compression._zstd", Zstd("zstd"))
    assert b"".join(decompress(reading(frame + b"a." + frame + b"b."), "zstd")) == b"ab"
    with pytest.raises(DamagedError, match="damaged"):
        list(decompress(reading(frame + b"!"), "zstd"))
    monkeypatch.setattr("ecr_parts._sources.compression._zstd", None)
    with pytest.raises(NoDecompressorError):
        list(decompress(reading(frame), "zstd"))


def test_zstd_of_the_real_module() -> None:
    zstd: Any = pytest.importorskip(
        "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    )
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    compressed = skippable + zstd.compress(b"a" * 3_000_000) + zstd.compress(b"b")
    assert b"".join(decompress(reading(compressed), "zstd")) == b"a" * 3_000_000 + b"b"
    with pytest.raises(DamagedError):
        list(decompress(reading(compressed[:-3]), "zstd"))
