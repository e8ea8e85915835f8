"""Networks whose loss is 1e-7 to 1e-9, in float32, with losses that cancel and that do not: no wrong sign.

The truth is the dense Hessian in float64 of the same loss in a form that does not cancel.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossmap import Problem
from lossmap.dynamics.run import run_dynamics
from lossmap.health.diagnose import diagnose
from lossmap.io.read import read
from lossmap.report.health import health_report
from lossmap.report.stored import StoredReport
from lossmap.spectra.blocks import layer_spectra
from lossmap.spectra.spectrum import spectrum


def cancelling(outputs: Tensor, targets: Tensor) -> Tensor:
    """The cross entropy as it is often written: log sum exp less the target's logit."""
    return (outputs.logsumexp(1) - outputs.gather(1, targets[:, None])[:, 0]).mean()


def unknown(outputs: Tensor, targets: Tensor) -> Tensor:
    """The same in a way that is not known, so that its terms cancel: 1 - p is lost where p is near 1."""
    e = (outputs - outputs.detach().amax(1, keepdim=True)).exp()
    return -(e.gather(1, targets[:, None])[:, 0] / e.sum(1)).log().mean()


def stable(outputs: Tensor, targets: Tensor) -> Tensor:
    """The same where every sample is right: log(1 + the others relative to the target)."""
    d = outputs - outputs.gather(1, targets[:, None])
    return d.exp().scatter(1, targets[:, None], 0.0).sum(1).log1p().mean()


@dataclass(frozen=True, eq=False)
class Saturated:
    """A network that fits its samples, with its Hessian by the weights, dense in float64."""

    net: nn.Module
    x: Tensor
    y: Tensor
    truth: np.ndarray

    def problem(self, loss: object) -> Problem:
        return Problem.supervised(self.net, loss, (self.x, self.y))

    @property
    def values(self) -> np.ndarray:
        return np.linalg.eigvalsh(self.truth)


def saturated(net: nn.Module, x: Tensor, y: Tensor, target: float) -> Saturated:
    """After some hundred steps, with the last layer scaled up until the loss is at most `target`."""
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        while float(stable(net(x).double(), y)) > target:
            for p in net[-1].parameters():
                p.mul_(1.1)
    net.eval().zero_grad()
    own = {name: p.detach().double() for name, p in net.named_parameters()}
    names = [name for name, p in own.items() if p.dim() > 1]

    def loss(theta: Tensor) -> Tensor:
        parts = theta.split([own[n].numel() for n in names])
        moved = own | {n: p.view(own[n].shape) for n, p in zip(names, parts, strict=True)}
        return stable(torch.func.functional_call(net, moved, (x.double(),)), y)

    theta = torch.cat([own[n].reshape(-1) for n in names])
    assert 0.1 * target < float(loss(theta)) <= 1.1 * target
    hessian = torch.func.jacrev(torch.func.jacrev(loss))(theta)
    return Saturated(net, x, y, ((hessian + hessian.T) / 2).detach().numpy())


@pytest.fixture(scope="module")
def cases() -> dict[str, Saturated]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=generator)
    y = (x[:, 0] > 0).long()
    x[:, 0] += x[:, 0].sign()
    torch.manual_seed(1)
    return {
        "convex": saturated(nn.Sequential(nn.Linear(4, 2)), x, y, 1e-7),
        "mlp": saturated(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), x, y, 1e-8),
    }


