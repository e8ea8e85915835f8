"""Linearized products against double backward and dense truth, the choice among backends, and what falls back."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lossmap.curvature.autotune import Probe, prepare
from lossmap.curvature.backends import bytes_of
from lossmap.curvature.hvp_plan import BACKENDS, HvpPlan, backend_of
from lossmap.curvature.linearize.graph_builder import packet
from lossmap.curvature.linearize.trace import fold_batchnorm_in_graph, traced
from lossmap.curvature.linearize.winograd import outputs, outputs_back, tiles, tiles_back, weights, weights_back
from lossmap.curvature.linearized_operator import OperatorFactory, disagreement
from lossmap.curvature.operators import CurvatureOperator, fisher, gauss_newton, hessian
from lossmap.data.batches import Resident
from lossmap.data.problem import Problem
from lossmap.geometry.directions import random_plane

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


class Block(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.a, self.na = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.b, self.nb = nn.Conv2d(o, o, 3, 1, 1), nn.BatchNorm2d(o)
        self.short = nn.Conv2d(i, o, 1, stride)

    def forward(self, x):
        return F.relu(self.nb(self.b(F.relu(self.na(self.a(x))))) + self.short(x))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 3)
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, dropout=0.1)

    def forward(self, x):
        return self.out(self.layer(self.embed(x)).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


class Shared(nn.Module):
    """The same weight twice, and a parameter that does not reach the loss."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.idle = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3), nn.Linear(2, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.sigmoid(self.a(x)))))


class Stopped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.b(h * h.detach())


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x * 1.0

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.b(Doubled.apply(torch.tanh(self.a(x))))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 3)

    def forward(self, x):
        y = self.a(x)
        return y.tanh() if y.sum().item() > -1e9 else y


def pooled(*layers, width):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 3))


def residual():
    net = pooled(nn.Conv2d(2, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(), Block(4, 4, 1), Block(4, 6, 2), width=96)
    net(torch.randn(16, 2, 8, 8))
    return net


def activations():
    return nn.Sequential(
        nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 4), nn.SiLU(), nn.LayerNorm(4), nn.Linear(4, 4), nn.Softplus(),
        nn.Linear(4, 4), nn.ELU(), nn.Linear(4, 3), nn.LogSoftmax(1),
    )  # fmt: skip


def images_of_every_kind():
    return pooled(
        nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.GroupNorm(2, 4), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2),
        nn.InstanceNorm2d(3, affine=True), nn.LeakyReLU(), nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.ConvTranspose2d(3, 3, 2, 2), nn.BatchNorm2d(3), nn.Hardswish(), nn.AdaptiveAvgPool2d(2), width=12,
    )  # fmt: skip


def regularised(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y) + 0.05 * sum(p.pow(4).sum() for p in model.parameters())


def physical(model, batch):
    x = batch[0].detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return slope.square().mean()


def case(name, dtype=torch.float64, cut=3):
    """7 samples in batches of 3, 3, 1."""
    torch.manual_seed(5)
    labels, rows, images = torch.randint(3, (7,)), torch.randn(7, 5), torch.randn(7, 2, 8, 8)
    makers = {
        "mlp": (lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), rows),
        "activations": (activations, rows),
        "residual": (residual, images),
        "images": (images_of_every_kind, images),
        "attention": (Attention, torch.randint(7, (7, 4))),
        "recurrent": (Recurrent, torch.randn(7, 4, 3)),
        "shared": (Shared, rows),
        "stopped": (Stopped, rows),
        "custom": (Custom, rows),
        "branching": (Branching, rows),
        "regularised": (lambda: nn.Sequential(nn.Linear(5, 4), nn.SiLU(), nn.Linear(4, 3)), rows),
        "physical": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), rows),
        "squares": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), rows),
    }
    make, x = makers[name]
    model = make().to(dtype).eval()
    if name in ("regularised", "physical"):
        problem = Problem.custom(model, {"regularised": regularised, "physical": physical}[name],
                                 Resident((x, labels), cut))  # fmt: skip
    elif name == "squares":
        problem = Problem.supervised(model, "mse", Resident((x, torch.randn(7, 3)), cut))
    else:
        problem = Problem.supervised(model, "crossentropy", Resident((x, labels), cut))
    return problem.to(dtype=dtype)


LINEAR = HvpPlan("linearized", 3)
TRACED = ("mlp", "activations", "residual", "images", "attention", "recurrent", "shared", "squares", "regularised",
          "physical")  # fmt: skip
