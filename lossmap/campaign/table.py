"""The collected table of a campaign: one row a member, with its settings and its numbers with their bars. No torch."""

from __future__ import annotations

import csv
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossmap.campaign.folder import CampaignFolder, MemberState, changed_sources
from lossmap.campaign.member import Member
from lossmap.io.xarray_table import dataset_of

FIRST = ("name", "measure", "outcome")  # columns that every row begins with
ACCOUNTS = ("done", "failed", "total", "seconds", "reason", "digest", "file")
CODE = "code"  # column of the versions of the user's files, where they differ between members
MAX_SHOWN = 20  # rows that a repr shows


@dataclass(frozen=True)
class CampaignTable:
    """One row a member: its name, measure and outcome, its settings and labels, its numbers, its file.

    Args:
        rows: mappings from column to value; a column that a row lacks is empty there.
        folder: of the campaign.
        order: of the columns; by default that in which the rows name them.

    """

    rows: tuple[Mapping[str, Any], ...]
    folder: str = ""
    order: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns, in the order of the table."""
        known = dict.fromkeys(name for row in self.rows for name in row)
        return tuple(dict.fromkeys([*(name for name in self.order if name in known), *known]))

    def __getitem__(self, column: str) -> list[Any]:
        if column not in self.columns:
            raise KeyError(f"no column {column!r}; there are: {', '.join(self.columns)}")
        return [row.get(column) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the table as comma-separated values, whole. Returns the path; raises OSError."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        with open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows({name: _cell(value) for name, value in row.items()} for row in self.rows)
        part.replace(path)
        return path

    def to_xarray(self) -> Any:
        """The table as an `xarray.Dataset`, each column a variable over the dimension `member`.

        Raises ImportError, with one sentence, where xarray is not installed.
        """
        return dataset_of({name: self[name] for name in self.columns}, {"folder": self.folder})

    def __repr__(self) -> str:
        hidden = ("digest", "file", "reason")
        names = [name for name in self.columns if name not in hidden]
        lines = [names, *([_shown(row.get(name)) for name in names] for row in self.rows[:MAX_SHOWN])]
        text = "\n".join(aligned(lines))
        if len(self.rows) > MAX_SHOWN:
            text += f"\nand {len(self.rows) - MAX_SHOWN} more"
        return text

    def _repr_html_(self) -> str:
        return f'<pre style="white-space: pre">{html.escape(repr(self))}</pre>'


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def collected(members: Iterable[Member], folder: CampaignFolder) -> CampaignTable:
    """The table of these members, as their files stand now."""
    members = list(members)
    states = folder.states(members)
    rows = [_row(member, states[member.digest], folder) for member in members]
    if changed_sources(states):
        rows = [{**row, CODE: _code(states[row["digest"]])} for row in rows]
    numbers = dict.fromkeys(name for member in members for name in states[member.digest].numbers)
    settings = dict.fromkeys(name for member in members for name in (*member.labels, *member.settings))
    order = [*FIRST, *(name for name in settings if name not in FIRST), *numbers, CODE, *ACCOUNTS]
    return CampaignTable(
        tuple({name: row[name] for name in order if name in row} for row in rows),
        str(folder.path),
        tuple(dict.fromkeys(order)),
    )


def _row(member: Member, state: MemberState, folder: CampaignFolder) -> dict[str, Any]:
    file = folder.result(member.digest)
    accounts = {
        "done": state.done,
        "failed": state.failed,
        "total": state.total,
        "seconds": state.seconds,
        "reason": state.reason,
        "digest": member.digest,
        "file": str(file) if state.outcome != "new" else "",
    }
    own = {"name": member.name, "measure": member.measure, "outcome": state.outcome}
    return {**member.settings, **state.numbers, **member.labels, **own, **accounts}


def _code(state: MemberState) -> str:
    """The versions of the user's files that a result was computed with, as one short word."""
    return " ".join(sorted({digest[:8] for digest in state.sources.values()}))


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return value


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(_cell(value))
