"""The bars that chunkers and sessions show of themselves in a notebook."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from ecr_parts import Chunker, UploadSession

MIB = 1024 * 1024


class Shown(HTMLParser):
    """The caption, and of each cell its width (per cent), its bytes, and whether it was sent."""

    def __init__(self, item: Chunker | UploadSession) -> None:
        super().__init__()
        self.caption = ""
        self.cells: list[tuple[float, range, bool]] = []
        self.open: list[str] = []
        self.feed(item._repr_html_())
        assert self.open == []

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        assert tag in ("div", "span")
        assert {name for name, _ in attrs} <= {"style", "title"}  # no script, nothing to load
        if tag == "span":
            found = {name: value or "" for name, value in attrs}
            width = re.search(r"width:([0-9.]+)%", found["style"])
            assert width is not None
            first, last = map(int, re.findall(r"\d+", found["title"].replace(",", ""))[:2])
            sent = "background-color" in found["style"]
            self.cells.append((float(width[1]), range(first, last + 1), sent))

    @override
    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    @override
    def handle_data(self, data: str) -> None:
        self.caption += data


def session(
    next_byte: int = 0, layer_size: int | None = None, part_size: int = 10, name: str = "demo"
) -> UploadSession:
    return UploadSession(
        repository_name=name,
        upload_id="u-1",
        part_size=part_size,
        last_byte_received=next_byte - 1,
        layer_size=layer_size,
    )


@given(st.data())
def test_the_cells_are_the_layer(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 10**11))
    part_size = data.draw(st.integers(1, 10**8))
    at = data.draw(st.integers(0, size))
    for item, next_byte in (
        (Chunker(size, part_size=part_size), 0),
        (session(at, size, part_size), at),
    ):
        cells = Shown(item).cells
        assert 1 <= len(cells) <= 62
        assert sum(width for width, _, _ in cells) == pytest.approx(100, abs=0.01)
        ends = [0, *(covered.stop for _, covered, _ in cells)]
        assert [covered.start for _, covered, _ in cells] == ends[:-1]
        assert ends[-1] == size
        assert all(sent == (covered.stop <= next_byte) for _, covered, sent in cells)
        assert next_byte in ends


def test_a_cell_is_a_part_where_there_are_few() -> None:
    chunker = Chunker(45 * MIB, part_size=10 * MIB)
    shown = Shown(chunker)
    parts = [range(part.first_byte, part.last_byte + 1) for part in chunker]
    assert [covered for _, covered, _ in shown.cells] == parts
    assert shown.caption == (
        "47,185,920 bytes in 5 parts of 10,485,760 bytes, the last of 5,242,880"
    )
    assert Shown(Chunker(7, part_size=10)).caption == "7 bytes in 1 part"


def test_a_session_says_where_ecr_stands() -> None:
    assert Shown(session(25, 45)).caption == "demo, upload u-1: ECR has 25 of 45 bytes"
    unknown = Shown(session(25))
    assert unknown.caption == "demo, upload u-1: ECR has 25 of an unknown number of bytes"
    assert [sent for _, _, sent in unknown.cells] == [True, True, True, False]
    assert [sent for _, _, sent in Shown(session()).cells] == [False]


def test_names_are_escaped() -> None:
    name = '"><script>alert(1)</script>'
    assert Shown(session(name=name)).caption.startswith(name)
