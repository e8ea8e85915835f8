"""The rows of version 0.1, written here as they were then, give the arrays that a task gives today."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lossmap.data.problem import Problem
from lossmap.geometry.grid import Field, Grid
from lossmap.io.read import SurfaceFile
from lossmap.landscape.run_survey import survey
from lossmap.spectra.legacy_rows import ROW, TRACE_METHODS, arrays_of_row
from lossmap.spectra.request import SpectrumRequest, Subject
from lossmap.spectra.tasks import make_tasks


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    return Problem.supervised(model, "crossentropy", (x, x[:, :3].argmax(1)))


def packed(arrays):
    """The row of version 0.1: how many arrays, then for each its dimensions, its shape and its numbers."""
    parts = [np.array([float(len(arrays))])]
    for array in arrays:
        a = np.asarray(array, dtype=np.float64)
        parts += [np.array([a.ndim, *a.shape], dtype=np.float64), a.reshape(-1)]
    return np.concatenate(parts)


def runs_of(arrays):
    ends = np.cumsum(arrays["steps"])
    return [
        part
        for i, end in enumerate(ends)
        for own in [slice(int(end - arrays["steps"][i]), int(end))]
        for part in (arrays["alpha"][own], arrays["beta"][own], [arrays["weight"][i], arrays["exact"][i]])
    ]


def row_of(kind, a):
    """What version 0.1 put into the row of a task of this kind."""
    numbers = ("products", "converged", "tolerance", "scale", "confidence", "others")
    if kind == "ends":
        parts = []
        for end in ("top", "bottom"):
            if end not in a:
                parts += [np.zeros(0)] * 5
                continue
            about = [*a[f"{end}_limits"], *(float(a[f"{end}_{name}"]) for name in numbers)]
            vectors = a.get(f"{end}_vectors", np.zeros((42, 0)))
            parts += [a[end], a[f"{end}_error"], about, a[f"{end}_share_by_tensor"], vectors]
        return packed(parts)
    if kind == "trace":
        method = TRACE_METHODS.index(str(a["method"]))
        named = [float(a[name]) for name in ("value", "error", "terms", "products")]
        return packed([[*named, method, float(a["size"]), float(a["error_target"])]])
    if kind == "density":
        return packed(runs_of(a))
    if kind == "block":
        about = [float(a[name]) for name in ("size", "error", "epsilon", "products", "converged")]
        runs = runs_of(a) if "alpha" in a else []
        return packed([a["eigenvalues"], about, a.get("matrix", np.zeros((0, 0))), *runs])
    if kind == "block_ends":
        about = [float(a[name]) for name in ("products", "converged", "scale", "tolerance")]
        return packed([a["eigenvalues"], a["error"], about])
    order = {"gradient": ("loss", "gradient_norm"), "whole": ("matrix", "asymmetry", "epsilon")}
    return packed([a[name] for name in order.get(kind, ("inside", "outside"))])


NOT_IN_0_1 = re.compile("(.*_)?rounding|limits|confidence|sums_.*")  # what version 0.1 assumed, or did not keep

REQUESTS = [
    {"top": 3, "bottom": 2, "dense": 10, "vectors": True, "by": "tensor", "density_probes": 2, "density_steps": 6},
    {"top": 2, "bottom": 0, "dense": 0, "density_error": 0.2, "trace_method": "hutchinson", "trace_products": 9},
    {"parameters": "2\\.", "by": "module"},  # made whole
]


@pytest.mark.parametrize("asked", REQUESTS)
def test_every_kind_of_row_gives_the_arrays_of_today(asked):
    tasks = make_tasks([Subject("net", problem())], SpectrumRequest(**asked))
    for number, task in enumerate(tasks.tasks):
        ((_, arrays),) = tasks((float(number),)).items()
        arrays = {name: array for name, array in arrays.items() if not NOT_IN_0_1.fullmatch(name)}
        if task.kind == "block":
            arrays.pop("kinks")
        if task.kind == "gradient":
            del arrays["loss_error"], arrays["gradient_norm_error"]
        row = np.append(row_of(task.kind, arrays), [np.nan] * 5)  # NaN up to the length of the longest
        decoded = arrays_of_row(task.kind, row)
        assert decoded.keys() == arrays.keys(), task
        for name, array in arrays.items():
            assert np.shape(decoded[name]) == array.shape, (task, name)
            assert decoded[name].dtype == array.dtype, (task, name)
            if array.dtype.kind == "U":
                assert str(decoded[name]) == str(array)
            else:
                assert np.array_equal(decoded[name], array, equal_nan=True), (task, name)


def test_a_kind_that_was_not_there_is_refused():
    with pytest.raises(ValueError, match=r"version 0\.1 had no task of the kind 'skewness'"):
        arrays_of_row("skewness", np.zeros(1))


def test_a_spectrum_that_version_0_1_left_half_done_goes_on(tmp_path):
    tasks = make_tasks([Subject("net", problem())], SpectrumRequest(**REQUESTS[0]))
    direct = {group: arrays for i in range(len(tasks.tasks)) for group, arrays in tasks((float(i),)).items()}
    rows = [row_of(task.kind, direct[group]) for task, group in zip(tasks.tasks, tasks.groups, strict=True)]
    length, done, path = max(map(len, rows)), (0, 2, 3, 4), tmp_path / "s.h5"
    grid, settings = Grid(np.arange(float(len(rows)))), {"top": 3}
    field = Field(ROW, "1", "packed reading of each job", ("value", length))
    with SurfaceFile.open(path, grid, measures={"spectrum": ((field,), settings)}) as store:
        for i in done:
            padded = np.append(rows[i], np.full(length - len(rows[i]), np.nan))
            store.record("spectrum", i, {ROW: padded}, 0.5)
    measures, upgrades = {"spectrum": (tasks.fields, settings)}, {"spectrum": tasks.from_legacy}
    with SurfaceFile.open(path, grid, measures=measures, upgrades=upgrades) as store:
        assert store.todo("spectrum").tolist() == [i for i in range(len(rows)) if i not in done]
        assert survey(tasks, grid, store=store).outcome == "complete"
        spectrum, twin = tasks.spectra(store.arrays)["net"], tasks.spectra(direct)["net"]
        layers = tasks.layers(store.arrays)["net"]
    # sums over entries were not kept then
    assert repr(spectrum) == repr(replace(twin, trace=replace(twin.trace, sums=None)))
    assert torch.equal(spectrum.top.vectors, twin.top.vectors)
    assert repr(layers) == repr(tasks.layers(direct)["net"])
