"""The bars that notebooks show for chunkers and sessions."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from ecr_parts import Chunker, UploadSession

MIB = 1024 * 1024


class Cell(NamedTuple):
    width: float
    """Per cent."""
    covered: range
    """Bytes."""
    sent: bool


class Bar(HTMLParser):
    """The caption and the cells of the HTML of a chunker or a session."""

    def __init__(self, item: Chunker | UploadSession) -> None:
        super().__init__()
        self.caption = ""
        self.cells: list[Cell] = []
        self._open_tags: list[str] = []
        self.feed(item._repr_html_())
        assert self._open_tags == []

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open_tags.append(tag)
        assert tag in ("div", "span")
        assert {name for name, _ in attrs} <= {"style", "title"}  # no script, nothing to load
        if tag == "span":
            attributes = {name: value or "" for name, value in attrs}
            width = re.search(r"width:([0-9.]+)%", attributes["style"])
            assert width is not None
            numbers = re.findall(r"\d+", attributes["title"].replace(",", ""))
            covered = range(int(numbers[0]), int(numbers[1]) + 1)
            sent = "background-color" in attributes["style"]
            self.cells.append(Cell(float(width[1]), covered, sent))

    @override
    def handle_endtag(self, tag: str) -> None:
        assert self._open_tags.pop() == tag

    @override
    def handle_data(self, data: str) -> None:
        self.caption += data


def make_session(
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
def test_cells_cover_layer(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 10**11))
    part_size = data.draw(st.integers(1, 10**8))
    bytes_sent = data.draw(st.integers(0, size))
    for item, next_byte in (
        (Chunker(size, part_size=part_size), 0),
        (make_session(bytes_sent, size, part_size), bytes_sent),
    ):
        cells = Bar(item).cells
        assert 1 <= len(cells) <= 62
        assert sum(cell.width for cell in cells) == pytest.approx(100, abs=0.01)
        ends = [0, *(cell.covered.stop for cell in cells)]
        assert [cell.covered.start for cell in cells] == ends[:-1]
        assert ends[-1] == size
        assert all(cell.sent == (cell.covered.stop <= next_byte) for cell in cells)
        assert next_byte in ends


def test_each_cell_is_one_part_if_there_are_few() -> None:
    chunker = Chunker(45 * MIB, part_size=10 * MIB)
    bar = Bar(chunker)
    parts = [range(part.first_byte, part.last_byte + 1) for part in chunker]
    assert [cell.covered for cell in bar.cells] == parts
    assert bar.caption == "47,185,920 bytes in 5 parts of 10,485,760 bytes, the last of 5,242,880"


def test_caption_of_single_part_has_no_part_size() -> None:
    assert Bar(Chunker(7, part_size=10)).caption == "7 bytes in 1 part"


def test_session_shows_bytes_that_ecr_has() -> None:
    assert Bar(make_session(25, 45)).caption == "demo, upload u-1: ECR has 25 of 45 bytes"


def test_session_of_unknown_size_ends_with_one_unsent_part() -> None:
    bar = Bar(make_session(25))
    assert bar.caption == "demo, upload u-1: ECR has 25 of an unknown number of bytes"
    assert [cell.sent for cell in bar.cells] == [True, True, True, False]
    assert [cell.sent for cell in Bar(make_session()).cells] == [False]


def test_escapes_repository_name() -> None:
    name = '"><script>alert(1)</script>'
    assert Bar(make_session(name=name)).caption.startswith(name)
