"""Error bars rest on rounding that was measured: a loss whose terms cancel, whatever the precision, breaks none."""

from __future__ import annotations

from array import array
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossmap import Problem
from lossmap.curvature.autotune import prepare
from lossmap.curvature.backends import RetainedGraphProducts
from lossmap.curvature.build import build_operator
from lossmap.curvature.hvp_plan import HvpPlan, ProductCheck
from lossmap.curvature.linearized_operator import CHEAP_SIZE, LinearizedOperator
from lossmap.curvature.rounding import OutputsWithin, largest_difference, problem_in
from lossmap.data.loss_check import check_loss
from lossmap.geometry.directions import random_plane
from lossmap.landscape.eigenvalues import EigenvalueMap
from lossmap.spectra.spectrum import spectrum


def cancelling(outputs: Tensor, targets: Tensor) -> Tensor:
    """The cross entropy as it is often written: log sum exp less the target's logit."""
    return (outputs.logsumexp(1) - outputs.gather(1, targets[:, None])[:, 0]).mean()


def logistic(length: float, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Tensor]:
    """A logistic regression that fits its 60 samples, with weights of this length."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator)
    y = (x[:, 0] > 0).long()
    x[:, 0] += x[:, 0].sign()
    net = nn.Linear(3, 2).eval()
    with torch.no_grad():
        net.weight.copy_(length * torch.tensor([[-1.0, 0.1, 0.0], [1.0, 0.0, 0.1]]))
        net.bias.zero_()
    return net.to(dtype), x.to(dtype), y


def largest(weight: Tensor, x: Tensor) -> float:
    """The largest eigenvalue by the weights in closed form: [[1, -1], [-1, 1]] times X^T diag(p (1 - p)) X / N."""
    z = (x.double() @ weight.detach().double().T).diff(dim=1)[:, 0].abs()
    p = torch.sigmoid(-z)
    return float(2.0 * torch.linalg.eigvalsh(x.double().T @ ((p * (1 - p))[:, None] * x.double()) / len(x))[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [cancelling, "crossentropy"])
def test_a_convex_problem_is_within_its_bars_and_never_said_to_be_indefinite(loss: object, dtype: torch.dtype) -> None:
    for length in (1.0, 3.0, 5.0, 8.0):
        net, x, y = logistic(length, dtype)
        truth = largest(net.weight, x)
        for dense in (300, 1):
            result = spectrum(
                Problem.supervised(net, loss, (x, y)),
                top=1,
                bottom=1,
                density_error=None,
                trace_products=0,
                dense=dense,
            )
            for (value, error), true in ((result.largest, truth), (result.smallest, 0.0)):
                assert abs(value - true) <= error + 1e-3 * truth * (dense == 1), (length, dense)
            assert "indefinite" not in repr(result)
            assert "not a minimum" not in " ".join(repr(result).split())
            if loss == "crossentropy":  # and the bars are of use
                assert max(result.largest[1], result.smallest[1]) < 1e-4 * truth


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [cancelling, "crossentropy"])
def test_every_point_of_a_map_around_a_fitted_model_is_within_its_bars(loss: object, dtype: torch.dtype) -> None:
    for length in (4.0, 8.0):
        net, x, y = logistic(length, dtype)
        plane = random_plane(net, axes=1, seed=0)
        measure = EigenvalueMap({"train": prepare(Problem.supervised(net, loss, (x, y)), "weights")}, plane)
        for point in (0.0, 0.4, 1.0):
            reading = measure((point,))
            truth = largest(plane.at((point,)).get("weight", net.weight), x)
            assert abs(reading["max_eig"] - truth) <= reading["max_eig_error"] + 1e-3 * truth, (length, point)
            assert reading["min_eig"] >= -reading["min_eig_error"], (length, point)


def test_gauss_newton_has_no_negative_eigenvalue() -> None:
    for length in (3.0, 6.0):
        net, x, y = logistic(length)
        result = spectrum(
            Problem.supervised(net, cancelling, (x, y)), matrix="gauss-newton", top=1, bottom=1, density_error=None,
            trace_products=0,
        )  # fmt: skip
        assert result.smallest[0] >= -result.smallest[1]


def test_the_allowance_of_a_network_that_does_not_cancel_is_some_epsilons_of_its_largest_eigenvalue() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)).eval()
    problem = Problem.supervised(net, "crossentropy", (torch.randn(50, 8), torch.randint(0, 4, (50,))))
    operator = build_operator(problem, "hessian", "weights")
    v = torch.randn(operator.size)
    for _ in range(20):
        v = operator @ (v / v.norm())
    epsilon = torch.finfo(torch.float32).eps
    assert 0.1 * epsilon < operator.rounding / float(v.norm()) < 30 * epsilon
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_a_model_that_runs_in_no_other_precision_is_allowed_what_its_loss_may_cancel() -> None:
    class Single(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.weight.dtype != torch.float32:
                raise RuntimeError("float32 alone")
            return super().forward(x)

    net, x, y = logistic(6.0)
    single = Single(3, 2).eval()
    single.load_state_dict(net.state_dict())
    problem = Problem.supervised(single, cancelling, (x, y))
    with pytest.raises(RuntimeError):
        problem_in(problem, torch.float64)
    operator = build_operator(problem, "hessian", "weights")
    matrix = torch.stack([operator @ row for row in torch.eye(6)]).double()
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    assert abs(float(values[-1]) - largest(net.weight, x)) <= operator.rounding
    assert float(values[0]) >= -operator.rounding


def test_a_plan_keeps_what_was_measured_and_those_of_former_versions_have_none() -> None:
    net, x, y = logistic(2.0)
    plan = prepare(Problem.supervised(net, "crossentropy", (x, y)), "weights").plan
    assert plan.rounding is not None
    assert np.all(np.array(plan.rounding) > 0.0)
    assert HvpPlan.from_stored(plan.stored()) == plan
    old = {name: value for name, value in plan.stored().items() if name != "rounding"}
    assert HvpPlan.from_stored(old).rounding is None
    assert prepare(Problem.supervised(net, "crossentropy", (x, y)), "weights", plan=old).at().rounding is None


class WithWeights:
    """A loss that holds float32 class weights in a closure, out of reach of the model's precision."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, self.weight)


