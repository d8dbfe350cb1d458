"""HTML for notebooks: ``Chunker`` and ``UploadSession`` as a bar of parts, without scripts."""

from __future__ import annotations

from html import escape

_MAX_CELLS = 60  # in one bar, approximately; with more parts, each cell stands for several
# "currentColor" is visible on light and on dark backgrounds.
_LINE = "1px solid currentColor"
_BAR = f"max-width:640px;margin:4px 0;white-space:nowrap;line-height:0;border-left:{_LINE}"
_CELL = f"display:inline-block;box-sizing:border-box;height:18px;border:{_LINE};border-left:0"
_SENT = "background-color:#3987e5"


def parts_bar(caption: str, next_byte: int, end: int, part_size: int) -> str:
    """A bar of parts: those before ``next_byte``, which ECR has, and those from it to ``end``."""
    sent, unsent = range(0, next_byte, part_size), range(next_byte, end, part_size)
    parts_per_cell = -(-(len(sent) + len(unsent)) // _MAX_CELLS)
    cells = _cells(sent, parts_per_cell, end, _SENT) + _cells(unsent, parts_per_cell, end, "")
    return f'<div><div>{escape(caption)}</div><div style="{_BAR}">{cells}</div></div>'


def _cells(first_bytes: range, parts_per_cell: int, end: int, style: str) -> str:
    cells = ""
    for start in first_bytes[::parts_per_cell]:
        stop = min(start + parts_per_cell * first_bytes.step, first_bytes.stop)
        parts = len(range(start, stop, first_bytes.step))
        title = f"bytes {start:,} to {stop - 1:,}" + (f", {parts} parts" if parts > 1 else "")
        width = f"width:{100 * (stop - start) / end:.4f}%"
        cells += f'<span title="{title}" style="{_CELL};{width};{style}"></span>'
    return cells
