"""The file of a survey that is called from Python: opened as the command line opens its own, and continued by either.

What a file belongs to is stated in two ways: the command line knows model and data by the files and names that
they came from, a program by the objects themselves. Both store the digest of the plane (origin and axes, so all of the
model that moves), and the digest of the data with each measure. A file that the other way began is therefore continued
where these, and all settings that both know, are equal.

Price: one pass over the data for their digest, when the file is opened.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossmap.geometry.grid import Grid
from lossmap.io.disk import PathLike
from lossmap.io.memory_store import Measures
from lossmap.io.provenance import PYTHON, provenance
from lossmap.io.read import NotASurface, Refused, SurfaceFile, journal_of, read
from lossmap.io.resume_check import short
from lossmap.io.surface import EVALUATION, Group, Surface, differences, to_plain

DRAWN_SEED, DRAWN_INDEX = "drawn_seed", "drawn_index"  # attributes of an axis that is not stored but drawn

if TYPE_CHECKING:  # a measure without a network needs no PyTorch, whose import takes seconds on each rank
    import torch

    from lossmap.data.problem import Problem
    from lossmap.geometry.directions import Plane

WRITTEN_BY = "written by"  # the setting of a file that was begun by a program
BY_NAME = "dataset"  # the setting of a measure that was made by the command line
DIGEST = "directions_digest"
MODEL = "model (SHA-256)"
LOSSES = ("crossentropy", "mse")  # known by these names to the command line and to programs


def open_survey_file(
    path: PathLike,
    grid: Grid,
    measures: Mapping[str, Any],
    *,
    overwrite: bool = False,
    ranks: int = 1,
    accept_change: bool = False,
) -> SurfaceFile:
    """Create or continue the file of a survey, on rank 0.

    measures  by name; those that have problems and a plane are compared by them
    ranks     the number of ranks
    accept_change  whether other code may go on with the file

    Raises as `SurfaceFile.open` does: Refused naming each difference, Busy, NotASurface, OSError.
    """
    first = next(iter(measures.values()))
    plane = _plane_of(first)
    identity: dict[str, Any] = {WRITTEN_BY: PYTHON}
    attributes: dict[str, Any] = {**provenance(_device_of(first), ranks), "command": PYTHON}
    of_plane, groups = described_plane(first)
    digest = ""
    if plane is not None:
        identity[DIGEST] = digest = plane.digest
    attributes |= of_plane
    stated: Measures = {
        name: (measure.fields, {**measured_with(measure), **measure.settings}) for name, measure in measures.items()
    }
    if not overwrite:
        identity, stated = adopted(path, identity, stated, digest)
    by_method = {name: method for name, m in measures.items() if (method := getattr(m, "method", None)) is not None}
    codes = {}
    if problems_of(first):
        from lossmap.landscape.fingerprint import code_of

        point = grid.farthest if plane is not None else None
        codes[first.name] = code_of(problems_of(first), plane=plane, point=point, product=first.name == "eigen")
    try:
        return SurfaceFile.open(
            path,
            grid,
            identity=identity,
            measures=stated,
            overwrite=overwrite,
            groups=groups,
            attributes=attributes,
            command=PYTHON,
            codes=codes,
            accept_change=accept_change,
            by_method=by_method,
        )
    except Refused as error:  # who calls from Python has no flags
        text = str(error).replace("--overwrite", "overwrite=True").replace("--accept-change", "accept_change=True")
        raise Refused(text, error.differences) from None


def stored_choice(path: PathLike, measure: str) -> dict[str, Any] | None:
    """What a probe chose for this measure when the file was begun; None where there is no such file or choice."""
    surface = _existing(Path(path))
    if surface is None:
        return None
    chosen: dict[str, Any] | None = surface.settings.get("measures", {}).get(measure, {}).get("chosen")
    return chosen


def described_plane(measure: Any, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Group]]:
    """What a result says of the plane of a measure, as attributes and groups; nothing where it has none.

    tensors  whether those of the axes are held too, as in a file; a result in memory says how they were made
    """
    plane = _plane_of(measure)
    if plane is None:
        return {}, {}
    cosine = float("nan") if plane.cosine is None else plane.cosine
    groups = {**direction_groups(plane, tensors), **getattr(measure, "groups", {})}
    return {DIGEST: plane.digest, "directions_cosine": cosine}, groups


def direction_groups(plane: Plane, tensors: bool = True) -> dict[str, Group]:
    """The axes of a plane as the groups of a file: tensors by name, recipe, length and digest.

    Of an axis that is drawn when it is read the recipe alone, from which `plane_in_file` draws it again.

    tensors  whether the tensors are stored, or the recipes alone
    """
    from lossmap.geometry.directions import DrawnAxis  # torch, which a survey of something else does without

    groups: dict[str, Group] = {}
    for name, axis, recipe, length in zip("xy", plane.axes, plane.recipes, plane.lengths, strict=False):
        arrays = {}
        if isinstance(axis, DrawnAxis):  # of a large model: drawn again by whoever reads it, and never stored
            recipe = {**recipe, DRAWN_SEED: str(axis.seed), DRAWN_INDEX: axis.index}
        elif tensors:
            arrays = {k: t.detach().cpu().numpy() for k, t in axis.items()}
        groups[f"directions/{name}"] = Group(arrays, {**recipe, "length": length, "digest": plane.digest})
    return groups


def _plane_of(measure: Any) -> Plane | None:
    """The plane that a measure is on; somebody's own measure may mean something else by that name."""
    plane = getattr(measure, "plane", None)
    return plane if hasattr(plane, "recipes") else None