PRODUCTS = [(name, hessian, "all") for name in TRACED]
PRODUCTS += [(name, gauss_newton, "all") for name in ("mlp", "images", "attention", "squares")]
PRODUCTS += [(name, fisher, "all") for name in ("mlp", "images", "attention")]
PRODUCTS += [("residual", hessian, "weights"), ("residual", gauss_newton, "weights"), ("shared", hessian, "idle")]


@pytest.mark.parametrize(("name", "product", "parameters"), PRODUCTS)
def test_a_linearized_product_is_double_backwards(name, product, parameters, caplog):
    problem = case(name)
    prepared = prepare(problem, parameters, product, plan=replace(LINEAR, batch_size=7))
    assert prepared.plan.backend == "linearized" and "not linearized" not in caplog.text
    block = torch.randn(prepared.size, 2, dtype=torch.float64)
    truth = CurvatureOperator(problem, product, parameters) @ block
    torch.testing.assert_close(prepared.at() @ block, truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_point_is_another_model_and_the_model_stays(backend):
    problem = case("residual")
    model = problem.model
    plane = random_plane(model, 2, 1, states=True)
    prepared = prepare(problem, plan=replace(LINEAR, backend=backend, graph_bytes=1))
    before = {k: t.clone() for k, t in model.state_dict().items()}
    v = torch.randn(prepared.size, dtype=torch.float64)
    operators = [prepared.at(plane.at(point)) for point in ((0.0, 0.0), (0.3, -0.2))]
    products = [operator @ v for operator in operators]  # both at once: neither disturbs the other
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for point, operator, product in zip(((0.0, 0.0), (0.3, -0.2)), operators, products, strict=True):
        model.load_state_dict(before | plane.at(point))
        torch.testing.assert_close(product, CurvatureOperator(problem) @ v, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(operator @ v, product, rtol=1e-9, atol=1e-12)
        whole = next(iter(problem.rebatched(7).data))
        assert operator.loss() == pytest.approx(problem.total(whole).item() / 7, rel=1e-12)
        model.load_state_dict(before)
    assert prepared.at().loss() == pytest.approx(operators[0].loss(), rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_products_are_those_of_evaluation_mode_and_modes_are_restored(backend):
    problem = case("residual")
    v = torch.randn(CurvatureOperator(problem).size, dtype=torch.float64)
    truth = CurvatureOperator(problem) @ v
    problem.model.train()
    torch.testing.assert_close(prepare(problem, backend=backend).at() @ v, truth, rtol=1e-9, atol=1e-12)
    assert problem.model.training and problem.model[1].training


@pytest.mark.parametrize("name", ["stopped", "custom"])
def test_a_gradient_that_is_not_the_losss_is_refused(name):
    with pytest.raises(ValueError, match="is not that of the loss"):
        prepare(case(name))


def test_what_a_trace_does_not_see_falls_back_and_says_so(caplog):
    problem = case("branching")
    v = torch.randn(CurvatureOperator(problem).size, dtype=torch.float64)
    prepared = prepare(problem)
    assert prepared.plan.backend in ("retained-graph", "double-backward")
    assert [r.levelno for r in caplog.records if r.name == "lossmap"] == [logging.WARNING]
    assert "products are not linearized, but made by double backward" in caplog.text
    torch.testing.assert_close(prepared.at() @ v, CurvatureOperator(problem) @ v, rtol=1e-9, atol=1e-12)
    assert prepare(problem, plan=LINEAR).plan.backend == "double-backward"  # also where a plan asks for it


def test_a_product_without_rules_is_made_by_double_backward(caplog):
    problem = case("mlp")

    def twice(problem, batch, parameters, vectors):
        return [[2 * part for part in row] for row in hessian(problem, batch, parameters, vectors)]

    prepared = prepare(problem, product=twice)
    assert prepared.plan.backend == "double-backward" and "there are no rules" in caplog.text
    v = torch.randn(prepared.size, dtype=torch.float64)
    torch.testing.assert_close(prepared.at() @ v, 2 * (CurvatureOperator(problem) @ v))


@pytest.mark.parametrize("form", ["contiguous", "channels_last"])
@pytest.mark.parametrize("product", [hessian, gauss_newton, fisher])
def test_memory_formats_tiles_and_blocks_change_nothing(form, product):
    problem = case("residual")
    for parameters, options in (
        ("weights", ({"winograd_channels": 2}, {"vectorized": True})),
        ("all", ({"winograd_channels": 2},)),
    ):
        block = torch.randn(CurvatureOperator(problem, parameters=parameters).size, 3, dtype=torch.float64)
        truth = CurvatureOperator(problem, product, parameters) @ block
        for more in options:
            plan = replace(LINEAR, batch_size=7, memory_format=form, **more)
            prepared = prepare(problem, parameters, product, plan=plan)
            assert prepared.plan.backend == "linearized"
            torch.testing.assert_close(prepared.at() @ block, truth, rtol=1e-8, atol=1e-11)


def test_values_beyond_the_memory_are_computed_anew():
    problem = case("residual")
    v = torch.randn(CurvatureOperator(problem).size, dtype=torch.float64)
    truth = CurvatureOperator(problem) @ v
    for backend in ("linearized", "retained-graph"):
        plan = replace(LINEAR, backend=backend, graph_bytes=10_000)
        for memory in (0, 30_000):
            matrix = prepare(problem, plan=plan, memory=memory).at()
            for _ in range(2):
                torch.testing.assert_close(matrix @ v, truth, rtol=1e-9, atol=1e-12)
            assert matrix.loss() == pytest.approx(prepare(problem, backend="double-backward").at().loss(), rel=1e-12)


def test_bytes_count_each_storage_once_and_none_that_is_there_anyhow():
    there, made = torch.zeros(100), torch.zeros(50)
    given = {there.untyped_storage()._cdata}
    assert bytes_of(((there, made), made.view(5, 10), (made[3:], None)), given) == 200


def test_any_cut_and_shares_give_the_same_product():
    problem = case("residual")
    v = torch.randn(CurvatureOperator(problem).size, dtype=torch.float64)
    truth = CurvatureOperator(problem) @ v
    for batch in (2, 5):
        torch.testing.assert_close(prepare(problem, plan=replace(LINEAR, batch_size=batch)).at() @ v, truth)
    sent = []
    for rank in range(2):
        prepare(problem.share(rank, 2), total=lambda t: sent.append(t.clone()) or t, plan=LINEAR).at() @ v
    products = [message for message in sent if message.numel() > v.numel()]
    factory = prepare(problem.share(0, 2), plan=LINEAR)
    joined = replace(factory, total=lambda t: sum(products)).at() @ v
    torch.testing.assert_close(joined, truth)


def test_a_plan_can_be_stored_and_used_again():
    problem = case("residual", torch.float32)
    prepared = prepare(problem)
    entries = json.loads(json.dumps(prepared.plan.stored()))
    again = prepare(problem, plan=entries)
    assert again.plan == prepared.plan
    v = torch.randn(prepared.size)
    assert torch.equal(prepared.at() @ v, again.at() @ v)
    assert {"way", "batch", "format", "block", "seconds_per_sample"} <= set(entries)


def test_the_probe_takes_the_cheapest_of_what_it_measured():
    problem = case("mlp")
    prepared = prepare(problem)
    record = prepared.plan.seconds_per_sample
    assert {key.split()[0] for key in record} == {"linear", "graph", "double"}
    assert prepared.plan.label in record


def test_tiles_that_round_too_much_are_not_taken(monkeypatch):
    problem = case("residual", torch.float32)
    begun = prepare(problem, plan=replace(LINEAR, memory_format="channels_last"))
    probe = Probe(begun)
    monkeypatch.setattr(probe, "cheaper", lambda best, other: other)
    monkeypatch.setattr("lossmap.curvature.autotune.MIN_WINOGRAD_CHANNELS", 4)
    monkeypatch.setattr("lossmap.curvature.autotune.MAX_FORMAT_ROUNDING", 0.0)
    assert probe.with_winograd(probe.candidate(begun.plan)).plan.winograd_channels == 0
    monkeypatch.setattr("lossmap.curvature.autotune.MAX_FORMAT_ROUNDING", 1000.0)
    assert probe.with_winograd(probe.candidate(begun.plan)).plan.winograd_channels == 4


def test_float32_is_as_near_to_float64_as_double_backward():
    single, double = case("residual", torch.float32), case("residual")
    v = torch.randn(CurvatureOperator(double).size, dtype=torch.float64)
    truth = CurvatureOperator(double) @ v
    for more in ({}, {"winograd_channels": 2, "memory_format": "channels_last"}):
        product = prepare(single, plan=replace(LINEAR, **more)).at() @ v.float()
        assert product.dtype == torch.float32
        assert float((product.double() - truth).norm() / truth.norm()) < 1e-5


def test_a_loss_that_is_not_finite_is_returned_and_its_product_raises():
    problem = case("mlp")
    bad = {"0.weight": torch.full((4, 5), float("nan"), dtype=torch.float64)}
    for backend in ("linearized", "double-backward"):
        matrix = prepare(problem, backend=backend).at(bad)
        assert matrix.loss() != matrix.loss()
        with pytest.raises(FloatingPointError, match="not finite"):
            matrix @ torch.zeros(32, dtype=torch.float64)


def test_the_operator_goes_to_scipy():
    matrix = prepare(case("mlp"), backend="linearized").at()
    operator = matrix.to_scipy()
    assert operator.shape == (32, 32) and operator.dtype == "float64"
    assert operator.matvec(torch.ones(32).numpy()) == pytest.approx(
        (matrix @ torch.ones(32, dtype=torch.float64)).numpy()
    )


def test_a_loss_that_fails_on_one_rank_is_raised_by_all():
    problem = case("mlp")

    def failed_elsewhere(sums):
        return sums + torch.tensor([0.0, -torch.inf]) if sums.numel() == 2 else sums  # a loss; products are longer

    matrix = prepare(problem, backend="double-backward", total=failed_elsewhere).at()
    with pytest.raises(RuntimeError, match="failed on another rank"):
        matrix.loss()

    def broken(model, batch):
        raise ZeroDivisionError("no loss here")

    sent = []
    broken_problem = replace(Problem.custom(problem.model, broken, problem.data), checked=True)
    failing = prepare(
        broken_problem, plan=replace(LINEAR, backend="double-backward"), total=lambda t: sent.append(t) or t
    ).at()
    with pytest.raises(ZeroDivisionError, match="no loss here"):
        failing.loss()
    assert float(sent[-1][1]) == -float("inf")


def test_unknown_names_and_backends_are_refused():
    problem = case("mlp")
    with pytest.raises(KeyError, match=r"the model has no tensor named 'no\.such'"):
        prepare(problem, backend="double-backward").at({"no.such": torch.zeros(1)})
    with pytest.raises(
        ValueError, match="must be one of auto, linearized, retained-graph, double-backward; got 'magic'"
    ):
        prepare(problem, backend="magic")
    with pytest.raises(ValueError, match="Gauss-Newton and Fisher matrices need outputs and loss as two steps"):
        prepare(case("physical"), product=gauss_newton)


def test_batch_norm_in_training_mode_inside_is_not_folded():
    problem = case("residual")
    norm = problem.model[1]

    def always_training(model, batch):
        norm.train()
        value = F.cross_entropy(model(batch[0]), batch[1])
        norm.eval()
        return value

    odd = Problem.custom(problem.model, always_training, problem.data)
    reason = disagreement(prepare(odd, plan=replace(LINEAR, backend="double-backward")))
    assert reason is not None and "batch norm in training mode: call model.eval() first" in reason


def test_tiles_are_the_convolution_and_its_transposes():
    torch.manual_seed(0)
    x, w = torch.randn(2, 3, 8, 12, dtype=torch.float64), torch.randn(5, 3, 3, 3, dtype=torch.float64)
    y = F.conv2d(x, w, padding=1)
    tiled = torch.bmm(tiles(x), weights(w))
    torch.testing.assert_close(outputs(tiled, [2, 5, 8, 12]), y, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(y)
    pairs = (
        (tiles, tiles_back, x, [[2, 3, 8, 12]], torch.randn(36, 12, 3, dtype=torch.float64)),
        (weights, weights_back, w, [], torch.randn(36, 3, 5, dtype=torch.float64)),
        (outputs_back, outputs, g, [[2, 5, 8, 12]], torch.randn(36, 12, 5, dtype=torch.float64)),
    )
    for forward, back, a, shape, b in pairs:  # <forward a, b> = <a, back b>
        torch.testing.assert_close((forward(a) * b).sum(), (a * back(b, *shape)).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("layer", "image"), [(nn.Conv2d(3, 4, 1, 2), (5, 6)), (nn.Conv1d(3, 4, 1, 3), (8,)),
                                              (nn.Conv2d(3, 4, 1, 2, padding=1), (5, 6))])  # fmt: skip
def test_a_strided_convolution_of_single_entries_takes_what_it_reads_and_has_no_stride(layer, image):
    torch.manual_seed(0)
    first = (nn.Conv2d if len(image) == 2 else nn.Conv1d)(2, 3, 1)
    model = nn.Sequential(first, nn.Tanh(), layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    data = torch.randn(6, 2, *image, dtype=torch.float64), torch.arange(6) % 3
    model(data[0])
    problem = Problem.supervised(model.eval(), "crossentropy", data)
    prepared = prepare(problem, plan=LINEAR)
    v = torch.randn(prepared.size, dtype=torch.float64)
    torch.testing.assert_close(prepared.at() @ v, CurvatureOperator(problem) @ v, rtol=1e-9, atol=1e-12)
    tensors = torch.ones((), dtype=torch.float64), model[:2](data[0]).detach()
    graph = fold_batchnorm_in_graph(traced(lambda w, x: (layer.forward(x) * w).sum(), tensors))
    strides = [set(n.args[3]) for n in graph.graph.nodes if packet(n) is torch.ops.aten.convolution]
    padded = set(layer.padding) != {0}
    assert strides == [set(layer.stride) if padded else {1}]


def test_a_backend_has_two_spellings():
    for name, old in zip(BACKENDS, ("linear", "graph", "double"), strict=True):
        assert backend_of(name) == backend_of(old) == name
    assert backend_of("auto") == "auto"
    with pytest.raises(ValueError, match="got 'fast'"):
        backend_of("fast")


def test_plans_of_version_0_1_are_read_and_written_alike():
    old = {"way": "linear", "batch": 64, "format": "channels_last", "block": "apart", "tiled": 16,
           "seconds_per_sample": {"linear 64 channels_last tiled from 16": 0.1}}  # fmt: skip
    plan = HvpPlan.from_stored(old)
    assert plan == HvpPlan("linearized", 64, "channels_last", False, 16, 0, old["seconds_per_sample"])
    assert plan.stored() == old and plan.label in old["seconds_per_sample"]
    graph = {"way": "graph", "batch": 8, "format": "contiguous", "block": "apart", "kept_per_sample": 123}
    assert HvpPlan.from_stored(graph).stored() == graph
    double = {"way": "double", "batch": 8, "format": "contiguous", "block": "apart"}
    assert HvpPlan.from_stored(double).stored() == double
    together = double | {"way": "linear", "block": "together"}
    assert HvpPlan.from_stored(together).vectorized and HvpPlan.from_stored(together).stored() == together
    assert HvpPlan.from_stored({"backend": "linearized", "batch": 5}) == HvpPlan("linearized", 5)
    for wrong in ({"batch": 5}, {"way": "linear"}, {"way": "auto", "batch": 5}, {"way": "fast", "batch": 5}):
        with pytest.raises(ValueError, match="got"):
            HvpPlan.from_stored(wrong)


def test_a_batch_that_failed_once_is_met_again_by_the_next_product():
    problem = case("mlp")
    operator = prepare(problem, plan=LINEAR).at()
    v = torch.randn(operator.size, dtype=torch.float64)
    evaluate, calls = operator.products.current._evaluate, []

    def failing_once(batch):
        calls.append(batch)
        if len(calls) == 2:
            raise MemoryError("no memory for the second batch")
        return evaluate(batch)

    object.__setattr__(operator.products.current, "_evaluate", failing_once)
    with pytest.raises(MemoryError):
        operator @ v
    torch.testing.assert_close(operator @ v, CurvatureOperator(problem) @ v, rtol=1e-9, atol=1e-12)


def test_views_of_the_data_take_no_memory_of_a_product():
    """Each batch is a view of all samples; its kept values are counted by what they hold beside these."""
    samples, width = 64, 1000
    model = nn.Sequential(nn.Linear(width, 3), nn.Tanh(), nn.Linear(3, 2))
    data = (torch.randn(samples, width), torch.randint(2, (samples,)))
    problem = Problem.supervised(model, "crossentropy", data, batch_size=8)
    memory = 8 * samples * width  # twice the samples, and an eighth of what all batches would hold by whole storages
    factory = OperatorFactory(problem, "weights", hessian, lambda t: t, HvpPlan("linearized", 8), memory)
    products = factory.at().products
    products.local_loss()
    assert len(products._batches) == 8 and all(values is not None for _, values in products._batches)
    assert 0 < memory - products._free_bytes < 4 * samples * width
