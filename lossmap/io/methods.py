"""How a measure finds its numbers, where an earlier version found them in a way that could be wrong.

It stands in the file as a root attribute, `method_MEASURE`, and is no setting: a complete file is as complete as it
was, and says so. In one that is not, the points that were done by another method are to be done again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lossmap.io.memory_store import MemoryStore
from lossmap.io.surface import Surface

PREFIX = "method_"
OF_SEVERAL = ("eigen", "audit")  # measures that read several eigenvalues of one end at a point


@dataclass(frozen=True)
class Method:
    """One method.

    name    as the file has it
    before  what may be wrong with numbers that were found without it: "may have ..."
    """

    name: str
    before: str


COPIES_COUNTED = Method("copies counted", "may have passed over copies of multiple eigenvalues")


def method_of(measure: str, settings: Mapping[str, Any]) -> Method | None:
    """How numbers of a measure of these settings are found now; None where that never changed."""
    if measure not in OF_SEVERAL:
        return None
    counts = (part.partition(":")[2] for part in str(settings.get("which", "")).split(","))
    return COPIES_COUNTED if any(count.isdigit() and int(count) > 1 for count in counts) else None


def measured_by(result: MemoryStore | Surface, measure: str, method: Method) -> bool:
    """Whether all numbers of the measure were found by this method."""
    return str(result.attributes.get(f"{PREFIX}{measure}")) == method.name


def described(points: int, measure: str, method: Method) -> str:
    """What is said of points that were done by another method, up to what becomes of them."""
    return f"{points:,} points of {measure!r} were measured by an earlier version, which {method.before}"


def method_note(surface: Surface) -> str | None:
    """What may be wrong with points that an earlier version has done; None where nothing is."""
    for measure in surface.status:
        method = method_of(measure, surface.settings.get("measures", {}).get(measure, {}))
        done = surface.counts(measure)["done"]
        if method is not None and done and not measured_by(surface, measure, method):
            left = surface.outcome == "unfinished"
            return described(done, measure, method) + ("; they are measured again when it goes on" if left else "")
    return None
