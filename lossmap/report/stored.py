"""What a report is rendered from: the arrays and attributes of one result, by name.

It is what `stored()` of a live result gives and what a group of a result file holds, so that one renderer serves both
and a file is reported again without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import count
from math import nan
from typing import Any, TypeVar

import numpy as np

Row = TypeVar("Row")

REPORT_VERSION = 2  # attribute `report_version` of groups from which the report can be rendered; 0.1 wrote none


def names_in_file(names: Iterable[str]) -> dict[str, str]:
    """The names of arrays by those of what they are of, no two alike: a slash would open a group within a file.

    >>> names_in_file(["a/b", "a_b", "c"])
    {'a/b': 'a_b', 'a_b': 'a_b~2', 'c': 'c'}

    """
    return kept_apart(names, lambda name: name.replace("/", "_"), "~")


def kept_apart(
    names: Iterable[str], plain: Callable[[str], str], joint: str, alike: Callable[[str], str] = str
) -> dict[str, str]:
    """By name its plain form, with a number behind it where another one's before it is alike.

    joint  what stands between form and number
    alike  what is the same of two forms that count as one
    """
    own: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        form = plain(name)
        numbered = (form if i == 1 else f"{form}{joint}{i}" for i in count(1))
        own[name] = next(candidate for candidate in numbered if alike(candidate) not in taken)
        taken.add(alike(own[name]))
    return own


def refuse_alike(labels: Sequence[str], what: str) -> None:
    """Raise ValueError where two labels would be one name in a file: the same, or different in a slash alone.

    what  is called so, such as `two subjects`
    """
    known: dict[str, str] = {}
    for label in labels:
        own = label.replace("/", "_")
        if own in known:
            both = repr(label)
            if known[own] != label:
                both = f"{known[own]!r} and {label!r}, which a file does not tell apart"
            raise ValueError(f"{what} are called {both}; each must have a label of its own")
        known[own] = label


@dataclass(frozen=True, eq=False)
class StoredReport:
    """The arrays and attributes of one result.

    arrays      by name; what a name means and its shape stand in `io.spectrum_layout`
    attributes  numbers and texts by name
    """

    arrays: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]

    def __contains__(self, array: str) -> bool:
        return array in self.arrays

    def number(self, name: str, default: float = nan) -> float:
        """An attribute as a number; `default` where there is none."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str = "") -> str:
        """An attribute as text; `default` where there is none."""
        return str(self.attributes.get(name, default))

    def flag(self, name: str, default: bool = False) -> bool:
        """An attribute as truth; files hold 0 and 1."""
        return bool(self.attributes.get(name, default))

    def texts(self, array: str) -> list[str]:
        """An array of texts as a list; empty where there is none."""
        return [str(item) for item in self.arrays.get(array, ())]

    def rows(self, **columns: str) -> Iterator[dict[str, Any]]:
        """The rows of several arrays of equal length, as plain values under the given names."""
        lists = [np.asarray(self.arrays[name]).tolist() for name in columns.values()]
        for row in zip(*lists, strict=True):
            yield dict(zip(columns, row, strict=True))

    @property
    def is_renderable(self) -> bool:
        """Whether everything that the report shows is stored; not so in files of version 0.1."""
        return self.number("report_version", 1.0) >= REPORT_VERSION


def array_names(summary: type, prefix: str = "") -> dict[str, str]:
    """The array of each field of a summary dataclass: the field's name behind a prefix."""
    return {field.name: prefix + field.name for field in fields(summary)}


def columns_of(summaries: Sequence[Any], names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Summaries (dataclasses) as one array a field, one row a summary; nothing where there is no summary.

    names  of the arrays, by field
    """
    if not summaries:
        return {}
    columns = {}
    for field, name in names.items():
        values = [getattr(summary, field) for summary in summaries]
        dtype = {str: object}.get(type(values[0]))  # texts as objects, as a file gives them back
        columns[name] = np.array(values, dtype=dtype)
    return columns


def rows_of(stored: StoredReport, summary: type[Row], names: Mapping[str, str]) -> list[Row]:
    """The summaries that `columns_of` made arrays of; empty where there are no such arrays, but optional ones."""
    optional = {f.name for f in fields(summary) if f.default is not MISSING}  # type: ignore[arg-type]
    present = {field: name for field, name in names.items() if name in stored}
    if any(field not in present and field not in optional for field in names):
        return []
    return [summary(**row) for row in stored.rows(**present)]
