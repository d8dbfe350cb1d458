"""The reader of tar archives agrees with ``tarfile``, and its time and memory are bounded."""

from __future__ import annotations

import io
import posixpath
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from ecr_parts._images.tar import TarEntry, TarError, read_entries

END = bytes(10_240)


def entries_of(content: bytes) -> list[TarEntry]:
    return list(read_entries(io.BytesIO(content)))


def expected_entries(content: bytes) -> list[TarEntry]:
    """What ``tarfile`` finds."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        for member in tar:
            if member.issym():
                directory = posixpath.dirname(member.name)
                found.append(TarEntry(member.name, posixpath.join(directory, member.linkname)))
            elif member.islnk():
                found.append(TarEntry(member.name, member.linkname))
            elif member.issparse():
                found.append(TarEntry(member.name, None, 0, member.size, ()))
            elif member.isreg():
                found.append(TarEntry(member.name, None, member.offset_data, member.size))
    return found


names = st.text(
    st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=5
)
paths = st.builds(
    lambda parts, times: "/".join(parts * times),
    st.lists(names, min_size=1, max_size=4),
    st.sampled_from([1, 1, 1, 30]),
)
members = st.tuples(
    st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE]),
    paths,
    paths,
    st.binary(max_size=1_100),
)


@given(
    members=st.lists(members, max_size=4),
    tar_format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_finds_what_tarfile_wrote(
    members: list[tuple[bytes, str, str, bytes]], tar_format: int
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for kind, name, target, content in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if kind == tarfile.REGTYPE:
                member.size = len(content)
            elif kind != tarfile.DIRTYPE:
                member.linkname = target
            try:
                tar.addfile(member, io.BytesIO(content))
            except ValueError:  # the name is too long for this format
                continue
    assert entries_of(buffer.getvalue()) == expected_entries(buffer.getvalue())


@pytest.mark.parametrize("tar_format", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_finds_what_tar_wrote(tar_format: str, tmp_path: Path) -> None:
    if shutil.which("tar") is None or "GNU" not in subprocess.check_output(
        ["tar", "--version"], text=True
    ):
        pytest.skip("GNU tar is not installed")
    directory = tmp_path / "files"
    (directory / ("d" * 40)).mkdir(parents=True)
    for name in ("a", "d" * 40 + "/" + "f" * 45, "ü"):
        (directory / name).write_bytes(name.encode())
    (directory / "link").symlink_to("a")
    (directory / "hard").hardlink_to(directory / "a")
    path = tmp_path / "files.tar"
    subprocess.run(["tar", f"--format={tar_format}", "-cf", path, "-C", directory, "."], check=True)
    content = path.read_bytes()
    assert entries_of(content) == expected_entries(content)
    assert len(entries_of(content)) == 5


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def entry(name: str, kind: bytes, content: bytes) -> bytes:
    return header(name, kind, len(content)) + content + bytes(-len(content) % 512)


def record(key: str, value: bytes) -> bytes:
    """A record of an extended header."""
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body) + len(str(len(body)))
    length = len(body) + len(str(length))
    return str(length).encode() + body


def extended(key: str, value: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return entry("extended", kind, record(key, value))


def with_field(start: int, value: bytes) -> bytes:
    """A header with another field, and the right checksum."""
    changed = bytearray(header("file"))
    changed[start : start + len(value)] = value
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text" * 200, "a number that is not octal"),
        (header("x").replace(b"x", b"y"), "bad checksum"),
        (extended("size", b"-1") + header("x"), "a size that is not a number"),
        (extended("size", b"1" * 19) + header("x"), "a size that is not a number"),
        (
            extended("size", b"9" * 18) + header("x") + header("y"),
            "it is cut off after 2,048 bytes",
        ),
        (with_field(124, b"\xff" * 12), "a number that is not octal"),
        (with_field(124, b"99999999999\0"), "a number that is not octal"),
        (with_field(124, b"-7777777777\0"), "a negative number"),
        (with_field(124, b"\x80" + b"\x7f" * 11), "it is cut off after 10,752"),
        (entry("x", tarfile.XHDTYPE, b"0 a=b\n"), "malformed"),
        (entry("x", tarfile.XHDTYPE, b"x a=b\n"), "not a number"),
        (entry("x", tarfile.XHDTYPE, b"6 a=bc"), "malformed"),
        (entry("x", tarfile.XHDTYPE, b"5 abc\n"), "malformed"),
        (entry("x", tarfile.XHDTYPE, b"1" * 60_000), "not a number"),
        (entry("x", tarfile.XHDTYPE, b"1" * 65_537), "a header of 65,537 bytes"),
        (entry("x", tarfile.GNUTYPE_LONGNAME, b"1" * 65_537), "a header of 65,537 bytes"),
        (with_field(156, b"S" + bytes(325) + b"\1") + b"x" * 512, "a number that is not octal"),
    ],
)
def test_refuses_damaged_archive(content: bytes, message: str) -> None:
    with pytest.raises(TarError, match=message):
        entries_of(content if "2,048" in message else content + END)


class Repeated(io.RawIOBase):
    """A file that has ``block`` again and again, and takes no memory for that."""

    def __init__(self, block: bytes, times: int) -> None:
        self._block, self._size, self._position = block, len(block) * times, 0

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (self._size if whence == io.SEEK_END else 0)
        return self._position

    @override
    def tell(self) -> int:
        return self._position

    @override
    def read(self, size: int = -1) -> bytes:
        start = self._position % len(self._block)
        content = (self._block * (size // len(self._block) + 2))[start : start + size]
        content = content[: max(0, self._size - self._position)]
        self._position += len(content)
        return content


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (header("x"), "more than 150,000 entries"),
        (entry("x", tarfile.GNUTYPE_LONGNAME, b"a\0"), "more than 150,000 entries"),
        (extended("path", b"a" * 60_000) + header("x"), "names of more than"),
        (extended("linkpath", b"a" * 60_000) + header("x"), "names of more than"),
    ],
    ids=["entries", "headers", "names", "links"],
)
def test_memory_and_time_are_bounded(block: bytes, message: str) -> None:
    with pytest.raises(TarError, match=message):
        for _ in read_entries(cast("BinaryIO", Repeated(block, 200_000))):
            pass


@pytest.mark.parametrize("content", [b"", b"x" * 511, bytes(512), END])
def test_archive_without_entries(content: bytes) -> None:
    assert entries_of(content) == []


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"Z"])
def test_knows_which_entries_have_content(kind: bytes) -> None:
    """Some tools write a size for links and directories, which have no content."""
    for content in (b"", bytes(512)):
        archive = header("x", kind, 512) + content + header("y") + END
        try:
            expected = [one.name for one in expected_entries(archive)]
        except tarfile.ReadError:
            continue
        if "y" in expected:
            assert [one.name for one in entries_of(archive)] == expected


def test_size_may_be_blank() -> None:
    assert [one.size for one in entries_of(with_field(124, b" " * 12) + END)] == [0]


def test_global_header_does_not_apply_to_names() -> None:
    content = extended("path", b"a" * 60_000, tarfile.XGLTYPE) + header("x") * 2 + END
    assert [one.name for one in entries_of(content)] == ["x", "x"]


@pytest.mark.skipif(shutil.which("tar") is None, reason="requires GNU tar")
@pytest.mark.parametrize("version", ["", "0.0", "0.1", "1.0"])
@pytest.mark.parametrize("pieces", [0, 1, 3, 60])
def test_finds_what_is_stored_of_a_sparse_file(version: str, pieces: int, tmp_path: Path) -> None:
    content = bytearray(8_000_000)
    with (tmp_path / "a file with a name").open("wb") as file:
        for i in range(pieces):
            file.seek(i * 131_072)
            file.write(b"%3d" % i * 100)
            content[i * 131_072 : i * 131_072 + 300] = b"%3d" % i * 100
        file.truncate(len(content))
    options = ["--format=pax", f"--sparse-version={version}"] if version else ["--format=gnu"]
    names = ["a file with a name", "another"]
    (tmp_path / names[1]).write_bytes(b"text")
    command = ["tar", "-C", str(tmp_path), "--sparse", *options, "-cf", "-", *names]
    archive = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    if len(archive) > len(content):
        pytest.skip("the file system has no holes")
    sparse, another = entries_of(archive)
    found = bytearray(sparse.size)
    for one in sparse.segments or ():
        found[one.position : one.position + one.size] = archive[one.offset : one.offset + one.size]
    assert (sparse.name, found == content) == (names[0], True)
    assert archive[another.offset : another.offset + another.size] == b"text"


def sparse_records(**records: object) -> bytes:
    each = [record(f"GNU.sparse.{key}", str(value).encode()) for key, value in records.items()]
    return entry("x", tarfile.XHDTYPE, b"".join(each))


@pytest.mark.parametrize(
    "archive",
    [
        sparse_records(size=900, map="0,600") + entry("x", b"0", bytes(512)),
        sparse_records(size=900, map="0,100,50,100") + entry("x", b"0", bytes(512)),
        sparse_records(size=200, map="0,100,150,100") + entry("x", b"0", bytes(512)),
        sparse_records(size=900, map="0,x") + entry("x", b"0", bytes(512)),
        sparse_records(map="0,100") + entry("x", b"0", bytes(512)),
        sparse_records(major=1, realsize=900) + entry("x", b"0", b"2\n0\n10\n"),
        sparse_records(major=1, realsize=900) + header("x"),
        sparse_records(major=1, realsize=900) + entry("x", b"0", b"99999999\n" + b"0\n" * 99_999),
        sparse_records(size=900, offset=0, numbytes=600) + entry("x", b"0", bytes(512)),
        with_field(156, b"S" + bytes(325) + b"\1"),
        with_field(156, b"S" + bytes(325) + b"\1") + (bytes(504) + b"\1" + bytes(7)) * 6_000,
    ],
)
def test_refuses_malformed_sparse_file(archive: bytes) -> None:
    with pytest.raises(TarError, match=r"sparse|a size that is not"):
        entries_of(archive)


def test_map_of_a_sparse_file_without_a_line_is_not_read_to_its_end() -> None:
    """It would be copied for each of its blocks: this would take hours."""
    archive = sparse_records(major=1, realsize=900) + entry("x", b"0", b"1" * 30_000_000)
    with pytest.raises(TarError, match="malformed"):
        entries_of(archive)


@pytest.mark.parametrize("ends", [True, False])
def test_number_of_pieces_is_bounded(ends: bool) -> None:
    pieces = ",".join(f"{i},0" for i in range(5_000))
    archive = (sparse_records(size=10**6, map=pieces) + header("x")) * 21
    if not ends:  # headers that no entry follows
        archive = entry("x", tarfile.XHDTYPE, record("GNU.sparse.offset", b"0") * 2_000) * 51
    with pytest.raises(TarError, match="sparse files with more than 100,000 pieces"):
        entries_of(archive + END)


@given(content=st.binary(max_size=600))
def test_reads_any_bytes_or_refuses_them(content: bytes) -> None:
    for start in (b"", header("x"), extended("path", b"a"), with_field(124, content[:12])):
        try:
            entries_of(start + content)
        except TarError:
            continue
