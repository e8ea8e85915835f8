"""The plane of a file as text: its tensors, lengths and recipes, and the cosine between its directions."""

from __future__ import annotations

import numpy as np

from lossmap.io import legacy
from lossmap.io.read import read, read_group
from lossmap.io.surface import Group


def directions_text(path: str) -> str:
    """The plane of a result or direction file, for a person. Raises ValueError where the file has none."""
    try:
        groups = {name: read_group(path, f"directions/{name}") for name in _axes_in(path)}
        lines = [f"{path}: {read(path).grid}"]
    except ValueError:
        directions = legacy.directions(path)
        groups = {n: Group({str(i): np.asarray(a) for i, a in enumerate(arrays)}) for n, arrays in directions.items()}
        lines = [f"{path}: directions of the original tool"]
    flat = {}
    for name, group in groups.items():
        recipe = ", ".join(f"{k} {v}" for k, v in group.attributes.items() if k not in ("digest", "length"))
        arrays = [np.asarray(a, np.float64).ravel() for a in group.arrays.values()]
        flat[name] = np.concatenate([np.zeros(0), *arrays])
        length = np.linalg.norm(flat[name]) if arrays else float(group.attributes.get("length", np.nan))
        lines.append(f"  {name}: {len(arrays)} tensors, {flat[name].size:,} entries, length {length:.6g}; {recipe}")
    if len(flat) == 2 and flat["x"].size == flat["y"].size > 0:
        lines.append(f"  cosine between them: {cosine(flat['x'], flat['y']):.6f}")
    return "\n".join(lines)


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    """The cosine between two vectors (n,), NaN where one is zero."""
    scale = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / scale) if scale > 0 else float("nan")


def _axes_in(path: str) -> list[str]:
    axes = [name.removeprefix("directions/") for name in read(path).groups if name.startswith("directions/")]
    if not axes:
        raise ValueError(f"{path} holds no directions")
    return axes
