"""How a measure finds its numbers, where an earlier version found them in a way that could be wrong.

It stands in the file as a root attribute, `method_MEASURE`, and is no setting: a complete file is as complete as it
was. In one that is not, the points that were done by another method are to be done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lossmap.io.memory_store import MemoryStore
from lossmap.io.surface import Surface

PREFIX = "method_"


@dataclass(frozen=True)
class Method:
    """One method.

    name    as the file has it
    before  what may be wrong with numbers that were found without it: "may have ..."
    """

    name: str
    before: str


def measured_by(result: MemoryStore | Surface, measure: str, method: Method) -> bool:
    """Whether all numbers of the measure were found by this method."""
    return str(result.attributes.get(f"{PREFIX}{measure}")) == method.name


def sentence(path: object, measure: str, points: int, method: Method, again: bool) -> str:
    """What is said of points that were done by another method, and are done again or left."""
    what = f"{path}: {points:,} points of {measure!r} were measured by an earlier version, which {method.before}"
    if again:
        return f"{what}; they are measured again"
    return f"{what}; all are done and left as they are: overwrite the file to measure them anew"


def common(surfaces: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The methods that stand in the attributes of all these results alike."""
    first, *others = ({k: v for k, v in s.items() if k.startswith(PREFIX)} for s in surfaces)
    return {k: v for k, v in first.items() if all(o.get(k) == v for o in others)}
