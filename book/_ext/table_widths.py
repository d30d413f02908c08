"""Columns of a table on paper: LaTeX knows their widths only if somebody tells it."""

from __future__ import annotations

import re

from docutils import nodes

ROOM = 95  # letters in a line of a table
GAP = 5  # letters between columns, and for the wider ones of a head


def fit(table: nodes.table) -> None:
    """Give the columns of a table that is too wide their shares of the line."""
    rows = [row.children for row in table.findall(nodes.row)]
    columns = [[length(cell) for cell in column] for column in zip(*rows, strict=True)]
    if sum(map(max, columns)) + GAP * len(columns) <= ROOM:
        return
    table["classes"].append("colwidths-given")
    for spec, share in zip(table.findall(nodes.colspec), shares(columns), strict=True):
        spec["colwidth"] = share


def shares(columns: list[list[int]]) -> list[int]:
    """Widths in letters: what a column wants, where that is no more than its part of the rest."""
    wanted = dict(sorted(enumerate(map(max, columns)), key=lambda item: item[1]))
    room = ROOM
    for done, (i, letters) in enumerate(wanted.items()):
        wanted[i] = min(letters + GAP, room // (len(columns) - done))
        room -= wanted[i]
    return [wanted[i] for i in range(len(columns))]


def length(cell: nodes.entry) -> int:
    """About how many letters wide a cell is; a command of a formula counts as one."""
    letters = re.sub(r"\\[a-zA-Z]+", "x", cell.astext())
    return len(re.sub(r"[{}^_]|\\.", "", letters))