@pytest.mark.parametrize("kind", ["module", "function", "custom"])
def test_a_loss_with_tensors_of_its_own_has_a_twin_in_float64(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    net, x, y = logistic(6.0)
    y = torch.zeros_like(y)
    with torch.no_grad():
        net.bias.copy_(torch.tensor([60.0, 0.0]))  # every sample's target leads: tiny eigenvalues under large logits
    loss = {"module": nn.CrossEntropyLoss(torch.tensor([0.5, 2.0])), "function": WithWeights(torch.tensor([0.5, 2.0]))}
    if kind == "custom":
        problem = Problem.custom(net, lambda m, b: loss["function"](m(b[0]), b[1]), (x, y))
    else:
        problem = Problem.supervised(net, loss[kind], (x, y))
    twin = problem_in(problem, torch.float64)
    assert twin.total(next(iter(twin.data))).dtype == torch.float64
    result = spectrum(problem, top=1, bottom=1, density_error=None, trace_products=0, dense=300)
    truth = largest_of_biased(net, x)
    value, error = result.largest
    assert truth > 0.0
    assert abs(value - truth) <= error <= 0.01 * truth
    assert "not compared" not in caplog.text


def largest_of_biased(net: nn.Module, x: Tensor) -> float:
    """As `largest`, with the net's bias; the weights of a single class cancel in the mean."""
    z = (x.double() @ net.weight.detach().double().T + net.bias.detach().double()).diff(dim=1)[:, 0].abs()
    p = torch.exp(-z) / (1 + torch.exp(-z))
    return float(2.0 * torch.linalg.eigvalsh(x.double().T @ ((p * (1 - p))[:, None] * x.double()) / len(x))[-1])


def test_a_twin_in_float64_is_the_same_function_where_a_layer_asks_for_the_precision() -> None:
    x = 3e-4 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))  # squares near float32's unit roundoff
    net = nn.Sequential(nn.RMSNorm(4, eps=None), nn.Linear(4, 1))
    problem = Problem.supervised(net, "mse", (x, torch.zeros(8, 1)))
    with torch.no_grad():
        outputs, twin = net(x), problem_in(problem, torch.float64).model(x.double())
    torch.testing.assert_close(twin, outputs.double(), rtol=1e-5, atol=1e-6)
    assert net[0].eps is None


