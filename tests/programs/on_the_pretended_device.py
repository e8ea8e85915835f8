"""Every measure over a small net, on the CPU and on the pretended device, as JSON: numbers with bars, and waits.

With the argument `without-float64` the device is one that has none.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests import pretended_device  # first, since it changes PyTorch for the whole process

import lossmap  # isort: skip
from lossmap.callbacks import CurvatureMonitor
from lossmap.curvature.autotune import prepare
from lossmap.curvature.gradient import loss_and_gradient, mean_loss
from lossmap.data.batches import Streamed
from lossmap.diagnostics.activations import activation_statistics, gradient_norms
from lossmap.diagnostics.label_noise import label_noise
from lossmap.diagnostics.layer_signals import signals
from lossmap.diagnostics.neural_collapse import neural_collapse
from lossmap.dynamics.checkpoint_curvature import CheckpointCurvature
from lossmap.landscape.connection_map import connection_map
from lossmap.landscape.eigenvalues import EigenvalueMap
from lossmap.landscape.loss import ForwardPlan
from lossmap.linalg.dense import DenseMatrix
from tests.gpu.networks import network

CPU, PRETENDED = "cpu", "pretended"
NETWORKS = ("dense", "conv", "words", "attention")  # recurrent ones call kernels of CUDA's that the CPU has not
PLAN = {"batch_size": 32}
PASSES = (loss_and_gradient, mean_loss, gradient_norms, activation_statistics, signals, label_noise, neural_collapse)
Bars = list[tuple[float, float]]  # values, each with its bar
where = CPU


def there(values: Any) -> Any:
    """A model, or tensors, on the device."""
    if where == CPU:
        return values
    return pretended_device.moved(values) if isinstance(values, nn.Module) else pretended_device.up(values)


def problem(name: str) -> lossmap.Problem:
    net, x, y = network(name, samples=40)
    return lossmap.Problem.supervised(there(copy.deepcopy(net)), "crossentropy", there((x, y)), batch_size=32)


def small(seed: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def dense(batch_size: int = 20) -> lossmap.Problem:
    data = torch.randn(40, 3, generator=torch.Generator().manual_seed(2)), torch.arange(40) % 3
    return lossmap.Problem.supervised(there(small()), "crossentropy", there(data), batch_size=batch_size)


def streamed(batch_size: int) -> lossmap.Problem:
    """Over samples that are read as they are needed, some of which have no class."""
    x, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(2)), torch.arange(40) % 4 - 1
    device = CPU if where == CPU else pretended_device.DEVICE
    data = Streamed(lambda indices: (x[list(indices)], y[list(indices)]), range(40), batch_size, device)
    return lossmap.Problem.supervised(there(small()), nn.CrossEntropyLoss(ignore_index=-1), data)


class Spread(nn.Module):
    """Its first layer is on the device, the others are on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x.to(self.first.weight.device)).tanh()
        return self.last(self.norm(hidden.to(self.last.weight.device)))


def spread() -> lossmap.Problem:
    torch.manual_seed(3)
    net = Spread()
    there(net.first)
    # to a device of this kind PyTorch's own `to` does not lead
    x, y = there((torch.randn(40, 3), torch.arange(40) % 3))
    return lossmap.Problem.supervised(net, "crossentropy", (x, y), batch_size=32)


def refusal_of_products(p: lossmap.Problem) -> str:
    try:
        lossmap.hessian(p)
    except ValueError as error:
        return str(error)
    return ""


def waits() -> int:
    """How often the host has waited so far."""
    return sum(pretended_device.waits.values())


def surface(p: lossmap.Problem, ticks: int = 3) -> list[float]:
    plane = lossmap.random_plane(p.model, seed=1)
    read = lossmap.survey(lossmap.losses(p, plane, plan=PLAN), lossmap.Grid.square(-1, 1, ticks), progress=False)
    assert read.outcome == "complete", read.failures[:1]
    return [float(v) for v in read["train_loss"].reshape(-1)]


def ends(p: lossmap.Problem) -> Bars:
    factory = prepare(p, "weights")
    plane = lossmap.random_plane(factory.problem.model, seed=1)
    point = EigenvalueMap({"train": factory}, plane, "ends", tol=1e-3)((0.5, -0.5))
    return [(float(point[f"{end}_eig"]), float(point[f"{end}_eig_error"])) for end in ("max", "min")]


def of_spectrum(s: Any) -> Bars:
    return [(float(v), float(e)) for v, e in zip(s.values, s.errors, strict=True)]


