"""The rows in which version 0.1 kept the readings of a spectrum's tasks: read, no longer written.

There every task had one row of float64, as long as the longest of them, in the field `spectrum_result` (tasks, length):
how many arrays there are, then for each of them its dimensions, its shape and its numbers; NaN behind the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lossmap.spectra.task_arrays import Arrays

ROW = "spectrum_result"
TRACE_METHODS = ("xtrace", "hutch++", "hutchinson", "unit vectors")  # by the number that stood in the row
END_NUMBERS = ("products", "converged", "tolerance", "scale", "confidence", "others")  # behind the two limits


TYPES = {"products": np.int64, "size": np.int64, "terms": np.int64, "converged": np.bool_}  # all else is float64


def arrays_of_row(kind: str, row: np.ndarray) -> Arrays:
    """The named arrays of a task of this kind, from its row (length,).

    Raises ValueError where there was no such kind.
    """
    if kind not in _DECODERS:
        raise ValueError(f"version 0.1 had no task of the kind {kind!r}; its kinds were {', '.join(_DECODERS)}")
    arrays = _DECODERS[kind](_parts(row))
    return {name: np.asarray(array, TYPES.get(name.rpartition("_")[2])) for name, array in arrays.items()}


def _parts(row: np.ndarray) -> list[np.ndarray]:
    parts, at = [], 1
    for _ in range(int(row[0])):
        dims = int(row[at])
        shape = tuple(int(length) for length in row[at + 1 : at + 1 + dims])
        at += 1 + dims
        size = int(np.prod(shape))
        parts.append(row[at : at + size].reshape(shape))
        at += size
    return parts


def _gradient(parts: Sequence[np.ndarray]) -> Arrays:
    return dict(zip(("loss", "gradient_norm"), parts, strict=True))


def _whole(parts: Sequence[np.ndarray]) -> Arrays:
    return dict(zip(("matrix", "asymmetry", "epsilon"), parts, strict=True))


def _ends(parts: Sequence[np.ndarray]) -> Arrays:
    arrays: dict[str, np.ndarray] = {}
    for end, own in (("top", parts[:5]), ("bottom", parts[5:])):
        values, residuals, numbers, shares, vectors = own
        if not values.size:  # an end that was not asked for
            continue
        arrays |= {end: values, f"{end}_error": residuals, f"{end}_limits": numbers[:2]}
        arrays |= {f"{end}_{name}": number for name, number in zip(END_NUMBERS, numbers[2:], strict=True)}
        arrays[f"{end}_share_by_tensor"] = shares
        if vectors.size:
            arrays[f"{end}_vectors"] = vectors.astype(np.float32)  # they were float32 before they stood in the row
    return arrays


def _trace(parts: Sequence[np.ndarray]) -> Arrays:
    value, error, terms, products, method, size, target = parts[0].tolist()
    named = {"value": value, "error": error, "terms": terms, "products": products, "size": size, "error_target": target}
    return {**named, "method": TRACE_METHODS[int(method)]}


def _runs(parts: Sequence[np.ndarray]) -> Arrays:
    alphas, betas, numbers = parts[::3], parts[1::3], parts[2::3]  # each run left three arrays
    return {
        "alpha": np.concatenate(alphas),
        "beta": np.concatenate(betas),
        "steps": np.array([len(alpha) for alpha in alphas], dtype=np.int64),
        "weight": np.array([weight for weight, _ in numbers]),
        "exact": np.array([exact for _, exact in numbers], dtype=np.uint8),
    }


def _block(parts: Sequence[np.ndarray]) -> Arrays:
    values, numbers, entries, *runs = parts
    arrays = {"eigenvalues": values}
    arrays |= dict(zip(("size", "error", "epsilon", "products", "converged"), numbers, strict=True))
    if entries.size:
        arrays["matrix"] = entries
    return {**arrays, **_runs(runs)} if runs else arrays


def _block_ends(parts: Sequence[np.ndarray]) -> Arrays:
    values, residuals, numbers = parts
    named = dict(zip(("products", "converged", "scale", "tolerance"), numbers, strict=True))
    return {"eigenvalues": values, "error": residuals, **named}


def _leak(parts: Sequence[np.ndarray]) -> Arrays:
    return dict(zip(("inside", "outside"), parts, strict=True))


_DECODERS: dict[str, Callable[[Sequence[np.ndarray]], Arrays]] = {
    "gradient": _gradient,
    "whole": _whole,
    "ends": _ends,
    "trace": _trace,
    "density": _runs,
    "block": _block,
    "block_ends": _block_ends,
    "leak": _leak,
}
