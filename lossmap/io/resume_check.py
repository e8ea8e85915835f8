"""The request against what is in the file: each difference by its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.geometry.grid import Field, Grid
from lossmap.io.memory_store import Measures, MemoryStore
from lossmap.io.surface import canonical, differences


class Refused(ValueError):
    """The request does not belong into the file that is there.

    differences  (name, in the file, requested)
    """

    def __init__(self, text: str, differences: Sequence[tuple[str, Any, Any]] = ()) -> None:
        super().__init__(text)
        self.differences = tuple(differences)


def refuse(
    path: Path,
    memory: MemoryStore,
    there: Mapping[str, Any],
    grid: Grid,
    identity: Mapping[str, Any],
    measures: Measures,
) -> None:
    """Raise Refused where grid, settings of the file (`there`) or of a measure differ, naming each difference."""
    unequal = list(axis_differences(memory.grid, grid))
    unequal += differences(there, identity)
    for name, (fields, settings) in measures.items():
        if name in memory.measures:
            known = memory.measures[name]
            unequal += [(f"{name}: {what}", a, b) for what, a, b in differences(known.settings, settings)]
            if [f.name for f in known.fields] != [f.name for f in fields] or known.width != _width(fields):
                unequal.append((f"{name}: fields", _names(known.fields), _names(fields)))
    if unequal:
        described = "; ".join(f"{name} is {short(a)} in the file, {short(b)} asked for" for name, a, b in unequal)
        raise Refused(
            f"{path} holds another survey: {described}. "
            "Ask for the same, name another file, or start anew with --overwrite",
            unequal,
        )


def axis_differences(ours: Grid, theirs: Grid) -> Iterator[tuple[str, str, str]]:
    """(axis, here, there) for each axis that differs."""
    for name in ("x", "y"):
        a, b = getattr(ours, name), getattr(theirs, name)
        if (a is None) != (b is None) or (a is not None and not np.array_equal(a, b)):
            here, there = _span(a), _span(b)
            if here == there:
                there = f"{there}, with other ticks between"
            yield name, here, there


def _span(ticks: np.ndarray | None) -> str:
    return "(none)" if ticks is None else f"{ticks[0]:g}:{ticks[-1]:g}:{ticks.size}"


def _width(fields: Sequence[Field]) -> int:
    return sum(field.size for field in fields)


def _names(fields: Sequence[Field]) -> str:
    return ", ".join(f.name + (f"[{f.extra[1]}]" if f.extra else "") for f in fields)


def short(value: Any) -> str:
    """A value as text of no more than 60 characters."""
    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= 60 else f"{text[:28]}...{text[-28:]}"