def spectrum(p: lossmap.Problem) -> Bars:
    return of_spectrum(lossmap.spectrum(p, top=2, bottom=1, density_error=0.3, trace_products=6, dense=1))


def layers(p: lossmap.Problem) -> Bars:
    blocks = lossmap.layer_spectra(p, "tensor", density_error=None).blocks
    return [(float(v), float(block.error)) for block in blocks for v in block.values]


def connection(p: lossmap.Problem) -> list[float]:
    return [float(v) for v in lossmap.connect(p, there(small(5)), points=3).losses["train"]]


def sharpness(p: lossmap.Problem) -> Bars:
    found = lossmap.sharpness(p, draws=2, ascent_steps=1, starts=1)
    return [(found.largest, found.largest_error)]


def checkpoints(p: lossmap.Problem) -> Bars:
    """Of two checkpoints of a run; how often the host waits for the second one goes to `of_a_checkpoint`."""
    with tempfile.TemporaryDirectory() as folder:
        files = {float(step): Path(folder) / f"step{step}.pt" for step in range(2)}
        for step, file in files.items():
            torch.save(small(int(step)).state_dict(), file)
        measure = CheckpointCurvature(p, files, store_vectors=lambda step, vectors: None, top=2)
        found = []
        for step in files:
            before = waits()
            found.append(measure((step,)))
        of_a_checkpoint.append(waits() - before)
    return [
        pair for f in found for pair in zip(f["eigenvalues"].tolist(), f["eigenvalue_errors"].tolist(), strict=True)
    ]


class Remarks(logging.Handler):
    """What the log says on each device, but for numbers."""

    def emit(self, record: logging.LogRecord) -> None:
        remarks[where].append(re.sub(r"[\d.]+(e-?\d+)?", "#", record.getMessage()))


remarks: dict[str, list[str]] = {CPU: [], PRETENDED: []}


def training(p: lossmap.Problem) -> Bars:
    """What the monitor of a training of six steps of Adam reads."""
    optimizer = torch.optim.Adam(p.model.parameters(), lr=0.01, foreach=False)
    monitor = CurvatureMonitor(p, optimizer, every=3, max_overhead=None)
    for _ in range(6):
        optimizer.zero_grad()
        (p.total(next(iter(p.data))) / 20).backward()
        optimizer.step()
        monitor.step()
    monitor.close()
    assert not monitor.history.reasons, monitor.history.reasons
    barred = [f.name for f in monitor.history.fields if f"{f.name}_error" in monitor.history.readings[0]]
    return [(float(r[name]), float(r[f"{name}_error"])) for r in monitor.history.readings for name in barred]


of_a_checkpoint: list[int] = []
SEARCHES = (spectrum, layers, connection, sharpness, checkpoints)


def numbers() -> tuple[dict[str, Any], dict[str, int]]:
    """By measure: values, or (value, bar); and the waits of each search."""
    found: dict[str, Any] = {}
    for name in NETWORKS:
        found[f"losses, {name}"] = surface(problem(name), 2)
    found["losses, streamed"] = surface(streamed(8), 2)
    found["losses, spread over two devices"] = surface(spread())
    p = dense()
    found |= {"ends, dense": ends(p), "ends, conv": ends(problem("conv"))}
    found["spectrum, dense matrix"] = of_spectrum(lossmap.spectrum(p, top=3, bottom=1, density_error=0.3))
    for product in ("gauss-newton", "fisher", "mc-fisher"):
        found[f"spectrum, {product}"] = of_spectrum(lossmap.spectrum(p, top=1, bottom=1, matrix=product))
    found["training"] = training(dense())
    found["findings"] = len(lossmap.diagnose(p, samples=40, density_error=0.3).findings)
    for measure in PASSES:
        found[measure.__name__] = flat(measure(dense()))
    counts: dict[str, int] = {}
    for search in SEARCHES:
        counts[search.__name__] = waits_of(search, dense(), found)
    return found, counts


def flat(value: Any) -> list[float]:
    """All real numbers in a result, in order."""
    if is_dataclass(value):
        return [x for f in fields(value) for x in flat(getattr(value, f.name))]
    if isinstance(value, Mapping):
        return [x for v in value.values() for x in flat(v)]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return [float(x) for x in value.reshape(-1).tolist()]
    if isinstance(value, (list, tuple)):
        return [x for v in value for x in flat(v)]
    return [float(value)] if isinstance(value, (int, float)) else []


def waits_of(measure: Any, p: lossmap.Problem, found: dict[str, Any]) -> int:
    """Waits of a measure, whose result goes to `found`."""
    before = waits()
    found[measure.__name__] = measure(p)
    return waits() - before