LOSSES = [cancelling, "crossentropy"]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["convex", "mlp"])
def test_a_spectrum_by_lanczos_holds_the_truth_in_bars_limits_trace_and_masses(cases, kind, loss):
    case = cases[kind]
    true = case.values
    s = spectrum(case.problem(loss), top=2, bottom=1, dense=1, density_error=0.1, trace_products=6)
    assert np.abs(true - s.largest[0]).min() <= s.largest[1] and np.abs(true - s.smallest[0]).min() <= s.smallest[1]
    assert s.limits[1] <= true[0] and true[-1] <= s.limits[0]
    low, high = s.trace.interval()
    assert low <= true.sum() <= high
    for t, below, above in s.masses:
        assert below.low - 1e-9 <= (true < -t).mean() <= below.high + 1e-9
        assert above.low - 1e-9 <= (true > t).mean() <= above.high + 1e-9
    if kind == "convex":
        assert "indefinite" not in repr(s) and "cannot be told from zero in this precision" in " ".join(repr(s).split())
    if loss == "crossentropy":  # and the bars are of use
        assert s.largest[1] < 1e-3 * true[-1]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dense", [1, 300])
@pytest.mark.parametrize("kind", ["convex", "mlp"])
def test_the_counts_of_layers_hold_the_truth(cases, kind, dense, loss):
    case = cases[kind]
    result = layer_spectra(case.problem(loss), "tensor", parameters="weights", dense=dense)
    start = 0
    for block in result.blocks:
        rows = slice(start, start + block.size)
        start += block.size
        true = np.linalg.eigvalsh(case.truth[rows, rows])
        assert np.abs(true - block.largest).min() <= block.error
        assert np.abs(true - block.smallest).min() <= block.error
        for sign, (fewest, most) in ((1.0, block.positive), (-1.0, block.negative)):
            beyond = sign * true
            assert fewest <= (beyond > 0.0).sum(), (block.name, sign)  # never a sign that is not there
            assert most >= (beyond > block.floor + block.error).sum(), (block.name, sign)
    if kind == "convex":
        assert "indefinite" not in repr(result) and "has negative curvature (" not in result.verdict


@pytest.mark.parametrize("loss", LOSSES)
def test_health_calls_no_convex_network_indefinite(cases, loss):
    case = cases["convex"]
    diagnosis = diagnose(case.problem(loss), examinations=("hessian",))
    text = diagnosis.summary()
    assert "cannot be told from zero in this precision" in text
    assert "negative curvature" not in {f.rule for f in diagnosis.findings}
    assert "indefinite" not in diagnosis.measurements.spectrum.verdict


def test_health_prints_the_smallest_eigenvalue_down_to_its_limit(cases):
    diagnosis = diagnose(cases["mlp"].problem("crossentropy"), examinations=("hessian",))
    arrays, attributes = diagnosis.stored()
    report = json.loads(attributes["report"])
    entry = report["numbers"]["smallest_eigenvalue"]
    assert entry["limit"] == diagnosis.measurements.spectrum.limits[1]
    entry["limit"] = -3.0
    text = health_report(StoredReport(arrays, {"report": json.dumps(report)}))
    (line,) = [line for line in text.splitlines() if line.startswith("  smallest eigenvalue")]
    assert "(may lie as low as -3)" in line
    for name in ("limit", "rounding"):  # as in files of version 0.1
        del entry[name]
    assert "as low as" not in health_report(StoredReport(arrays, {"report": json.dumps(report)}))


def test_dynamics_follow_a_saturated_network_within_their_bars(cases, tmp_path):
    case, files = cases["mlp"], []
    state = {k: t.clone() for k, t in case.net.state_dict().items()}
    for step, factor in enumerate((0.5, 1.0)):
        files.append(tmp_path / f"checkpoint-{step}.pt")
        torch.save({k: factor * t for k, t in state.items()}, files[-1])
    result = run_dynamics(files, case.problem(unknown), path=tmp_path / "run.h5", top=4)
    fields = read(result.path)
    true = case.values[::-1]
    for value, error in zip(fields["eigenvalues"][-1], fields["eigenvalue_errors"][-1], strict=True):
        assert np.abs(true - value).min() <= error
    low, error = fields["smallest_eigenvalue"][-1], fields["smallest_eigenvalue_error"][-1]
    assert np.abs(true - low).min() <= error
    assert "cannot be told from zero within their errors" in " ".join(result.summary.split())