def problems_of(measure: Any) -> dict[str, Problem]:
    """The problems that a measure reads, by split; none of a measure that has no problems."""
    problems = getattr(measure, "problems", None)
    if isinstance(problems, Mapping):
        return dict(problems)
    return {}


def measured_problems(measure: Any) -> list[Problem]:
    """The problems whose losses a measure reads, of tasks those of their subjects too."""
    owners = (measure, *getattr(measure, "subjects", ()))
    found = [*problems_of(measure).values(), *(getattr(owner, "problem", None) for owner in owners)]
    return [problem for problem in found if problem is not None]


def measured_with(measure: Any) -> dict[str, Any]:
    """What a measure depends on, as a program knows it, under the names that the command line has for the same."""
    problems = problems_of(measure)
    if not problems:
        return {}
    return settings_of(problems, getattr(measure, "autocast", None))


def read_as(measure: Any) -> dict[str, Any]:
    """The precision that a measure computes in, and how its loss is evaluated, as `measured_with` names them."""
    problems = problems_of(measure)
    first = next(iter(problems.values()), None)
    if first is None:
        return {}
    return {"precision": _precision(first, getattr(measure, "autocast", None)), **_evaluation_of(problems)}


def _evaluation_of(problems: Mapping[str, Problem]) -> dict[str, list[str]]:
    """The sentences on how losses are evaluated, as a setting; none where there are none."""
    notes = dict.fromkeys(note for problem in problems.values() for note in problem.notes)
    return {EVALUATION: list(notes)} if notes else {}


def settings_of(problems: Mapping[str, Problem], autocast: torch.dtype | None = None) -> dict[str, Any]:
    """What tells these problems, by split, from others: data, model, loss, precision."""
    from lossmap.data import datasets
    from lossmap.landscape.loss_name import loss_name

    first = next(iter(problems.values()))
    return {
        "data (SHA-256)": {split: datasets.digest(p.data) for split, p in problems.items()},
        "samples": {split: p.data.samples for split, p in problems.items()},
        MODEL: structure_digest(first.model),
        "loss": loss_name(first),
        "precision": _precision(first, autocast),
        **_evaluation_of(problems),
    }


def structure_digest(model: torch.nn.Module) -> str:
    """Of the modules' names, classes and settings: what a model computes with its weights, but for its own code.

    A compiled model has that of the model within.
    """
    model = getattr(model, "_orig_mod", model)
    lines = [f"{name} {type(m).__qualname__} {m.extra_repr()}" for name, m in model.named_modules()]
    text = re.sub(r"0x[0-9a-f]+", "", "\n".join(lines))  # addresses, where somebody's `extra_repr` shows an object
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _precision(problem: Problem, autocast: torch.dtype | None) -> str:
    dtype = next((p.dtype for p in problem.model.parameters() if p.is_floating_point()), "float32")
    return str(autocast or dtype).removeprefix("torch.")


def _device_of(measure: Any) -> str:
    problem = next(iter(problems_of(measure).values()), None)
    if problem is None:
        return "cpu"
    return str(next((p.device for p in problem.model.parameters()), "cpu"))


# ---- files that the other way began


def adopted(
    path: PathLike, identity: Mapping[str, Any], measures: Measures, digest: str
) -> tuple[dict[str, Any], Measures]:
    """The settings to open a file with: those stored, where it was begun the other way and what both know is equal.

    identity  settings of the file; of a program they say so under `WRITTEN_BY`
    measures  {name: (fields, settings)}
    digest    of the plane

    Raises Refused naming each difference of what both know.
    """
    surface = _existing(Path(path))
    if surface is None:
        return dict(identity), measures
    stored = surface.settings.get("file", {})
    kept, unequal = dict(identity), []
    if stored and (WRITTEN_BY in stored) != (WRITTEN_BY in identity):
        kept, known = dict(stored), str(surface.attributes.get(DIGEST, ""))
        if known and digest and known != digest:
            unequal.append(("plane (origin and axes, SHA-256)", known, digest))
    merged: dict[str, Any] = {}
    for name, (fields, settings) in measures.items():
        there = surface.settings.get("measures", {}).get(name)
        if there is not None and MODEL not in there:  # begun on the command line of version 0.1
            settings = {key: value for key, value in settings.items() if key != MODEL}
        if there is None or (BY_NAME in there) == (BY_NAME in settings):
            merged[name] = (fields, settings)
            continue
        shared = _shared(to_plain(dict(there)), to_plain(dict(settings)))
        unequal += [(f"{name}: {what}", a, b) for what, a, b in differences(*shared)]
        merged[name] = (fields, there)
    if unequal:
        described = "; ".join(f"{name} is {short(a)} in the file, {short(b)} asked for" for name, a, b in unequal)
        raise Refused(f"{path} holds another survey: {described}. Ask for the same, or name another file", unequal)
    return kept, merged


def _existing(path: Path) -> Surface | None:
    """What is there already; None where nothing is, or nothing that can be continued."""
    if not path.exists() and not journal_of(path).exists():
        return None
    try:
        return read(path)
    except (NotASurface, OSError):  # to open it says what is wrong
        return None


def _shared(there: dict[str, Any], asked: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both settings, but for what one of them does not know, and for losses known by other names."""
    names = there.keys() & asked.keys()
    if not all(settings.get("loss") in LOSSES for settings in (there, asked)):
        names -= {"loss"}
    return {n: there[n] for n in names}, {n: asked[n] for n in names}
