"""What a task leaves behind, as named arrays, and the values that are made of the arrays again.

Each array has a shape and a precision of its own, so that eigenvectors take 4 bytes a number. By kind of task, where
m counts eigenvalues, n rows of the matrix, r Lanczos runs and `END` is top or bottom:

    gradient    loss, gradient_norm, loss_error, gradient_norm_error ()
    whole       matrix (n, n) float64; asymmetry, epsilon, rounding (); the last NaN where it was not measured
    ends        for each END that is wanted: END, END_error (m,); END_limits (2,): above and below; END_products,
                END_converged, END_tolerance, END_scale, END_confidence, END_others (); END_rounding (), the part of the
                errors that allows for it; END_share_by_tensor (m, tensors); END_vectors (n, m) float32 where they are
                to be kept
    trace       value, error, terms, products, size, error_target (); method, text; on request diagonal and
                diagonal_error (n,), with the names and the shapes, as texts, of the tensors that they are of
    density     alpha, beta (steps of all runs,); steps, weight, exact (r,); rounding (), as above
    block       eigenvalues (m,); size, error, epsilon, products, converged (); matrix (n, n) where it was made whole,
                the arrays of a density where not
    block_ends  eigenvalues, error, limits (2,); products, converged, scale, tolerance, rounding, confidence ()
    leak        inside, outside (probes,): squared lengths of what stays in the block, and of what leaves it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import nan
from typing import Any

import numpy as np
import torch

from lossmap.geometry.parameter_vector import Layout
from lossmap.linalg.dense import DenseMatrix
from lossmap.linalg.diagonal import Diagonal
from lossmap.linalg.eigenpairs import EigenPairs
from lossmap.linalg.entry_sums import EntrySums
from lossmap.linalg.quadrature import LanczosRun
from lossmap.linalg.spectral_density import Density
from lossmap.linalg.trace import Trace
from lossmap.spectra.block import Block
from lossmap.spectra.summaries import shares_of

Arrays = Mapping[str, Any]  # name -> array, or number
ENDS = ("top", "bottom")
SUMS = ("sizes", "diagonal", "diagonal_error", "squares", "squares_error")


def of_matrix(whole: DenseMatrix) -> Arrays:
    """The arrays of a matrix that was made whole."""
    rounding = nan if whole.rounding is None else whole.rounding
    return {"matrix": whole.entries, "asymmetry": whole.asymmetry, "epsilon": whole.epsilon, "rounding": rounding}


def to_matrix(arrays: Arrays, dtype: torch.dtype) -> DenseMatrix:
    """The matrix of `of_matrix`, for products in this precision."""
    entries, asymmetry, epsilon = np.asarray(arrays["matrix"]), float(arrays["asymmetry"]), float(arrays["epsilon"])
    return DenseMatrix(entries, asymmetry, epsilon, dtype, to_rounding([arrays]))


def to_rounding(parts: Sequence[Arrays]) -> float | None:
    """The largest rounding that was measured for these arrays; None where none was, as by version 0.1."""
    measured = [float(arrays.get("rounding", nan)) for arrays in parts]
    return max((m for m in measured if m == m), default=None)


def of_end(end: str, pairs: EigenPairs, layout: Layout, vectors: bool) -> Arrays:
    """The arrays of one end of a spectrum; its eigenvectors too where `vectors`."""
    shares = [list(shares.values()) for shares in shares_of(((end, pairs),), layout).values()]
    arrays: dict[str, Any] = {
        end: pairs.values,
        f"{end}_error": pairs.residuals,
        f"{end}_limits": np.array(pairs.limits, dtype=np.float64),
        f"{end}_share_by_tensor": np.array(shares, dtype=np.float64),
    }
    for name in ("products", "converged", "tolerance", "scale", "confidence", "others", "rounding"):
        arrays[f"{end}_{name}"] = getattr(pairs, name)
    if vectors:
        arrays[f"{end}_vectors"] = pairs.vectors.float().cpu().numpy()
    return arrays


def to_end(end: str, arrays: Arrays, size: int, dtype: torch.dtype) -> EigenPairs | None:
    """The eigenpairs of `of_end`, vectors (size, m) or, where none were kept, (size, 0); None where none were asked."""
    if end not in arrays:
        return None
    vectors = np.array(arrays.get(f"{end}_vectors", np.zeros((size, 0))))
    above, below = (float(limit) for limit in arrays[f"{end}_limits"])
    return EigenPairs(
        values=np.asarray(arrays[end]),
        vectors=torch.from_numpy(vectors).to(dtype),
        residuals=np.asarray(arrays[f"{end}_error"]),
        limits=(above, below),
        products=int(arrays[f"{end}_products"]),
        converged=bool(arrays[f"{end}_converged"]),
        tolerance=float(arrays[f"{end}_tolerance"]),
        scale=float(arrays[f"{end}_scale"]),
        confidence=float(arrays[f"{end}_confidence"]),
        others=float(arrays[f"{end}_others"]),
        rounding=float(arrays.get(f"{end}_rounding", nan)),
    )


def to_shares(arrays: Arrays, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each eigenvector of both ends the share of its squared length in each tensor, as `shares_of` names them."""
    shares = {}
    for end in ENDS:
        for j, row in enumerate(arrays.get(f"{end}_share_by_tensor", ())):
            shares[f"{end} {j + 1}"] = dict(zip(names, row.tolist(), strict=True))
    return shares


