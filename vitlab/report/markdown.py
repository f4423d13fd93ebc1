"""Words of a user's own (class names, paths, commands) in Markdown: as they are, never as markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKS = re.compile(
    r"[\\`*\[\]~$|]"  # anywhere: code, emphasis, links, strike-through, formulas, columns
    r"|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # emphasis, but not within tiny_vit_5m
    r"|<(?=[A-Za-z/!?])"  # a tag, but not "p < 0.05"
    r"|&(?=#?\w+;)"  # an entity
    r"|^[#>+=-](?=\s)|^[#>]"  # a block of its own, where the text begins one
)


def plain(text: object) -> str:
    """``text`` on one line, with a backslash before whatever would be markup; also for the cell of a table."""
    return _MARKS.sub(lambda found: "\\" + found[0], _one_line(text))


def code(text: object, cell: bool = False) -> str:
    """``text`` as a code span, whatever it holds; ``cell``: within a table, where a bar ends the column first."""
    line = _one_line(text)
    if cell:
        line = line.replace("|", "\\|")
    fence = "`" * (_longest_run(line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def block(text: str, language: str = "") -> str:
    """``text`` as a code block, whatever it holds."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Rows under a header, as text; the first ``words`` columns to the left, the others to the right."""
    ruler = ["---"] * words + ["---:"] * (len(rows[0]) - words)
    lines = [[plain(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (lines[0], ruler, *lines[1:]))


def _one_line(text: object) -> str:
    return re.sub(r"[\r\n]+", " ", str(text))


def _longest_run(text: str) -> int:
    """Of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
