"""How layers and uploads look in a notebook: a bar of parts, in HTML that needs nothing else."""

from __future__ import annotations

from html import escape

_MOST_CELLS = 60  # in one bar; of a layer with more parts, each stands for several
# In the text's own colour, so that they are seen on light and on dark.
_LINE = "1px solid currentColor"
_BAR = f"max-width:640px;margin:4px 0;white-space:nowrap;line-height:0;border-left:{_LINE}"
_CELL = f"display:inline-block;box-sizing:border-box;height:18px;border:{_LINE};border-left:0"
_SENT = "background-color:#3987e5"


def bar(caption: str, sent: range, left: range) -> str:
    """The first bytes of the parts that ECR has and of those that are left, as HTML.

    Each range ends behind the last byte of its last part.
    """
    together = -(-(len(sent) + len(left)) // _MOST_CELLS)  # parts to a cell
    end = max(sent.stop, left.stop)
    cells = _cells(sent, together, end, _SENT) + _cells(left, together, end, "")
    return f'<div><div>{escape(caption)}</div><div style="{_BAR}">{cells}</div></div>'


def _cells(first_bytes: range, together: int, end: int, style: str) -> str:
    cells = ""
    for first in first_bytes[::together]:
        behind = min(first + together * first_bytes.step, first_bytes.stop)
        parts = len(range(first, behind, first_bytes.step))
        title = f"bytes {first:,} to {behind - 1:,}" + (f", {parts} parts" if parts > 1 else "")
        width = f"width:{100 * (behind - first) / end:.4f}%"
        cells += f'<span title="{title}" style="{_CELL};{width};{style}"></span>'
    return cells
