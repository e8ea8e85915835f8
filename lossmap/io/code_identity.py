"""Whether a result is continued by the code that began it: fingerprints compared, as its file stores them.

A fingerprint of a measure (landscape/fingerprint.py makes it, here it is plain values) holds

    values       loss at the origin and at one grid point, and a product where the measure has any, on a few samples
    eps          the rounding unit of the parameters
    sources      SHA-256 of the user's own files by path
    git          commit of their folder, and whether it was changed since
    environment  versions, and the processor or device

Values decide: beyond rounding, a file is not continued, and what else changed is named. Within rounding, changed
sources, versions and devices are reported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ATTRIBUTE = "code_"  # of the root, before the name of a measure
ROUNDINGS = {"loss": 2e3, "product": 2e4}  # units of rounding that a value may change by
MAX_TOLERANCE = 0.05
SMALLEST = 1e-2  # of a value below which its rounding is not relative
MAX_NAMED = 6


@dataclass(frozen=True)
class CodeChanges:
    """What differs between two fingerprints.

    values  (name, there, here) of what was computed, beyond rounding
    causes  one phrase for each source, commit, version or device that is another
    """

    values: tuple[tuple[str, Any, Any], ...] = ()
    causes: tuple[str, ...] = ()

    def named(self) -> str:
        """The causes as a phrase."""
        more = f" and {len(self.causes) - MAX_NAMED} more" if len(self.causes) > MAX_NAMED else ""
        return "; ".join(self.causes[:MAX_NAMED]) + more or "no file, version or device that is known of"


def decoded(value: Any) -> dict[str, Any] | None:
    """A fingerprint as an attribute holds it; None where there is none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return dict(value) if isinstance(value, Mapping) else None


def sources_of(attributes: Mapping[str, Any]) -> dict[str, str]:
    """The user's own files that a result was computed with, and the SHA-256 of each, over all its measures."""
    codes = [decoded(value) for name, value in attributes.items() if name.startswith(ATTRIBUTE)]
    return {path: str(digest) for code in codes if code for path, digest in code.get("sources", {}).items()}


def changes_between(there: Mapping[str, Any], here: Mapping[str, Any]) -> CodeChanges:
    """What differs between the fingerprint that is stored and the one that was measured now."""
    eps = max(float(there.get("eps") or 0.0), float(here.get("eps") or 0.0))
    values = []
    ours, theirs = here.get("values", {}), there.get("values", {})
    for name in sorted(ours.keys() & theirs.keys()):
        if not _agree(name, theirs[name], ours[name], eps):
            values.append((name, theirs[name], ours[name]))
    return CodeChanges(tuple(values), tuple(_causes(there, here)))


def _agree(name: str, a: Any, b: Any, eps: float) -> bool:
    """Whether two values are equal but for rounding; what could not be computed is text."""
    if isinstance(a, str) or isinstance(b, str) or a is None or b is None:
        return bool(a == b)
    if not (math.isfinite(a) and math.isfinite(b)):
        return str(float(a)) == str(float(b))
    tolerance: float = min(MAX_TOLERANCE, ROUNDINGS[name.split()[0]] * eps)
    return bool(abs(a - b) <= tolerance * max(abs(a), abs(b), SMALLEST))


def _causes(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    before, now = there.get("sources", {}), here.get("sources", {})
    names = {Path(path).name: digest for path, digest in before.items()}  # a folder may have moved
    for path, digest in now.items():
        known = before.get(path, names.get(Path(path).name))
        if known is None:
            yield f"{path} was not there"
        elif known != digest:
            yield f"{path} was changed"
    for path in before:
        if Path(path).name not in {Path(p).name for p in now}:
            yield f"{path} is no longer used"
    for group in ("git", "environment"):
        old, new = there.get(group, {}), here.get(group, {})
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                yield f"{name} was {old.get(name, 'unknown')}, and is {new.get(name, 'unknown')}"


def described(values: tuple[tuple[str, Any, Any], ...]) -> str:
    """Values that differ, as a phrase."""

    def text(value: Any) -> str:
        return f"{value:.9g}" if isinstance(value, (int, float)) else str(value)

    return ", ".join(f"the {name} was {text(a)}, and is {text(b)}" for name, a, b in values)


@dataclass(frozen=True)
class Continuation:
    """What is to be said and stored of the code that goes on with a result.

    codes    fingerprints by measure, to be stored
    notes    one line each for a person
    history  one line each for the file
    changed  whether any of it measures something else: what is left of unfinished points is of another function then
    """

    codes: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    changed: bool = False


def continued(
    path: Path,
    attributes: Mapping[str, Any],
    begun: Mapping[str, bool],
    codes: Mapping[str, Mapping[str, Any]],
    accept: bool,
) -> Continuation | str:
    """The code of each measure beside the one that began it; a sentence where its numbers are others and not accepted.

    attributes  of the file
    begun       by measure, whether the file holds points of it
    codes       the fingerprints that were measured now
    """
    stored, notes, history, refused, changed = {}, [], [], [], False
    for measure, here in codes.items():
        there = decoded(attributes.get(f"{ATTRIBUTE}{measure}"))
        stored[measure] = here
        changes = CodeChanges() if there is None else changes_between(there, here)
        changed = changed or bool(changes.values)
        if not begun.get(measure):
            continue
        if there is None:
            notes.append(
                f"{path} does not say by which code its points of {measure} were measured (version 0.1 did not): "
                "they are taken as they are"
            )
            continue
        if changes.values and not accept:
            refused.append(f"{measure}: {described(changes.values)}; changed: {changes.named()}")
        elif changes.values:
            history.append(f"accepted other code for {measure}: {described(changes.values)}; {changes.named()}")
        elif changes.causes:
            notes.append(f"{path}: {changes.named()}; what {measure} measures is the same within rounding")
            history.append(f"{measure} went on: {changes.named()}; the same within rounding")
            stored[measure] = {**here, "values": there["values"], "eps": there.get("eps")}
    if refused:
        return (
            f"{path} was begun by code that measures something else: {'; '.join(refused)}. Put the code back, name "
            "another file, or mix both with --accept-change"
        )
    return Continuation(stored, tuple(notes), tuple(history), changed)
