"""The planes of files as text: their tensors, lengths and recipes, the cosines between their directions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lossmap.io import legacy
from lossmap.io.read import read, read_group
from lossmap.io.surface import Group


def directions_text(path: str) -> str:
    """The plane of a result or direction file, for a person. Raises ValueError where the file has none."""
    title, groups = directions_in(path)
    lines = [f"{path}: {title}"]
    flat = {}
    for name, group in groups.items():
        recipe = ", ".join(f"{k} {v}" for k, v in group.attributes.items() if k not in ("digest", "length"))
        flat[name] = _flat(group)
        length = np.linalg.norm(flat[name]) if group.arrays else float(group.attributes.get("length", np.nan))
        text = f"  {name}: {len(group.arrays)} tensors, {flat[name].size:,} entries, length {length:.6g}"
        lines.append(f"{text}; {recipe}" if recipe else text)
    if {"x", "y"} <= set(flat) and flat["x"].size == flat["y"].size > 0:
        lines.append(f"  cosine between them: {cosine(flat['x'], flat['y']):.6f}")
    digest = next((g.attributes["digest"] for g in groups.values() if "digest" in g.attributes), None)
    if digest is not None:
        lines.append(f"  SHA-256 of origin and directions: {digest}")
    return "\n".join(lines)


def compared_text(first: str, second: str) -> str:
    """How the planes of two files lie to each other, for a person.

    Raises ValueError where one of them has no plane, or no tensors, and where these are not of one model.
    """
    (_, one), (_, other) = directions_in(first), directions_in(second)
    for path, groups in ((first, one), (second, other)):
        if not any(group.arrays for group in groups.values()):
            raise ValueError(f"{path} holds only the recipes of its directions: there is nothing to compare")
    flat = [{name: _flat(group) for name, group in groups.items() if group.arrays} for groups in (one, other)]
    sizes = {v.size for of in flat for v in of.values()}
    if len(sizes) > 1:
        raise ValueError(
            f"{first} and {second} hold directions of {' and '.join(f'{n:,}' for n in sorted(sizes))} entries: they "
            "are of two models, or move other parameters"
        )
    digests = [
        {str(g.attributes["digest"]) for g in groups.values() if "digest" in g.attributes} for groups in (one, other)
    ]
    lines = []
    if all(digests):
        same = digests[0] == digests[1]
        lines.append("origin and directions are " + ("the same (SHA-256)" if same else "not the same (SHA-256)"))
    for a, x in flat[0].items():
        for b, y in flat[1].items():
            scale = float(np.linalg.norm(x))
            apart = float(np.linalg.norm(x - y)) / scale if scale else np.nan
            lines.append(
                f"  {a} of {first}, {b} of {second}: cosine {cosine(x, y):.6f}, |difference| / |{a}| {apart:.3g}"
            )
    return "\n".join(lines)


def directions_in(path: str) -> tuple[str, Mapping[str, Group]]:
    """What a file is, and its directions by axis. Raises ValueError where it has none."""
    try:
        return str(read(path).grid), {name: read_group(path, f"directions/{name}") for name in _axes_in(path)}
    except ValueError:
        directions = legacy.directions(path)
        groups = {n: Group({str(i): np.asarray(a) for i, a in enumerate(arrays)}) for n, arrays in directions.items()}
        return "directions of the original tool", groups


def _flat(group: Group) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(np.asarray(a, np.float64).ravel() for a in group.arrays.values())])


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    """The cosine between two vectors (n,), NaN where one is zero."""
    scale = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / scale) if scale > 0 else float("nan")


def _axes_in(path: str) -> list[str]:
    axes = [name.removeprefix("directions/") for name in read(path).groups if name.startswith("directions/")]
    if not axes:
        raise ValueError(f"{path} holds no directions")
    return axes