def of_trace(trace: Trace) -> Arrays:
    """The numbers of an estimate of the trace, and its sums over entries by tensor."""
    sums: dict[str, Any] = {}
    if trace.sums is not None:
        sums = {f"sums_{k}": getattr(trace.sums, k) for k in SUMS} | {"sums_names": np.array(trace.sums.names)}
    own = trace.diagonal
    if own is not None:
        shapes = [" ".join(map(str, shape)) for shape in own.shapes]
        sums |= {"diagonal": own.values, "diagonal_error": own.errors}
        sums |= {"diagonal_names": np.array(own.names, dtype=str), "diagonal_shapes": np.array(shapes, dtype=str)}
    return sums | {
        "value": trace.value,
        "error": trace.error,
        "terms": trace.terms,
        "products": trace.products,
        "size": trace.size,
        "error_target": trace.target,
        "method": trace.method,
    }


def to_trace(arrays: Arrays) -> Trace:
    """The estimate of `of_trace`."""
    return Trace(
        float(arrays["value"]),
        float(arrays["error"]),
        int(arrays["terms"]),
        int(arrays["products"]),
        str(arrays["method"]),
        int(arrays["size"]),
        float(arrays["error_target"]),
        _to_sums(arrays),
        _to_diagonal(arrays),
    )


def _to_sums(arrays: Arrays) -> EntrySums | None:
    """The sums of `of_trace`; None of files of version 0.1, which have none."""
    if "sums_names" not in arrays:
        return None
    names = _texts(arrays, "sums_names")
    values = {k: np.asarray(arrays[f"sums_{k}"]) for k in SUMS}
    return EntrySums(names, terms=int(arrays["terms"]), method=str(arrays["method"]), **values)


def _to_diagonal(arrays: Arrays) -> Diagonal | None:
    """The diagonal of `of_trace`; None where it was not requested."""
    if "diagonal" not in arrays:
        return None
    shapes = tuple(tuple(map(int, text.split())) for text in _texts(arrays, "diagonal_shapes"))
    values, errors = np.asarray(arrays["diagonal"]), np.asarray(arrays["diagonal_error"])
    return Diagonal(
        values, errors, int(arrays["terms"]), str(arrays["method"]), _texts(arrays, "diagonal_names"), shapes
    )


def _texts(arrays: Arrays, name: str) -> tuple[str, ...]:
    """An array of texts, which a file gives back as bytes."""
    return tuple(t.decode() if isinstance(t, bytes) else str(t) for t in np.asarray(arrays[name]).tolist())


def of_runs(runs: Sequence[LanczosRun]) -> Arrays:
    """The tridiagonal matrices of Lanczos runs, one after the other."""
    return {
        "alpha": np.concatenate([run.alpha for run in runs]),
        "beta": np.concatenate([run.beta for run in runs]),
        "steps": np.array([len(run.alpha) for run in runs], dtype=np.int64),
        "weight": np.array([run.weight for run in runs], dtype=np.float64),
        "exact": np.array([run.exact for run in runs], dtype=np.uint8),
    }


def to_runs(arrays: Arrays) -> Iterator[LanczosRun]:
    """The runs of `of_runs`."""
    ends = np.cumsum(arrays["steps"])
    for run, (end, steps) in enumerate(zip(ends, arrays["steps"], strict=True)):
        own = slice(int(end - steps), int(end))
        weight, exact = float(arrays["weight"][run]), bool(arrays["exact"][run])
        yield LanczosRun(np.asarray(arrays["alpha"])[own], np.asarray(arrays["beta"])[own], weight, exact)


def of_block(block: Block) -> Arrays:
    """The arrays of a diagonal block. Its seconds are left out: the arrays are the same bits on every rank."""
    arrays: dict[str, Any] = {"eigenvalues": block.values}
    for name in ("size", "error", "epsilon", "products", "converged", "kinks"):
        arrays[name] = getattr(block, name)
    if block.entries is not None:
        arrays["matrix"] = block.entries
    if block.density is not None:
        rounding = nan if block.density.rounding is None else block.density.rounding
        arrays |= {**of_runs(block.density.runs), "rounding": rounding}
    return arrays


def to_block(name: str, tensors: tuple[str, ...], arrays: Arrays) -> Block:
    """The block of `of_block`, made of these tensors."""
    size, epsilon = int(arrays["size"]), float(arrays["epsilon"])
    density = None
    if "alpha" in arrays:
        density = Density(tuple(to_runs(arrays)), size, epsilon, rounding=to_rounding([arrays]))
    return Block(
        name,
        tensors,
        size,
        np.asarray(arrays["eigenvalues"]),
        float(arrays["error"]),
        arrays.get("matrix"),
        density,
        epsilon,
        products=int(arrays["products"]),
        converged=bool(arrays["converged"]),
        kinks=float(arrays.get("kinks", 0.0)),
    )


def of_block_ends(pairs: EigenPairs) -> Arrays:
    """The ends of the whole matrix, beside which the blocks are set."""
    arrays: dict[str, Any] = {"eigenvalues": pairs.values, "error": pairs.residuals}
    for name in ("products", "converged", "scale", "tolerance", "rounding", "confidence"):
        arrays[name] = getattr(pairs, name)
    arrays["limits"] = np.array(pairs.limits, dtype=np.float64)
    return arrays


def to_block_ends(arrays: Arrays) -> EigenPairs:
    """The eigenvalues of `of_block_ends`, without vectors; version 0.1 kept no limits."""
    above, below = (float(limit) for limit in arrays.get("limits", (nan, nan)))
    return EigenPairs(
        values=np.asarray(arrays["eigenvalues"]),
        vectors=torch.zeros(0, len(arrays["eigenvalues"])),
        residuals=np.asarray(arrays["error"]),
        limits=(above, below),
        products=int(arrays["products"]),
        converged=bool(arrays["converged"]),
        tolerance=float(arrays["tolerance"]),
        scale=float(arrays["scale"]),
        confidence=float(arrays.get("confidence", nan)),
        rounding=float(arrays.get("rounding", nan)),
    )