def waits_of_a_streamed_point(batch_size: int) -> int:
    """Waits of a point whose samples are read as they are needed."""
    p = streamed(batch_size)
    measure = lossmap.losses(p, lossmap.random_plane(p.model, seed=1), plan={"batch_size": batch_size})
    measure((0.0, 0.0))
    before = waits()
    measure((0.5, 0.5))
    return waits() - before


def waits_of_each() -> dict[str, float]:
    """Waits of one more point of a surface and of a connection, and of one product."""
    p = dense()
    surface(p, 2)
    counts = []
    for ticks in (2, 4):
        before = waits()
        surface(p, ticks)
        counts.append(waits() - before)
    splits = {"train": p, "test": p}
    line = connection_map(splits, lossmap.line_between(p.model, there(small(5))), ForwardPlan(8))
    line((0.5,))  # the first one reads both ends, too
    before = waits()
    reading = line((0.25,))
    assert reading["train_barrier_error"] > 0  # the loss of every sample was there
    of_connection = waits() - before
    operator = prepare(p, "weights").at()
    v = there(torch.ones(operator.size))
    operator @ v
    before = waits()
    for _ in range(10):
        operator @ v
    return {
        "a point": (counts[1] - counts[0]) / 12,
        "a point of a connection, of two splits": of_connection,
        "a product": (waits() - before) / 10,
    }


def launches() -> int:
    """The operations that the device has been given so far, views of tensors aside, which are no work of its own."""
    return sum(n for name, n in pretended_device.launches.items() if name.split(".")[1] not in pretended_device.VIEWS)


def launches_of_each() -> dict[str, float]:
    """Launches of one more point of a surface, of a pass with the loss alone, and of a product in each way."""
    p = dense()
    surface(p, 2)
    counts = []
    for ticks in (2, 4):
        before = launches()
        surface(p, ticks)
        counts.append(launches() - before)
    each = {"a point": (counts[1] - counts[0]) / 12}
    before = launches()
    with torch.no_grad():
        for batch in p.data:
            p.loss(p.forward(p.model, batch), batch)
    each["its bare passes"] = launches() - before
    for backend in ("linearized", "retained-graph", "double-backward"):
        operator = prepare(p, "weights", backend=backend).at()
        v = there(torch.ones(operator.size)) if operator.device.type != CPU else torch.ones(operator.size)
        operator @ v
        before = launches()
        for _ in range(10):
            operator @ v
        each[f"a product, {backend}"] = (launches() - before) / 10
    return each


class Counting:
    """An operator that counts its products."""

    def __init__(self, operator: Any) -> None:
        self.operator, self.size, self.dtype, self.device = operator, operator.size, operator.dtype, operator.device
        self.products = 0

    def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
        self.products += 1
        return self.operator @ v


def waits_of_a_search() -> float:
    """Waits for each product of a Lanczos search, its start and end among them."""
    operator = Counting(prepare(dense(), "weights").at())
    operator.operator @ there(torch.ones(operator.size))
    before = waits()
    lossmap.eigenpairs(operator, "top:2", tol=1e-6)
    return (waits() - before) / operator.products


def waits_of_a_dense_matrix() -> float:
    """Waits for each product by which a matrix is made whole."""
    operator = Counting(prepare(dense(), "weights").at())
    before = waits()
    DenseMatrix.of(operator)
    return (waits() - before) / operator.products


logging.getLogger("lossmap").addHandler(Remarks())
logging.getLogger("lossmap").setLevel(logging.INFO)
on_cpu, _ = numbers()
if "without-float64" in sys.argv:
    pretended_device.without_float64()
where, of_a_checkpoint = PRETENDED, []
on_device, once = numbers()
twice: dict[str, Any] = {}
print(json.dumps({
    "remarks": remarks,
    "numbers": {CPU: on_cpu, PRETENDED: on_device},
    "waits": waits_of_each(),
    "passes": {m.__name__: [waits_of(m, dense(size), {}) for size in (8, 4)] for m in PASSES},
    "searches": {m.__name__: [once[m.__name__], waits_of(m, dense(10), twice)] for m in SEARCHES},
    "numbers in twice the batches": twice,
    "checkpoint": of_a_checkpoint,
    "dense": waits_of_a_dense_matrix(),
    "search": waits_of_a_search(),
    "streamed": [waits_of_a_streamed_point(size) for size in (8, 4)],
    "launches": launches_of_each(),
    "refusal": refusal_of_products(spread()),
}))  # fmt: skip