class Baked(nn.Module):
    """A linear layer times a factor that a trace takes for a constant, as code that goes through NumPy does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        factor = torch.from_numpy(self.inner.weight.detach().double().numpy().copy()).norm()
        return self.inner(x) * factor.to(x.dtype)


def few_samples_of(model: nn.Module, samples: int = 600) -> Problem:
    """A problem of so many random samples in three classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 4, generator=generator)
    y = torch.randint(0, 3, (samples,), generator=generator)
    return Problem.supervised(model, "crossentropy", (x, y), batch_size=200)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def test_linearized_products_over_few_samples_are_those_of_double_backward() -> None:
    model = mlp()
    factory = prepare(few_samples_of(model), "all", backend="linearized")
    there = {name: 2.0 * t.detach() for name, t in model.named_parameters()}
    v = torch.randn(factory.size, generator=torch.Generator().manual_seed(1))
    assert factory.traces_few
    traced, plain = factory.few(True), factory.few(False)
    assert (traced.plan.backend, plain.plan.backend) == ("linearized", "double-backward")
    for exact in (traced.at(there).in_float64(), factory.at(there).in_float64()):
        assert exact.factory.plan.backend == "linearized"
    truth = plain.at(there).in_float64() @ v.double()
    scale = float(truth.norm())
    assert float((traced.at(there).in_float64() @ v.double() - truth).norm()) < 1e-12 * scale
    assert 0.0 < float(((traced.at(there) @ v).double() - truth).norm()) < 1e-5 * scale
    whole = prepare(few_samples_of(model), "all", backend="double-backward", check=False)
    expected = whole.at(there).in_float64() @ v.double()
    assert whole.at(there).in_float64().factory.plan.backend == "double-backward"
    assert float((factory.at(there).in_float64() @ v.double() - expected).norm()) < 1e-12 * float(expected.norm())


def test_what_rounding_does_to_a_product_over_few_samples_is_seen_by_either_backend() -> None:
    model = mlp()
    factory = prepare(few_samples_of(model), "all", backend="linearized")
    plain = prepare(few_samples_of(model), "all", backend="double-backward")
    assert not plain.traces_few
    assert not prepare(few_samples_of(model, 300), "all", backend="linearized").traces_few  # few: no trace is worth it
    vectors = torch.linalg.qr(torch.randn(factory.size, 3, generator=torch.Generator().manual_seed(1)))[0]
    (seen, _), (expected, _) = (f.at().rounding_of(vectors) for f in (factory, plain))
    assert expected / 5.0 < seen < expected * 5.0
    assert factory.plan.rounding is not None and plain.plan.rounding is not None
    assert plain.plan.rounding[0] / 10.0 < factory.plan.rounding[0] < plain.plan.rounding[0] * 10.0


def test_where_a_trace_does_not_fit_the_point_rounding_is_measured_by_double_backward() -> None:
    torch.manual_seed(0)
    model = Baked()
    factory = prepare(few_samples_of(model), "all", backend="linearized", check=False)
    there = {name: 3.0 * t.detach() for name, t in model.named_parameters()}
    v = torch.randn(factory.size, 1, generator=torch.Generator().manual_seed(1))
    operator = factory.at(there)
    operator @ v[:, 0]
    used: list[bool] = []
    few = type(factory).few

    def recorded(self: object, traced: bool) -> object:
        used.append(traced)
        return few(self, traced)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(factory), "few", recorded)
        assert operator.rounding_of(v)[0] < 1e-4
        factory.at().rounding_of(v)
    assert used == [False, True]


class Plain:
    """A symmetric matrix as an operator."""

    def __init__(self, entries: Tensor, dtype: torch.dtype) -> None:
        self.entries, self.size, self.dtype, self.device = entries.to(dtype), len(entries), dtype, entries.device

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.entries @ v


