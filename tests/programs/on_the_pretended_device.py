"""Every measure over a small net, on the pretended device or the CPU, as JSON: numbers with bars, and waits.

python on_the_pretended_device.py pretended|cpu
"""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

import torch
from torch import nn

WHERE = sys.argv[1]
if WHERE == "pretended":
    from tests import pretended_device

import lossmap  # noqa: E402
from lossmap.curvature.autotune import prepare  # noqa: E402
from lossmap.curvature.gradient import loss_and_gradient, mean_loss  # noqa: E402
from lossmap.diagnostics.activations import activation_statistics, gradient_norms  # noqa: E402
from lossmap.diagnostics.label_noise import label_noise  # noqa: E402
from lossmap.diagnostics.layer_signals import signals  # noqa: E402
from lossmap.diagnostics.neural_collapse import neural_collapse  # noqa: E402
from lossmap.landscape.eigenvalues import EigenvalueMap  # noqa: E402
from lossmap.linalg.dense import DenseMatrix  # noqa: E402
from tests.gpu.networks import network  # noqa: E402

NETWORKS = ("dense", "conv", "words", "attention")  # recurrent ones call kernels of CUDA's that the CPU has not
PLAN = {"batch_size": 32}


def problem(name: str) -> lossmap.Problem:
    net, x, y = network(name, samples=40)
    net = copy.deepcopy(net)
    if WHERE == "pretended":
        net, x, y = pretended_device.moved(net), *pretended_device.up((x, y))
    return lossmap.Problem.supervised(net, "crossentropy", (x, y), batch_size=32)


PASSES = (loss_and_gradient, mean_loss, gradient_norms, activation_statistics, signals, label_noise, neural_collapse)


def dense(batch_size: int = 32) -> lossmap.Problem:
    torch.manual_seed(2)
    net, x, y = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(40, 3), torch.arange(40) % 3
    if WHERE == "pretended":
        net, x, y = pretended_device.moved(net), *pretended_device.up((x, y))
    return lossmap.Problem.supervised(net, "crossentropy", (x, y), batch_size=batch_size)


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
    net, x, y = Spread(), torch.randn(40, 3), torch.arange(40) % 3
    if WHERE == "pretended":
        pretended_device.moved(net.first)
        x, y = pretended_device.up((x, y))  # to a device of this kind PyTorch's own `to` does not lead
    return lossmap.Problem.supervised(net, "crossentropy", (x, y), batch_size=32)


def refusal_of_products(p: lossmap.Problem) -> str:
    try:
        lossmap.hessian(p)
    except ValueError as error:
        return str(error)
    return ""


def waits() -> int:
    """How often the host has waited so far."""
    return sum(pretended_device.waits.values()) if WHERE == "pretended" else 0


def surface(p: lossmap.Problem, ticks: int = 3) -> list[float]:
    plane = lossmap.random_plane(p.model, seed=1)
    read = lossmap.survey(lossmap.losses(p, plane, plan=PLAN), lossmap.Grid.square(-1, 1, ticks), progress=False)
    assert read.outcome == "complete", read.failures[:1]
    return [float(v) for v in read["train_loss"].reshape(-1)]


def ends(p: lossmap.Problem) -> list[tuple[float, float]]:
    factory = prepare(p, "weights")
    plane = lossmap.random_plane(factory.problem.model, seed=1)
    point = EigenvalueMap({"train": factory}, plane, "ends", tol=1e-3)((0.5, -0.5))
    return [(float(point[f"{end}_eig"]), float(point[f"{end}_eig_error"])) for end in ("max", "min")]


def of_spectrum(s: Any) -> list[tuple[float, float]]:
    return [(float(v), float(e)) for v, e in zip(s.values, s.errors, strict=True)]


def numbers() -> dict[str, Any]:
    """By measure: values, or (value, bar)."""
    found: dict[str, Any] = {}
    for name in NETWORKS:
        found[f"losses, {name}"] = surface(problem(name), 2)
    found["losses, spread over two devices"] = surface(spread())
    p = dense()
    found |= {"ends, dense": ends(p), "ends, conv": ends(problem("conv"))}
    found["spectrum, dense matrix"] = of_spectrum(lossmap.spectrum(p, top=3, bottom=1, density_error=0.3))
    s = lossmap.spectrum(p, top=2, bottom=1, density_error=None, trace_products=6, dense=1)
    found["spectrum, search"] = of_spectrum(s)
    blocks = lossmap.layer_spectra(p, "tensor", density_error=None)
    found["layers"] = [(float(v), float(block.error)) for block in blocks.blocks for v in block.values]
    sharp = lossmap.sharpness(p, draws=2, ascent_steps=2, starts=1)
    found["sharpness"] = [(sharp.largest, sharp.largest_error)]
    found["findings"] = len(lossmap.diagnose(p, samples=40, density_error=0.3).findings)
    return found


def waits_of_each() -> dict[str, float]:
    """Waits of one more point of a surface, and of one product."""
    p = dense()
    surface(p, 2)
    counts = []
    for ticks in (2, 4):
        before = waits()
        surface(p, ticks)
        counts.append(waits() - before)
    operator = prepare(p, "weights").at()
    v = torch.ones(operator.size)
    if WHERE == "pretended":
        v = pretended_device.up(v)
    operator @ v
    before = waits()
    for _ in range(10):
        operator @ v
    return {"a point": (counts[1] - counts[0]) / 12, "a product": (waits() - before) / 10}


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
    operator.operator @ (pretended_device.up(torch.ones(operator.size)) if WHERE == "pretended" else torch.ones(24))
    before = waits()
    lossmap.eigenpairs(operator, "top:2", tol=1e-6)
    return (waits() - before) / operator.products


def waits_of_passes(measures: Any, batch_sizes: tuple[int, int] = (8, 4)) -> dict[str, list[int]]:
    """By measure its waits over the same samples in so many batches, and in twice as many."""
    found = {}
    for measure in measures:
        counts = []
        for batch_size in batch_sizes:
            p = dense(batch_size)
            before = waits()
            measure(p)
            counts.append(waits() - before)
        found[measure.__name__] = counts
    return found


def spectrum(p: lossmap.Problem) -> None:
    lossmap.spectrum(p, top=1, bottom=1, density_error=0.3, trace_products=6, dense=1)


def connection(p: lossmap.Problem) -> None:
    lossmap.connect(p, dense().model, points=3)


def sharpness(p: lossmap.Problem) -> None:
    lossmap.sharpness(p, draws=2, ascent_steps=1, starts=1)


def waits_of_searches() -> dict[str, list[int]]:
    """As of passes."""
    if WHERE != "pretended":
        return {}
    return waits_of_passes((spectrum, connection)) | waits_of_passes((sharpness,), (20, 10))


def waits_of_a_dense_matrix() -> float:
    """Waits for each product by which a matrix is made whole."""
    operator = Counting(prepare(dense(), "weights").at())
    before = waits()
    DenseMatrix.of(operator)
    return (waits() - before) / operator.products


print(json.dumps({"numbers": numbers(), "waits": waits_of_each(), "passes": waits_of_passes(PASSES),
                  "searches": waits_of_searches(),
                  "dense": waits_of_a_dense_matrix(),
                  "search": waits_of_a_search(), "refusal": refusal_of_products(spread())}))  # fmt: skip
