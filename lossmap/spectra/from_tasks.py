"""A spectrum from the arrays that its tasks have left: while they are done, and from a file that is not finished.

`lossmap.read` gives what an unfinished file holds of each spectrum: ends, trace, density, layers, as they came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import inf, nan
from typing import Any

import torch

from lossmap.geometry.parameter_vector import Layout
from lossmap.linalg.dense import DenseMatrix
from lossmap.linalg.eigenpairs import EigenPairs
from lossmap.linalg.spectral_density import Density
from lossmap.linalg.trace import Trace
from lossmap.spectra import task_arrays
from lossmap.spectra.block import with_noise_floor
from lossmap.spectra.block_spectra import BlockSpectra
from lossmap.spectra.request import SpectrumRequest
from lossmap.spectra.spectrum_result import Spectrum
from lossmap.spectra.summaries import common_masses, masses_of, shares_of
from lossmap.spectra.task_arrays import Arrays

ABOUT = "spectra"  # the attribute of a file with what is known of each matrix before any task is done
KINDS = {"ends": "extreme eigenvalues", "trace": "trace", "density": "density", "block": "layers"}  # in words

Done = Callable[[str], Mapping[str, Arrays]]  # kind of task -> the arrays of those that are done, by name


@dataclass(frozen=True)
class AboutMatrix:
    """What is known of a matrix before any task is done.

    size       n; frozen: entries that are left out since they require no gradient
    precision  of products, such as float32
    samples    over which the loss is a mean
    unit       of the loss
    notes      how the loss is evaluated
    layout     how theta is made; None where a file is read
    threshold  of an optimizer's preconditioned Hessian; None where it is not known
    blocks     the tensors of each block of a layer by layer reading, by its name
    """

    label: str
    matrix: str
    size: int
    precision: str
    samples: int
    unit: str
    frozen: int = 0
    notes: tuple[str, ...] = ()
    layout: Layout | None = None
    threshold: float | None = None
    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """Of products."""
        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype

    def stored(self) -> dict[str, Any]:
        """As a file holds it."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("layout", "label")}


@dataclass(frozen=True)
class _Parts:
    """What the tasks of a subject have come to; None where one was not asked for, or failed."""

    top: EigenPairs | None = None
    bottom: EigenPairs | None = None
    trace: Trace | None = None
    density: Density | None = None
    shares: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    products: int = 0  # of a matrix that was made whole, for all of its parts together

    @property
    def all_products(self) -> int:
        each = (self.top, self.bottom, self.trace, self.density)
        return self.products or sum(part.products for part in each if part is not None)


def spectrum_of(about: AboutMatrix, request: SpectrumRequest, done: Done) -> Spectrum:
    """The spectrum, from the arrays of its tasks; what failed or is not done is missing in it."""
    parts = _parts(about, request, done)
    slope: Mapping[str, Any] = next(iter(done("gradient").values()), {})
    return Spectrum(
        label=about.label,
        matrix=about.matrix,
        size=about.size,
        precision=about.precision,
        top=parts.top,
        bottom=parts.bottom,
        trace=parts.trace,
        density=parts.density,
        shares=parts.shares,
        samples=about.samples,
        unit=about.unit,
        loss=float(slope.get("loss", nan)),
        loss_error=float(slope.get("loss_error", nan)),
        gradient_norm=float(slope.get("gradient_norm", nan)),
        gradient_norm_error=float(slope.get("gradient_norm_error", nan)),
        products=parts.all_products,
        keep_vectors=request.vectors,
        frozen=about.frozen,
        threshold=nan if about.threshold is None else about.threshold,
        notes=tuple(about.notes),
    )


def with_masses(spectra: Mapping[str, Spectrum], request: SpectrumRequest) -> dict[str, Spectrum]:
    """The spectra with the shares of their eigenvalues beyond thresholds that all have in common."""
    thresholds = request.mass_at or common_masses([s.density for s in spectra.values()])
    return {label: replace(s, masses=masses_of(s.density, thresholds)) for label, s in spectra.items()}


def _parts(about: AboutMatrix, request: SpectrumRequest, done: Done) -> _Parts:
    parts = _Parts()
    for arrays in done("whole").values():
        parts = _exact_parts(task_arrays.to_matrix(arrays, about.dtype), about, request)
    for arrays in done("ends").values():
        upper, lower = (task_arrays.to_end(end, arrays, about.size, about.dtype) for end in task_arrays.ENDS)
        shares = {} if about.layout is None else task_arrays.to_shares(arrays, about.layout.names)
        parts = replace(parts, top=upper, bottom=lower, shares=shares)
    for arrays in done("trace").values():
        parts = replace(parts, trace=task_arrays.to_trace(arrays))
    densities = list(done("density").values())
    runs = [run for arrays in densities for run in task_arrays.to_runs(arrays)]
    if not runs:
        return parts
    # with a stated number of probes there is no error target to miss
    target = inf if request.density_probes else request.density_error
    epsilon, rounding = float(torch.finfo(about.dtype).eps), task_arrays.to_rounding(densities)
    return replace(parts, density=Density(tuple(runs), about.size, epsilon, 0.95, target, rounding=rounding))