@pytest.mark.parametrize("seed", range(5))
def test_an_error_in_one_direction_is_found_wherever_the_largest_eigenvalue_lies(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors, _ = torch.linalg.qr(torch.randn(400, 400, generator=generator, dtype=torch.float64))
    right = vectors @ torch.diag(torch.linspace(-1.0, 2.0, 400, dtype=torch.float64) ** 5) @ vectors.T
    wrong = 1e-3 * torch.outer(vectors[:, 7], vectors[:, 7])
    single, double = Plain(right + wrong, torch.float32), Plain(right, torch.float64)
    error, scale, relative = largest_difference(single, double)
    assert 0.9e-3 < error < 1.1e-3 and 4.0 < scale < 33.0 and relative < 1e-3


class Record(array):  # type: ignore[type-arg]
    """A list of numbers where no look finds them, so that nothing puts them back."""

    def __new__(cls) -> Record:
        return super().__new__(cls, "q")

    def clear(self) -> None:
        """Begin anew."""
        del self[:]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list) and list(self) == other


class CountedNet(nn.Sequential):
    """Counts its passes by their samples, copies included."""

    passes: ClassVar[dict[torch.dtype, Record]] = {torch.float32: Record(), torch.float64: Record()}

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4) -> (N, 3)."""
        self.passes[x.dtype].append(len(x))
        return super().forward(x)

    @classmethod
    def forget(cls) -> None:
        """Begin anew."""
        for counts in cls.passes.values():
            counts.clear()


def test_where_graphs_are_kept_that_of_the_twin_in_float64_is_made_once() -> None:
    torch.manual_seed(0)
    net = CountedNet(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    problem = check_loss(Problem.supervised(net, "crossentropy", (torch.randn(40, 4), torch.arange(40) % 3)))
    CountedNet.forget()
    factory = prepare(problem, check=ProductCheck(), products=20)
    assert factory.plan.backend == "retained-graph" and factory.plan.rounding is not None
    # whether it is the same function, and the graph: that it holds no other model is known
    assert CountedNet.passes[torch.float64] == [40, 40]


def test_a_plan_looks_at_the_few_samples_of_points_through_one_copy() -> None:
    torch.manual_seed(0)
    net = CountedNet(nn.Linear(4, 120), nn.Tanh(), nn.Linear(120, 90), nn.Linear(90, 3))
    problem = check_loss(Problem.supervised(net, "crossentropy", (torch.randn(160, 4), torch.arange(160) % 3)))
    CountedNet.forget()
    factory = prepare(problem, check=ProductCheck(), products=20)
    planned = list(CountedNet.passes[torch.float64])
    assert factory.size > CHEAP_SIZE and set(planned) == {16}  # a tenth of the samples, of a net that is not small
    point = {name: 1.1 * p.detach() for name, p in net.named_parameters()}
    operator = factory.at(point)
    error, size = operator.rounding_of(torch.nn.functional.normalize(torch.randn(operator.size, 1), dim=0))
    assert 0.0 < error < 1e-5 * size
    assert CountedNet.passes[torch.float64] == [*planned, 16]  # the graph: no copy was made
    assert factory.plan.rounding is not None and 0.0 < factory.plan.rounding[1] < 1e-4


def test_where_a_plan_was_made_one_graph_in_each_precision_serves_the_look_at_the_point_too() -> None:
    torch.manual_seed(0)
    net = CountedNet(nn.Linear(4, 120), nn.Tanh(), nn.Linear(120, 90), nn.Linear(90, 3))
    problem = check_loss(Problem.supervised(net, "crossentropy", (torch.randn(160, 4), torch.arange(160) % 3)))
    CountedNet.forget()
    factory = prepare(problem, check=ProductCheck(), products=20, distant=False)
    # the graph, which says how many bytes one takes, its comparison, and whether the copy is the same function
    assert factory.plan.backend == "retained-graph" and CountedNet.passes[torch.float32] == [16, 16, 16]
    here = {name: p.detach().clone() for name, p in net.named_parameters()}
    v = torch.nn.functional.normalize(torch.randn(factory.size, 1), dim=0)
    CountedNet.forget()
    error, size = factory.at(here).rounding_of(v)
    assert not any(CountedNet.passes.values())
    assert factory.plan.rounding is not None and error == pytest.approx(factory.plan.rounding[0] / 3)
    factory.at({name: 1.1 * t for name, t in here.items()}).rounding_of(v)
    assert CountedNet.passes == {torch.float32: [16, 16], torch.float64: [16]}
    anew, same_size = factory.at(here).rounding_of(v)  # nothing is kept of a point that was left
    assert CountedNet.passes == {torch.float32: [16, 16] * 2, torch.float64: [16] * 2}
    assert 0.0 < anew < 3 * error and same_size == pytest.approx(size, rel=1e-4)


def test_a_graph_that_may_not_fit_is_measured_over_all_its_samples() -> None:
    torch.manual_seed(0)
    net = CountedNet(nn.Linear(4, 120), nn.Tanh(), nn.Linear(120, 90), nn.Linear(90, 3))
    problem = check_loss(Problem.supervised(net, "crossentropy", (torch.randn(160, 4), torch.arange(160) % 3)))
    roomy, narrow = (prepare(problem, check=ProductCheck(), products=20, memory=m) for m in (1 << 30, 1 << 20))
    assert narrow.plan.graph_bytes < roomy.plan.graph_bytes  # of which the weights are a larger share for 16 samples


def test_for_few_products_at_one_point_one_graph_serves_them_and_their_rounding() -> None:
    torch.manual_seed(0)
    net = CountedNet(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    problem = check_loss(Problem.supervised(net, "crossentropy", (torch.randn(40, 4), torch.arange(40) % 3)))
    CountedNet.forget()
    operator = build_operator(problem, "hessian", "all", backend="auto", check=ProductCheck())
    assert isinstance(operator, LinearizedOperator) and isinstance(operator.products, RetainedGraphProducts)
    known = operator.measured
    v = torch.randn(operator.size)
    product = operator @ v
    assert CountedNet.passes[torch.float32] == [40, 40, 40]  # the graph, its comparison, whether the twin is the same
    plain = build_operator(problem, "hessian", "all")
    torch.testing.assert_close(product, plain @ v)
    anew = operator.probe()  # the same by another measurement, over graphs of its own
    assert known is not None and anew is not None and anew.rounding == pytest.approx(known.rounding, rel=1e-6)
    assert plain.measured is not None and plain.measured.rounding == pytest.approx(known.rounding, rel=0.5)


def test_a_graph_beyond_the_memory_is_made_anew_in_every_product() -> None:
    torch.manual_seed(0)
    net = CountedNet(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    problem = check_loss(Problem.supervised(net, "crossentropy", (torch.randn(40, 4), torch.arange(40) % 3)))
    operator = build_operator(problem, "hessian", "all", backend="auto", check=ProductCheck(), memory=100)
    CountedNet.forget()
    v = torch.randn(operator.size)
    torch.testing.assert_close(operator @ v, build_operator(problem, "hessian", "all") @ v)
    operator @ v
    assert CountedNet.passes[torch.float32] == [40, 40, 40]


def test_the_rounding_of_a_kept_graph_is_that_of_double_backward() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    problem = check_loss(Problem.supervised(net, "crossentropy", (torch.randn(40, 4), torch.arange(40) % 3)))
    one, two = (prepare(problem, check=ProductCheck(), backend=b) for b in ("retained-graph", "double-backward"))
    assert one.plan.rounding is not None and two.plan.rounding is not None
    assert one.plan.rounding[1] == pytest.approx(two.plan.rounding[1], rel=0.5)


def test_outputs_that_a_loss_writes_into_are_kept_as_the_model_gave_them():
    model, x = nn.Linear(3, 2).double(), torch.randn(5, 3, dtype=torch.float64)
    (seen,) = OutputsWithin(lambda m, batch: m(batch).mul_(2.0).sum())(model, x)
    assert torch.equal(seen, model(x)) and seen.requires_grad
