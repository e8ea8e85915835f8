"""What the groups beside the fields must hold to be drawn or reported: their arrays with shapes, and numbers by name.

    check_groups(surface, "layers")    raises Damaged with the group, the array, what it is and what it must be

Digests tell a file that was changed from the one that was written. They do not tell one whose parts never fitted: files
of version 0.1 have none, and a script that writes a group has its own view of it. What only some versions write may be
absent; what is there must have the shape that it has beside the others.

A shape is given by letters: one letter is one length within a group, a number is that number.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping

import numpy as np

from lossmap.io.hdf5_open import Damaged
from lossmap.io.surface import Group, Surface
from lossmap.report.connection import STATISTICS
from lossmap.report.stored import names_in_file

LAYOUTS: Mapping[str, Mapping[str, str]] = {  # by kind: shapes of arrays of numbers
    "spectrum": {
        "top": "m", "top_error": "m", "bottom": "l", "bottom_error": "l", "node": "k", "weight": "k", "tick": "t",
        "cumulative": "t", "cumulative_low": "t", "cumulative_high": "t", "mass_at": "a", "mass_below": "a 3",
        "mass_above": "a 3", "share_by_tensor": "v s", "strength": "p", "largest": "p", "smallest": "p",
        "retrained_largest": "p", "retrained_smallest": "p", "entry_sum_rows": "u", "diagonal_sum": "u",
        "diagonal_sum_error": "u", "diagonal_sum_interval": "u 2", "square_sum": "u", "square_sum_error": "u",
        "square_sum_interval": "u 2",
    },
    "layers": {
        "size": "b", "largest": "b", "smallest": "b", "spread": "b", "condition": "b", "error": "b", "floor": "b",
        "gradient_norm": "b", "gradient_norm_error": "b", "converged": "b", "positive": "b 2", "negative": "b 2",
        "zero": "b 2", "condition_beyond_floor": "b", "outside": "b", "signal_active": "q", "signal_dead": "q",
        "signal_gradient": "q", "signal_input": "q", "signal_output": "q", "signal_units": "q",
    },
    "sharpness": {
        f"ball_{name}": "r" for name in (
            "radius", "average", "average_error", "rounding", "sam", "sam_error", "worst", "worst_error", "draws",
            "starts", "steps", "movable",
        )
    },
    "connection": {"t": "t"},
    "topology": {
        "x": "x", "minimum": "m", "saddle": "m", "into": "m", "exit": "m", "persistence": "m", "depth": "m",
        "error": "m", "area": "m", "at_edge": "m", "is_real": "m", "index": "m", "saddle_index": "m",
    },
    "evolution": {
        "step": "s", "eigenvalue": "s r", "residual": "s r", "overlap": "s s", "cosine": "e e", "owner": "e",
        "spread": "e", "projection": "e c", "track": "s r", "track_value": "k s", "track_cosine": "k s", "loss": "s",
        "curvature_effective_rank": "s", "curvature_lambda_max": "s", "curvature_lambda_min": "s",
        "curvature_log_volume": "s", "curvature_negative_mass": "s", "smallest_eigenvalue": "s", "negative_share": "s",
        "negative_share_low": "s", "negative_share_high": "s", "quantiles": "s q", "explained": "f",
    },
    "path": {
        "x": "p", "y": "p", "step": "p", "loss": "p", "residual": "p", "plane_loss": "p", "cosine": "p",
        "cosine_error": "p", "distance": "p", "rounding": "p",
        "learning_rate": "p",
    },
}  # fmt: skip
TEXTS: Mapping[str, Mapping[str, str]] = {  # and of arrays of texts
    "spectrum": {"vector": "v", "tensor": "s", "entry_sum_of": "u"},
    "layers": {"block": "b", "kind": "b", "verdict": "b", "module": "b", "why": "b", "signal_kind": "q",
               "signal_module": "q"},
    "sharpness": {"ball": "r"},
    "topology": {"sign": "m", "saddle_sign": "m"},
}  # fmt: skip
REQUIRED: Mapping[str, tuple[str, ...]] = {  # what is always there, by kind; sharpness without balls is whole
    "layers": ("block", "size", "largest", "smallest", "floor", "positive", "negative", "zero", "kind"),
    "connection": ("t",),
    "topology": ("x", "values", "basin", "minimum", "saddle", "into", "persistence", "error", "is_real"),
    "evolution": ("step", "eigenvalue", "overlap", "cosine", "owner", "spread", "projection", "track", "track_value",
                  "principal_cosine", "explained", "curvature_effective_rank", "curvature_lambda_min",
                  "curvature_log_volume", "curvature_negative_mass"),
    "path": ("x",),
}  # fmt: skip
NEWER = ("ball_sam_error", "ball_worst_error", "ball_movable")  # than other arrays beside which they stand
TOGETHER: Mapping[str, tuple[tuple[str, ...], ...]] = {  # where one of these is there, all are
    "spectrum": (
        ("top", "top_error"), ("bottom", "bottom_error"), ("node", "weight"),
        ("tick", "cumulative", "cumulative_low", "cumulative_high"), ("mass_at", "mass_below", "mass_above"),
        ("vector", "tensor", "share_by_tensor"), ("strength", "largest", "smallest"),
        ("entry_sum_of", "entry_sum_rows", "diagonal_sum", "diagonal_sum_error", "diagonal_sum_interval", "square_sum",
         "square_sum_error", "square_sum_interval"),
    ),
    "sharpness": (("ball", *(name for name in LAYOUTS["sharpness"] if name not in NEWER)),),
    "topology": (("sign", "saddle_sign", "index", "saddle_index"),),
    "evolution": (("negative_share", "negative_share_low", "negative_share_high"),),
}  # fmt: skip
PLACES = {"evolution": "evolution/results", "path": "trajectory"}  # of a kind, where the group is not called so
# attributes that figures and reports calculate with
NUMBERS = re.compile(
    r"size|samples|parameters|loss|trace|gradient_norm|seconds|report_version|products|theta|chance_cosine|condition|"
    r"noise_floor|diagonal_smallest|diagonal_largest|density_probes|density_steps|critical|largest|outside|whole_\w+|length|"
    r"(\w+_)?(limit|error|confidence|low|high|length|barrier|at|midpoint|middle|bump|products|scale|tolerance|rounding|"
    r"others|samples|turns|steps|bump_from|bump_to|passes)"
)
COUNTS = re.compile(r"size|samples|(\w+_)?(products|passes|probes|steps|turns)")  # of these, which are known
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {  # without which there is no report
    "spectrum": ("size", "products"), "layers": ("products",), "connection": ("length", "bn"),
}  # fmt: skip
FINITE = (  # arrays in which every number is known
    "node", "weight", "floor", "size", "step", "t", "x", "y", "cumulative", "cumulative_low", "cumulative_high"
)  # fmt: skip
BOUNDED = (  # arrays of eigenvalues, which are missing where they are not finite, and of counts
    "top", "bottom", "largest", "smallest", "retrained_largest", "retrained_smallest", "eigenvalue",
    "positive", "negative", "zero",
)  # fmt: skip
POSITIVE = re.compile(  # of arrays and attributes that are never below 0
    r"(\w+_)?(error|rounding|residual|spread)|size|weight|floor|strength|area|ball_(radius|draws|starts|steps)"
)
LARGEST = 1e307  # beyond which axes and their margins leave double precision, if they are linear
TEXT_ATTRIBUTES = ("parameters", "ends_at")  # of sharpness and of directions, in words
SIDES = ("unaligned", "curve")  # ways beside the line between two networks
REPORT = {"label": str, "findings": list, "parameters": int, "samples": int, "skipped": dict, "numbers": dict}
REQUIRED_IN_REPORT = ("label", "findings", "parameters", "samples")


def check_groups(surface: Surface, kind: str) -> None:
    """Raise Damaged where a group of a kind does not hold what it must, or not in the shape that it must have."""
    place = PLACES.get(kind, kind)
    for name, group in surface.groups.items():
        if name == place or (kind not in PLACES and name.startswith(f"{place}/")):
            check_group(name, group, kind, surface.source)


def checked(groups: Mapping[str, Group], kind: str, source: object = "") -> Mapping[str, Group]:
    """The groups of a kind by label, as they are. Raises Damaged as `check_groups`; source: a path, where it is one."""
    path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else ""
    for label, group in groups.items():
        check_group(f"{kind}/{label}", group, kind, path)
    return groups


def check_group(name: str, group: Group, kind: str, source: str = "") -> None:
    """As `check_groups`, of one group; source: the file that it is from, empty where there is none."""
    for misfit in _misfits(group, kind):
        raise Damaged(f"{source or 'what is to be drawn'} is damaged: {name} {misfit}")


def _misfits(group: Group, kind: str) -> Iterator[str]:
    """What is wrong with a group, in words that follow its name."""
    for missing in REQUIRED.get(kind, ()):
        if missing not in group:
            yield f"has no array {missing!r}"
    for names in TOGETHER.get(kind, ()):
        there = [name for name in names if name in group]
        if there:
            yield from (f"has {there[0]!r} and no array {name!r}" for name in names if name not in group)
    yield from _misshapen(group, kind)
    for name, array in group.arrays.items():
        yield from _out_of_range(name, np.asarray(array), math.inf if kind == "connection" else LARGEST)
    for name, value in group.attributes.items():
        if np.ndim(value) and isinstance(value, np.ndarray):
            yield f"has {value.size} values for its attribute {name!r}, which must be one"
        elif NUMBERS.fullmatch(name) and name not in TEXT_ATTRIBUTES and not _is_number(value):
            yield f"has {value!r} for its attribute {name!r}, which must be a number"
        elif POSITIVE.fullmatch(name) and _is_number(value) and value < 0:
            yield f"has {value!r} for its attribute {name!r}, which is never negative"
        elif COUNTS.fullmatch(name) and _is_number(value) and not (np.isfinite(value) and value >= 0):
            yield f"has {value!r} for its attribute {name!r}, which must be a number of things"
    if float(group.attributes.get("report_version", 1)) > 1:  # files of version 0.1 have not all of them
        yield from (f"has no attribute {n!r}" for n in ATTRIBUTES.get(kind, ()) if n not in group.attributes)
    yield from CHECKS.get(kind, lambda _: iter(()))(group)


def _out_of_range(name: str, array: np.ndarray, largest: float) -> Iterator[str]:
    """What is wrong with numbers that nothing measured has, or that are larger than a figure can show."""
    if array.dtype.kind not in "fiu" or not array.size:
        return
    known = array[np.isfinite(array)]
    if known.size and POSITIVE.fullmatch(name) and known.min() < 0:
        yield f"holds {known.min():.3g} in {name!r}, which is never negative"
    if array.dtype.kind == "f" and float(np.abs(known).max(initial=0.0)) > largest:
        yield f"holds {known[np.abs(known).argmax()]:.3g} in {name!r}, more than a figure or a report can show"


def _is_number(value: object) -> bool:
    return isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating))


def _misshapen(group: Group, kind: str) -> Iterator[str]:
    """Arrays that are no numbers (or texts), or whose lengths are not those of others."""
    known: dict[str, tuple[int, str]] = {}  # by letter: a length, and the array that has it
    for layout, kinds, words in ((LAYOUTS, "fiub", "numbers"), (TEXTS, "OUS", "texts")):
        for name, letters in layout.get(kind, {}).items():
            if name not in group:
                continue
            array, shape = np.asarray(group[name]), letters.split()
            if array.dtype.kind not in kinds and array.size:
                yield f"holds {array.dtype} in {name!r}, which must hold {words}"
            elif name in FINITE and kind != "path" and array.size and not np.isfinite(array).all():
                yield f"holds a number in {name!r} that is not finite"
            elif name in BOUNDED and array.dtype.kind == "f" and np.isinf(array).any():
                yield f"holds an infinite number in {name!r}"
            if array.ndim != len(shape):
                yield f"has the shape {array.shape} of {name!r}, which must have {len(shape)} dimensions"
                continue
            for length, letter in zip(array.shape, shape, strict=True):
                due, beside = (int(letter), "") if letter.isdigit() else known.setdefault(letter, (length, name))
                if length != due:
                    of = f", as of {beside!r}" if beside else ""
                    yield f"has the shape {array.shape} of {name!r}, where a length must be {due}{of}"


def _numbers(group: Group, name: str, length: int | None = None) -> Iterator[str]:
    """What is wrong with a row of numbers that must be there; of this length, or of one that is not 0."""
    if name not in group:
        yield f"has no array {name!r}"
        return
    array = np.asarray(group[name])
    due = "more than 0" if length is None else str(length)
    if array.dtype.kind not in "fiub" or array.ndim != 1 or (array.size != length if length else not array.size):
        yield f"has {array.dtype} of shape {array.shape} in {name!r}, which must be a row of {due} numbers"
    elif name.startswith(("nodes:", "weights:")) and not np.isfinite(array).all():
        yield f"holds a number in {name!r} that is not finite"


def _check_spectrum(group: Group) -> Iterator[str]:
    if "node" in group and not len(group["node"]):
        yield "has no numbers in 'node'"
    if "tick" in group and "node" not in group:
        yield "has 'tick' and no array 'node'"
    if "density_confidence" in group.attributes and "density_probes" not in group.attributes:
        yield "has no attribute 'density_probes'"


def _check_layers(group: Group) -> Iterator[str]:
    """Each block that is not zero has its eigenvalues, and as many weights as nodes."""
    names = names_in_file(map(str, group["block"]))
    for block, kind in zip(group["block"], group["kind"], strict=False):
        own = names[str(block)]
        if str(kind) != "zero":
            yield from _numbers(group, f"eigenvalues:{own}")
        if f"nodes:{own}" in group:
            yield from _numbers(group, f"nodes:{own}")
            yield from _numbers(group, f"weights:{own}", np.asarray(group[f"nodes:{own}"]).size)


def _check_connection(group: Group) -> Iterator[str]:
    """Losses of a split at least, and on each way beside the line what there is on it."""
    points = np.asarray(group["t"]).size
    yield from _numbers(group, "t")
    statistics = group.attributes.get("bn", "none")
    if statistics not in STATISTICS:
        yield f"has {statistics!r} for its attribute 'bn', which must be one of {', '.join(STATISTICS)}"
    own = [name for name in group.arrays if name.endswith(("_loss", "_acc")) and name.partition("_")[0] not in SIDES]
    if not any(name.endswith("_loss") for name in own):
        yield "has no array of losses, such as 'train_loss'"
    ways = [way for way in SIDES if any(name.startswith(f"{way}_") for name in group.arrays)]
    beside = [f"{way}_{name}" for way in ways for name in own]
    for name in [*own, *(name for name in beside if name.endswith("_loss") or name in group)]:
        yield from _numbers(group, name, points)


def _check_topology(group: Group) -> Iterator[str]:
    """Points lie on the grid, and minima merge into one another without a circle."""
    shape: tuple[int, ...] = (np.asarray(group["x"]).size,)
    if "y" in group:
        shape = (np.asarray(group["y"]).size, *shape)
    for name in ("values", "basin"):
        if np.asarray(group[name]).shape != shape:
            yield f"has the shape {np.asarray(group[name]).shape} of {name!r}; of this grid it must be {shape}"
    if not np.isfinite(np.asarray(group["values"], dtype=float)).any():
        yield "has no finite number in 'values'"
    minima = np.asarray(group["minimum"]).size
    for name, low, high in (("minimum", 0, int(np.prod(shape))), ("saddle", -1, int(np.prod(shape))),
                            ("into", -1, minima)):  # fmt: skip
        indices = np.asarray(group[name])
        if indices.dtype.kind not in "iu" or ((indices < low) | (indices >= high)).any():
            yield f"has entries of {name!r} that are no index from {low} to {high - 1}"
            return
    into = np.asarray(group["into"])
    for _ in range(minima.bit_length()):  # twice as far at each turn
        into = np.where(into >= 0, into[into], -1)
    if (into >= 0).any():
        yield "has minima in 'into' that merge into each other in a circle"


def _check_evolution(group: Group) -> Iterator[str]:
    steps = np.asarray(group["step"]).size
    cosines = np.asarray(group["principal_cosine"])
    if cosines.dtype.kind not in "fiu" or cosines.ndim != 2 or len(cosines) != max(0, steps - 1):
        shape = f"{cosines.dtype} of shape {cosines.shape}"
        yield f"has {shape} in 'principal_cosine', which must be {steps - 1} rows of numbers"
    yield from _numbers(group, "explained")
    yield from (f"has no attribute {n!r}" for n in ("theta", "chance_cosine", "verdict") if n not in group.attributes)
    for name, high in (("owner", steps), ("track", len(group["track_value"]))):
        indices = np.asarray(group[name])
        if indices.dtype.kind not in "iu" or (indices >= high).any():
            yield f"has entries of {name!r} that are no index up to {high - 1}"
    yield from _check_json(group, "answers", {})


def _check_health(group: Group) -> Iterator[str]:
    yield from _check_json(group, "report", REPORT)
    for name in group.arrays:
        yield from _numbers(group, name, 2)  # a value and its error


def _check_path(group: Group) -> Iterator[str]:
    shares = np.asarray(group.arrays.get("explained_variance_ratio", ()))
    if shares.dtype.kind not in "fiu" or shares.ndim > 1:
        shape = f"{shares.dtype} of shape {shares.shape}"
        yield f"has {shape} in 'explained_variance_ratio', which must be a row of numbers"
    yield from _numbers(group, "x")


def _check_json(group: Group, name: str, types: Mapping[str, type]) -> Iterator[str]:
    """What is wrong with an attribute that is a table as JSON."""
    try:
        table = json.loads(str(group.attributes[name]))
    except (KeyError, ValueError, RecursionError):
        yield f"has no table as JSON in its attribute {name!r}"
        return
    if not isinstance(table, dict):
        yield f"has no table as JSON in its attribute {name!r}"
        return
    for key, kind in types.items():
        if not isinstance(table.get(key, None if key in REQUIRED_IN_REPORT else kind()), kind):
            yield f"has {table.get(key)!r} for {key!r} in its attribute {name!r}, which must be of type {kind.__name__}"


CHECKS = {
    "spectrum": _check_spectrum, "layers": _check_layers, "connection": _check_connection,
    "topology": _check_topology, "evolution": _check_evolution, "health": _check_health, "path": _check_path,
}  # fmt: skip