def _exact_parts(whole: DenseMatrix, about: AboutMatrix, request: SpectrumRequest) -> _Parts:
    """All that was asked for, of a matrix that is known whole."""
    upper = whole.pairs(f"top:{request.top}") if request.top else None
    lower = whole.pairs(f"bottom:{request.bottom}") if request.bottom else None
    shares = {} if about.layout is None else shares_of((("top", upper), ("bottom", lower)), about.layout)
    return _Parts(
        upper,
        lower,
        whole.trace(about.layout, request.diagonal) if request.trace_products else None,
        whole.density() if request.density else None,
        shares,
        about.size,
    )


def results_so_far(
    about: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    groups: Mapping[str, Arrays],
    note: str,
) -> dict[tuple[str, str], Spectrum | BlockSpectra]:
    """By kind (spectrum, layers) and label what the tasks that are done say; what none is done of is missing.

    about     by label, as `AboutMatrix.stored` gave it
    settings  of the measure, as its file holds them
    groups    `tasks/LABEL/KIND/NAME` -> its arrays
    note      of each result, before what is still to come
    """
    request = _request_of(settings)
    spectra: dict[str, Spectrum] = {}
    layers: dict[str, BlockSpectra] = {}
    for label, facts in about.items():
        place = f"tasks/{label.replace('/', '_') or 'whole'}/"
        own = {name.removeprefix(place): arrays for name, arrays in groups.items() if name.startswith(place)}

        def done(kind: str, own: Mapping[str, Arrays] = own) -> dict[str, Arrays]:
            return {name: arrays for name, arrays in own.items() if name.split("/")[0] == kind}

        if own:
            known = AboutMatrix(label=label, **facts)
            notes = (*known.notes, note + _still_to_come(done, request))
            spectra[label] = spectrum_of(replace(known, notes=notes), request, done)
            if (read := _layers_so_far(known, request, done, note)) is not None:
                layers[label] = read
    found: dict[tuple[str, str], Spectrum | BlockSpectra] = {}
    found |= {("spectrum", label): spectrum for label, spectrum in with_masses(spectra, request).items()}
    return found | {("layers", label): blocks for label, blocks in layers.items()}


def _layers_so_far(about: AboutMatrix, request: SpectrumRequest, done: Done, note: str) -> BlockSpectra | None:
    """The blocks that are done; None where there is none yet, or nothing that sets their common noise floor."""
    read = done("block")
    tasks = {name: f"block/{name.replace('/', '_')}" for name in about.blocks}
    alone = {task for task, count in Counter(tasks.values()).items() if count == 1}  # others wait for the complete file
    blocks = [
        task_arrays.to_block(name, tuple(about.blocks[name]), read[task])
        for name, task in tasks.items()
        if task in alone and task in read
    ]
    ends = next((task_arrays.to_block_ends(arrays) for arrays in done("block_ends").values()), None)
    if not blocks or ends is None:
        return None
    return BlockSpectra(
        blocks=with_noise_floor(blocks, ends.scale),
        by=request.cut,
        matrix=about.matrix,
        label=about.label,
        whole=ends,
        notes=(
            *about.notes,
            f"{note}; {len(blocks)} of {min(len(tasks), request.layer_limit or len(tasks))} layers are there",
        ),
        unit=about.unit,
    )


def _request_of(settings: Mapping[str, Any]) -> SpectrumRequest:
    """The request of a file's settings."""
    values = {f.name: settings[f.name] for f in fields(SpectrumRequest) if f.name in settings}
    changed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return SpectrumRequest(**changed)


def _still_to_come(done: Done, request: SpectrumRequest) -> str:
    """What of a spectrum is not there, in words after a colon; none where all has begun."""
    is_wanted = {
        "ends": bool(request.top or request.bottom),
        "trace": bool(request.trace_products),
        "density": request.density,
        "block": request.layerwise,
    }
    whole = bool(done("whole"))
    missing = [
        KINDS[kind]
        for kind, wanted in is_wanted.items()
        if wanted and not (whole and kind != "block") and (kind == "block" or not done(kind))
    ]
    return f"; still to come: {', '.join(missing)}" if missing else ""


__all__ = ["ABOUT", "AboutMatrix", "results_so_far", "spectrum_of", "with_masses"]
