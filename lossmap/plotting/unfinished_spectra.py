"""The spectra of a file whose tasks are not all done: what there is of them, drawn from the tasks that are.

A finished file holds its spectra in groups `spectrum/LABEL`; an unfinished one, as a killed process or a job at its
time limit leaves it, holds `tasks/LABEL/KIND/NAME` alone (spectra/task_arrays.py describes their arrays). Of these come
the ends with errors and limits, the trace, and the nodes of the density; its band comes with the complete result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lossmap.io.read import Damaged, Group, Surface, read_group

MEASURE = "spectrum"
MISSING = "missing"  # attribute: what of a spectrum is not there yet, in words
LIMITS = {"top": ("upper_limit", 0), "bottom": ("lower_limit", 1)}  # of an end, and which of its two limits it is
PARTS = {"ends": "eigenvalues", "trace": "trace", "density": "density", "block": "layers"}
DRAWN = ("ends", "trace", "density", "whole")
UNITS = {"crossentropy": "nats"}  # of the losses whose unit the settings tell


def with_unfinished(surface: Surface) -> Surface:
    """The surface, with what there is of its spectra where their tasks are not all done; any other as it is.

    Raises Damaged where what the tasks left does not fit together.
    """
    if MEASURE not in surface.status or any(name.startswith("spectrum/") for name in surface.groups):
        return surface
    settings = surface.settings.get("measures", {}).get(MEASURE, {})
    subjects: dict[str, dict[str, list[Group]]] = {}
    for name in surface.groups:
        parts = name.split("/")
        if parts[0] == "tasks" and len(parts) > 2:
            subjects.setdefault(parts[1], {}).setdefault(parts[2], []).append(_with_arrays(surface, name))
    try:
        spectra = {f"spectrum/{label}": _spectrum(label, done, settings) for label, done in subjects.items()}
    except (LookupError, TypeError, ValueError, np.linalg.LinAlgError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise Damaged(f"{surface.source} is damaged: what its groups tasks hold does not fit ({reason})") from error
    return replace(surface, groups={**surface.groups, **spectra})


def _with_arrays(surface: Surface, name: str) -> Group:
    """A group of a task; of those that `read` left in the file the arrays that are drawn are read now."""
    group = surface.groups[name]
    if group.arrays or not surface.source or name.split("/")[2] not in DRAWN:
        return group
    return read_group(surface.source, name)


def missing_parts(surface: Surface) -> dict[str, str]:
    """By label of its unfinished spectra, what is not there yet, in words."""
    groups = {name.partition("/")[2]: group for name, group in surface.groups.items() if name.startswith("spectrum/")}
    return {label: str(group.attributes[MISSING]) for label, group in groups.items() if MISSING in group.attributes}


def _spectrum(label: str, done: Mapping[str, list[Group]], settings: Mapping[str, Any]) -> Group:
    """What the tasks of one subject that are done, by their kind, say of its spectrum."""
    arrays: dict[str, Any] = {}
    attributes: dict[str, Any] = {"label": label, "matrix": _matrix(label, settings)}
    loss = str(settings.get("loss"))
    if loss in UNITS:
        attributes["unit"] = UNITS[loss]
    for group in done.get("ends", ()):
        for end, (limit, which) in LIMITS.items():
            if end in group:
                arrays |= {end: np.asarray(group[end]), f"{end}_error": np.asarray(group[f"{end}_error"])}
                attributes[limit] = float(np.asarray(group[f"{end}_limits"])[which])
                attributes[f"{end}_confidence"] = float(group[f"{end}_confidence"])
    for group in done.get("trace", ()):
        attributes |= {"trace": float(group["value"]), "trace_error": float(group["error"])}
        attributes["size"] = int(group["size"])
    for group in done.get("whole", ()):
        values = np.linalg.eigvalsh(np.asarray(group["matrix"]))
        arrays |= {"node": values, "weight": np.full(values.size, 1.0 / values.size)}
        attributes |= {"size": values.size, "trace": float(values.sum())}
    if done.get("density"):
        arrays["node"], arrays["weight"] = _nodes(done["density"])
        attributes["density_probes"] = sum(len(group["steps"]) for group in done["density"])
    missing = ", ".join(_missing(done, settings))
    if missing:
        attributes[MISSING] = missing
    return Group(arrays, attributes)


def _matrix(label: str, settings: Mapping[str, Any]) -> str:
    """Which matrix a subject is of; where the file has both, its label ends in it."""
    matrix = str(settings.get("matrix", "hessian"))
    return label.rpartition(" ")[2] if matrix == "both" else matrix


def _nodes(groups: list[Group]) -> tuple[np.ndarray, np.ndarray]:
    """The nodes of all Lanczos runs, ascending, and their weights, which add up to one: (m,) each."""
    nodes, weights = [], []
    for group in groups:
        first = 0
        for steps, share in zip(np.asarray(group["steps"]), np.asarray(group["weight"]), strict=True):
            own = slice(first, first + int(steps))
            alpha, beta = np.asarray(group["alpha"])[own], np.asarray(group["beta"])[own][:-1]
            values, vectors = np.linalg.eigh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))
            nodes.append(values)
            weights.append(vectors[0] ** 2 * share)
            first += int(steps)
    every, shares = np.concatenate(nodes), np.concatenate(weights)
    order = np.argsort(every, kind="stable")
    return every[order], shares[order] / shares.sum()


def _missing(done: Mapping[str, list[Group]], settings: Mapping[str, Any]) -> Iterator[str]:
    """What was asked for and is not there, or not all of it."""
    wanted = {
        "ends": bool(settings.get("top") or settings.get("bottom")),
        "trace": bool(settings.get("trace_products")),
        "density": bool(settings.get("density")),
        "block": bool(settings.get("by") or settings.get("patterns")),
    }
    for kind, is_wanted in wanted.items():
        count = len(done.get(kind, ()))
        if not is_wanted or (kind != "block" and done.get("whole")):
            continue
        probes = settings.get("density_probes")
        if kind == "density" and count:
            if probes and count < probes:
                yield f"{probes - count} of {probes} probes of the density"
            yield "the error band of the density"
        elif kind == "block":
            yield PARTS[kind]  # their figure is made of all of them
        elif not count:
            yield PARTS[kind]
