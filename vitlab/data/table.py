"""A user's CSV: separator found in the heading, columns by their names here, and no field dropped."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from vitlab.errors import UserError

DELIMITERS = (",", ";", "\t", "|")


def delimiter_of(heading: str) -> str:
    """The separator of the columns: the one of :data:`DELIMITERS` that splits the heading into the most; a comma where
    none occurs."""
    counts = {one: len(next(csv.reader([heading], delimiter=one), [])) for one in DELIMITERS}
    return max(DELIMITERS, key=counts.__getitem__)  # the first of equals


def read_table(table: Path, columns: Mapping[str, str] | None = None) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Heading and rows of a CSV.

    Args:
        table: the file, UTF-8 with or without a mark; other bytes are kept (surrogateescape).
        columns: name here → name in the file, such as ``{"path": "filename"}``; the heading is given with names here.

    Returns:
        Names of the columns, and for each row its line in the file and its cells, stripped, one for each column; empty
        where a row is shorter. Blank lines are left out.

    Raises:
        UserError: a row with more cells than the heading, two columns of one name, a name of ``columns`` that the file
            does not have, a file that is no text.
    """
    with open(table, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        line = 1
        try:
            delimiter = delimiter_of(file.readline().rstrip("\r\n"))
            file.seek(0)
            reader = csv.reader(file, skipinitialspace=True, delimiter=delimiter)
            heading = [name.strip() for name in next(reader, [])]
            rows = []
            for line, cells in _rows(reader, table, heading):
                rows.append((line, cells))
        except csv.Error as error:
            raise UserError(f"{table}, near line {line}: {error}.", "Save it as plain CSV, UTF-8.") from None
    for name, given in (columns or {}).items():
        if given not in heading:
            raise UserError(
                f"dataset.columns: {table} has no column '{given}' for {name}; it has: {', '.join(heading)}.",
                "Give the names as the first line has them: dataset.columns={path:NAME,label:NAME}.",
            )
        if name in heading and name != given:
            heading[heading.index(name)] = f"{name} (not used)"  # another column takes its place
        heading[heading.index(given)] = name
    if len(set(heading)) < len(heading):
        twice = next(name for name in heading if heading.count(name) > 1)
        raise UserError(f"{table}: two columns are called '{twice}'.", "Rename or remove one of them.")
    return heading, rows


def _rows(reader: Iterator[list[str]], table: Path, heading: list[str]) -> Iterator[tuple[int, list[str]]]:
    for cells in reader:
        if not any(cells):
            continue
        line: int = reader.line_num  # type: ignore[attr-defined]  # of csv's reader
        if len(cells) > len(heading):
            raise UserError(
                f"{table}, line {line}: {len(cells)} values in a table of {len(heading)} columns.",
                "Put a value that holds the separator into double quotes, or remove what is too much.",
            )
        yield line, [cell.strip() for cell in cells] + [""] * (len(heading) - len(cells))


def no_formula(cell: str) -> str:
    """A name as the cell of a table for people: with an apostrophe before what a spreadsheet would run as a formula.

    Not for tables that vitlab reads again, whose names are exact.
    """
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) and not _is_number(cell) else cell


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
