"""The operators, against closed forms, their laws, and dense float64 twins through torch.func."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import lossmap
from lossmap.curvature import operators
from lossmap.curvature.operators import CurvatureOperator, fisher, gauss_newton, hessian, made_by_all
from lossmap.data.batches import Resident
from lossmap.data.problem import Problem

# torch.func.hessian's forward mode is built with it:
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


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
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Several(nn.Module):
    """Two inputs, and a parameter that does not reach the loss."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.idle = nn.Linear(5, 4), nn.Linear(2, 4), nn.Linear(2, 2)

    def forward(self, x, z):
        return torch.tanh(self.a(x)) * self.b(z)


def convolutional():
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Softplus(), nn.Conv2d(3, 2, 2), nn.GroupNorm(1, 2), nn.GELU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 3),
    )  # fmt: skip
    net(torch.randn(20, 2, 6, 6))
    return net


def regularised(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y) + 0.05 * sum(p.pow(4).sum() for p in model.parameters())


def physical(model, batch):
    """A loss with derivatives in the inputs, as of a PINN: u' = -u."""
    (x,) = batch
    x = x.detach().requires_grad_(True)
    u = model(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return (slope + u).square().mean()


def case(name, dtype=torch.float64):
    """A problem with 7 samples in batches of 3, 3, 1."""
    torch.manual_seed(3)
    labels = torch.randint(3, (7,))
    rows, images, words = torch.randn(7, 5), torch.randn(7, 2, 6, 6), torch.randint(7, (7, 4))
    series, heights = torch.randn(7, 4, 3), torch.rand(7, 1)
    supervised = {
        "mlp": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), rows),
        "convolutional": (convolutional, images),
        "attention": (Attention, words),
        "recurrent": (Recurrent, series),
        "shared": (Shared, rows),
    }
    if name in supervised:
        make, x = supervised[name]
        model, loss, data = make(), "crossentropy", (x, labels)
    elif name == "several":
        model, loss, data = Several(), nn.MSELoss(), ((rows, torch.randn(7, 2)), torch.randn(7, 4))
    elif name == "regularised":
        model, loss, data = nn.Sequential(nn.Linear(5, 4), nn.SiLU(), nn.Linear(4, 3)), regularised, (rows, labels)
    else:
        model, loss, data = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)), physical, (heights,)
    model = model.to(dtype).eval()
    if name in ("regularised", "physical"):
        problem = Problem.custom(model, loss, Resident(data, 3))
    else:
        problem = Problem.supervised(model, loss, Resident(data, 3))
    return problem.to(dtype=dtype)


CASES = ("mlp", "convolutional", "attention", "recurrent", "shared", "several", "regularised", "physical")


def dense(problem, names):
    """The Hessian of the mean loss over these parameters, whole data in one batch, through another channel."""
    model = problem.model
    batch = next(iter(problem.rebatched(problem.data.samples).data))
    theta = {k: p.detach() for k, p in model.named_parameters() if k in names}
    flat = torch.cat([t.reshape(-1) for t in theta.values()])
    whole = Whole(problem, batch).eval()

    def mean_loss(flat):
        parts = flat.split([t.numel() for t in theta.values()])
        state = {f"problem_model.{k}": p.view(t.shape) for (k, t), p in zip(theta.items(), parts, strict=True)}
        return functional_call(whole, state, ()) / problem.data.samples

    if isinstance(model, (Attention, Recurrent)) or not problem.separable:
        # torch.func has no forward mode for an LSTM, takes no autograd.grad inside, and of a layer norm's weight
        # its Hessian is not even symmetric (torch 2.13): so central differences of the gradient
        def slope(at):
            at = at.requires_grad_(True)
            return torch.autograd.grad(mean_loss(at), at)[0]

        steps = 1e-5 * torch.eye(len(flat), dtype=flat.dtype)
        return torch.stack([(slope(flat + e) - slope(flat - e)) / 2e-5 for e in steps]), 1e-6
    return torch.func.hessian(mean_loss)(flat), 1e-9


class Whole(nn.Module):
    def __init__(self, problem, batch):
        super().__init__()
        self.problem_model, self.total = problem.model, lambda: problem.total(batch)

    def forward(self):
        return self.total()


def columns(matrix):
    return matrix @ torch.eye(matrix.size, dtype=matrix.dtype)


@pytest.mark.parametrize("parameters", ["all", "weights"])
@pytest.mark.parametrize("name", CASES)
def test_the_hessian_is_the_dense_one(name, parameters):
    problem = case(name)
    matrix = CurvatureOperator(problem, parameters=parameters)
    truth, tolerance = dense(problem, matrix.layout.names)
    torch.testing.assert_close(columns(matrix), truth, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("name", ["mlp", "convolutional", "attention", "recurrent", "shared", "several"])
def test_gauss_newton_is_the_jacobian_around_the_losses_own_hessian(name):
    problem = case(name)
    matrix = CurvatureOperator(problem, gauss_newton, parameters="all")
    theta, model = matrix.named, problem.model
    truth = torch.zeros(matrix.size, matrix.size, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        for batch in problem.rebatched(1).data:
            outputs = problem.forward(model, batch)
            jacobian = torch.stack(
                [
                    torch.cat([g.reshape(-1) for g in torch.autograd.grad(
                        f, list(theta.values()), retain_graph=True, materialize_grads=True)])
                    for f in outputs.reshape(-1)
                ]
            )  # fmt: skip
            bend = torch.func.hessian(lambda f, b=batch: problem.loss(f, b))(outputs.detach())
            bend = bend.reshape(outputs.numel(), outputs.numel())
            truth += jacobian.T @ bend @ jacobian
    torch.testing.assert_close(columns(matrix), truth / problem.samples, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["mlp", "convolutional", "attention", "recurrent", "shared", "several"])
def test_the_fisher_matrix_is_the_mean_outer_product_of_every_samples_gradient(name):
    problem = case(name)
    matrix = CurvatureOperator(problem, fisher, parameters="all")
    truth = torch.zeros(matrix.size, matrix.size, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        for batch in problem.rebatched(1).data:
            gradient = torch.autograd.grad(problem.total(batch), list(matrix.named.values()), materialize_grads=True)
            flat = torch.cat([g.reshape(-1) for g in gradient])
            truth += torch.outer(flat, flat)
    torch.testing.assert_close(columns(matrix), truth / problem.samples, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", ["double-backward", "linearized"])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0], [1.0, 0.0, 5.0]])
@pytest.mark.parametrize("tokens", [1, 4])
def test_samples_that_do_not_count_have_no_part_in_the_fisher_matrix(weights, tokens, backend):
    torch.manual_seed(0)
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    loss = nn.CrossEntropyLoss(weight=weight)
    model = nn.Sequential(nn.Linear(4, 3 * tokens), nn.Unflatten(1, (3, tokens) if tokens > 1 else (3,))).double()
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.arange(30 * tokens).reshape(30, tokens) % 3
    y[::4] = -100
    y[1::4, 1:] = -100
    y = y if tokens > 1 else y[:, 0]
    problem = Problem.supervised(model, loss, (x, y), batch_size=7)
    of_targets = (y != -100).double() if weight is None else weight[y.clamp(min=0)] * (y != -100)
    of_samples = of_targets.reshape(30, -1).sum(1)
    count = int((of_samples > 0).sum())
    truth = 0.0
    for i in of_samples.nonzero()[:, 0].tolist():
        own = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1], weight=weight, reduction="sum")
        gradient = torch.autograd.grad(own, list(model.parameters()))
        flat = torch.cat([g.reshape(-1) for g in gradient]) * count / of_samples.sum()
        truth = truth + torch.outer(flat, flat) / count
    matrix = lossmap.empirical_fisher(problem, parameters="all", backend=backend)
    torch.testing.assert_close(columns(matrix), truth, rtol=1e-9, atol=1e-11)
    found = lossmap.spectrum(problem, matrix="fisher", parameters="all", top=1)
    assert abs(found.trace.value - float(truth.trace())) <= found.trace.error + 1e-12
    assert found.loss == pytest.approx(loss(model(x), y).item(), rel=1e-12)


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 5.0]])
@pytest.mark.parametrize("size", [30, 7])
def test_the_fisher_matrix_of_a_loss_that_is_no_mean_over_samples_is_refused(weight, size):
    torch.manual_seed(0)
    weight = None if weight is None else torch.tensor(weight)
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    if weight is None:
        y[::4] = -100
    problem = Problem.supervised(
        nn.Linear(4, 3), lambda f, t: nn.functional.cross_entropy(f, t, weight=weight), (x, y), batch_size=size
    )
    for backend in ("double-backward", "linearized"):
        with pytest.raises(
            ValueError, match=r"Fisher matrix is a mean over samples .*, and the loss of a batch is not"
        ):
            lossmap.empirical_fisher(problem, backend=backend)
    with pytest.raises(ValueError, match=r"give nn.CrossEntropyLoss\(...\), whose weights are known"):
        lossmap.spectrum(problem, matrix="fisher")


def test_the_fisher_matrix_of_a_loss_of_probabilities_which_is_an_error_elsewhere():
    torch.manual_seed(0)
    model, loss = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()).double(), nn.BCELoss()
    x, y = torch.randn(9, 4, dtype=torch.float64), (torch.arange(27.0).reshape(9, 3) % 2).double()
    matrix = lossmap.empirical_fisher(Problem.supervised(model, loss, (x, y)), parameters="all")
    truth = torch.zeros(matrix.size, matrix.size, dtype=torch.float64)
    for a, b in zip(x, y, strict=True):
        gradient = torch.autograd.grad(loss(model(a), b), list(model.parameters()))
        flat = torch.cat([g.reshape(-1) for g in gradient])
        truth += torch.outer(flat, flat) / len(x)
    torch.testing.assert_close(columns(matrix), truth, rtol=1e-9, atol=1e-11)


def coupled(outputs, targets):
    return (outputs - outputs.mean(0)).square().mean() + targets.sum() * 0


class Summed(nn.Linear):
    def forward(self, x):
        return super().forward(x).sum(0)


@pytest.mark.parametrize(
    ("model", "loss", "sentence"),
    [
        (nn.Linear(4, 3), coupled, "couples the samples"),
        (Summed(4, 3), lambda f, y: f.square().sum() + 0 * y.sum(), "one row for each sample"),
    ],
)
def test_a_loss_without_a_gradient_for_each_sample_has_no_fisher_matrix(model, loss, sentence):
    torch.manual_seed(0)
    problem = Problem.supervised(model, loss, (torch.randn(6, 4), torch.zeros(6, 3)))
    with pytest.raises(ValueError, match=f"Fisher matrix.*{sentence}"):
        CurvatureOperator(problem, fisher) @ torch.zeros(12)
    plain = Problem.supervised(nn.Linear(4, 3), "mse", (torch.randn(6, 4), torch.zeros(6, 3)))
    tokens = replace(plain, count=lambda batch: 7.0 * len(batch[0]))
    with pytest.raises(ValueError, match=r"this loss is a mean over 42 \(tokens, or weights\) of a batch of 6"):
        CurvatureOperator(tokens, fisher) @ torch.zeros(12)


def test_the_trace_of_the_fisher_matrix_is_the_mean_squared_gradient_of_the_samples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(50, 4), torch.arange(50) % 3
    found = lossmap.spectrum(
        Problem.supervised(model, "crossentropy", (x, y)), matrix="fisher", parameters="all", top=2
    )
    squares = []
    for a, b in zip(x, y, strict=True):
        gradient = torch.autograd.grad(nn.functional.cross_entropy(model(a), b), list(model.parameters()))
        squares.append(sum(float(g.double().square().sum()) for g in gradient))
    assert found.trace.value == pytest.approx(np.mean(squares), rel=1e-5)
    assert "2/lambda_max" not in repr(found)  # it is no Hessian
    assert "empirical Fisher matrix" in repr(found) and "squared nats per squared unit of theta" in repr(found)
    matrix = lossmap.empirical_fisher(Problem.supervised(model, "crossentropy", (x, y)), backend="linearized")
    assert torch.linalg.eigvalsh(columns(matrix).double())[0] > -1e-6


def test_linear_regression_by_the_convention_of_its_loss():
    torch.manual_seed(0)
    x, y, outputs = torch.randn(11, 4).double(), torch.randn(11, 3).double(), 3
    model = nn.Linear(4, outputs, bias=False).double().eval()
    truth = torch.kron(torch.eye(outputs), torch.ones(1)).double()
    truth = torch.kron(truth, 2 / (11 * outputs) * x.T @ x)
    for product in (hessian, gauss_newton):
        matrix = CurvatureOperator(Problem.supervised(model, nn.MSELoss(), Resident((x, y), 4)), product)
        torch.testing.assert_close(columns(matrix), truth, rtol=1e-12, atol=1e-14)


def test_softmax_regression_in_closed_form():
    torch.manual_seed(0)
    x, y = torch.randn(9, 4).double(), torch.randint(3, (9,))
    model = nn.Linear(4, 3, bias=False).double().eval()
    p = model(x).softmax(1).detach()
    bends = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    truth = sum(torch.kron(b, torch.outer(a, a)) for a, b in zip(x, bends, strict=True)) / 9
    for product in (hessian, gauss_newton):
        matrix = CurvatureOperator(Problem.supervised(model, "crossentropy", Resident((x, y), 4)), product)
        torch.testing.assert_close(columns(matrix), truth, rtol=1e-12, atol=1e-14)


def test_a_deep_linear_net_at_its_saddle_has_the_curvature_of_the_correlation():
    # f = b a x at a = b = 0: the only second derivative is d2/da db of -2 (y - b a x) y ..., i.e. -2/(N k) sum y x^T
    torch.manual_seed(0)
    x, y = torch.randn(10, 3).double(), torch.randn(10, 2).double()
    model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 2, bias=False)).double().eval()
    for p in model.parameters():
        p.data.zero_()
    matrix = CurvatureOperator(Problem.supervised(model, nn.MSELoss(), Resident((x, y), 3)))
    cross = -2 / (10 * 2) * y.T @ x  # (2, 3)
    truth = torch.zeros(5, 5, dtype=torch.float64)
    truth[3:, :3], truth[:3, 3:] = cross, cross.T
    torch.testing.assert_close(columns(matrix), truth, rtol=1e-12, atol=1e-14)
    singular = torch.linalg.svdvals(cross)[0]
    assert torch.linalg.eigvalsh(columns(matrix))[[0, -1]].tolist() == pytest.approx(
        [-float(singular), float(singular)]
    )


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**6), scale=st.floats(-3, 3), product=st.sampled_from([hessian, gauss_newton, fisher]))
def test_products_are_linear_and_symmetric(seed, scale, product):
    matrix = CurvatureOperator(case("convolutional"), product)
    torch.manual_seed(seed)
    u, v = torch.randn(2, matrix.size, dtype=torch.float64)
    hu, hv = matrix @ u, matrix @ v
    torch.testing.assert_close(matrix @ (scale * u + v), scale * hu + hv, rtol=1e-8, atol=1e-9)
    assert float(u @ hv) == pytest.approx(float(v @ hu), rel=1e-8, abs=1e-10)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(size=st.integers(1, 9), name=st.sampled_from(["mlp", "attention", "recurrent", "several"]))
def test_any_cut_into_batches_gives_the_same_product(size, name):
    problem = case(name)
    v = torch.randn(CurvatureOperator(problem).size, dtype=torch.float64)
    whole, cut = CurvatureOperator(problem.rebatched(7)) @ v, CurvatureOperator(problem.rebatched(size)) @ v
    torch.testing.assert_close(cut, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("product", [hessian, gauss_newton])
def test_a_block_is_its_columns(product):
    matrix = CurvatureOperator(case("convolutional"), product)
    block = torch.randn(matrix.size, 3, dtype=torch.float64)
    result = matrix @ block
    assert result.shape == (matrix.size, 3)
    for i in range(3):
        torch.testing.assert_close(result[:, i], matrix @ block[:, i], rtol=1e-10, atol=1e-12)


def test_shares_of_unequal_size_add_up_to_the_whole():
    problem = case("mlp")
    v = torch.randn(CurvatureOperator(problem).size, dtype=torch.float64)
    sent = []
    parts = [
        CurvatureOperator(problem.share(rank, 3), total=lambda t: sent.append(t.clone()) or t) for rank in range(3)
    ]
    for part in parts:
        part @ v
    assert len(sent) == 3  # one total per product and rank
    joined = CurvatureOperator(problem.share(0, 3), total=lambda t: sum(sent)) @ v
    torch.testing.assert_close(joined, CurvatureOperator(problem) @ v, rtol=1e-12, atol=1e-14)


def test_a_failure_of_another_rank_is_raised_here_too():
    problem = case("mlp")

    def with_a_failed_neighbour(share):
        neighbour = torch.zeros_like(share)
        neighbour[-1] = 1.0
        return share + neighbour

    with pytest.raises(RuntimeError, match="failed on 1 other rank"):
        CurvatureOperator(problem, total=with_a_failed_neighbour) @ torch.zeros(32, dtype=torch.float64)


def test_a_failure_of_this_rank_reaches_the_others_before_it_is_raised():
    def broken(model, batch):
        raise ZeroDivisionError("no loss here")

    model = nn.Linear(2, 2).eval()
    sent = []
    matrix = CurvatureOperator(
        Problem.custom(model, broken, (torch.zeros(3, 2),)), total=lambda t: sent.append(t.clone()) or t
    )
    with pytest.raises(ZeroDivisionError, match="no loss here"):
        matrix @ torch.zeros(4)
    assert sent[0][-1] == 1.0 and not sent[0][:-1].any()


def test_a_regular_expression_chooses_the_parameters():
    problem = case("convolutional")
    matrix = CurvatureOperator(problem, parameters=r"^3\.")
    assert matrix.layout.names == ("3.weight", "3.bias")
    torch.testing.assert_close(columns(matrix), dense(problem, matrix.layout.names)[0], rtol=1e-9, atol=1e-11)


def test_a_parameter_that_does_not_reach_the_loss_gives_zeros():
    matrix = CurvatureOperator(case("several"), parameters="idle")
    assert not columns(matrix).any()
    assert not columns(CurvatureOperator(case("several"), gauss_newton, parameters="idle")).any()


def test_a_loss_linear_in_theta_has_no_curvature():
    model = nn.Linear(3, 1).eval()
    data = (torch.randn(4, 3), torch.zeros(4))
    problem = Problem.supervised(model, lambda f, y: f.mean(), data)
    assert not columns(CurvatureOperator(problem, parameters="all")).any()
    assert not columns(CurvatureOperator(problem, gauss_newton, parameters="all")).any()


def test_float64_and_float32_are_kept_all_through():
    double, single = CurvatureOperator(case("mlp")), CurvatureOperator(case("mlp", torch.float32))
    v = torch.randn(double.size, dtype=torch.float64)
    assert (double @ v).dtype == torch.float64 and (single @ v.float()).dtype == torch.float32
    torch.testing.assert_close((single @ v.float()).double(), double @ v, rtol=1e-4, atol=1e-6)


def test_scipy_receives_an_operator_with_its_dtype():
    for dtype, number in ((torch.float64, np.float64), (torch.float32, np.float32)):
        matrix = CurvatureOperator(case("mlp", dtype))
        operator = matrix.to_scipy()
        assert operator.dtype == number and operator.shape == (32, 32)
        block = np.random.default_rng(0).normal(size=(32, 2)).astype(number)
        together = operator @ block
        assert together.dtype == number
        np.testing.assert_allclose(together[:, 1], operator @ block[:, 1], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(together, (matrix @ torch.from_numpy(block)).numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("product", [hessian, gauss_newton])
@pytest.mark.parametrize("name", ["convolutional", "attention"])
def test_the_problem_is_restored(name, product):
    problem = case(name)
    model = problem.model
    frozen = next(model.parameters()).requires_grad_(False)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    matrix = CurvatureOperator(problem, product)
    with torch.no_grad():
        matrix @ torch.randn(matrix.size, dtype=torch.float64)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert not frozen.requires_grad and not model.training
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_products_come_out_of_inference_mode_and_no_grad():
    matrix = CurvatureOperator(case("mlp"))
    v = torch.randn(32, dtype=torch.float64)
    outside = matrix @ v
    for mode in (torch.no_grad, torch.inference_mode, contextlib.nullcontext):
        with mode():
            torch.testing.assert_close(matrix @ v, outside, rtol=0, atol=0)


def test_in_training_mode_the_product_is_that_of_evaluation_mode():
    problem = case("convolutional")
    v = torch.randn(84, dtype=torch.float64)
    expected = CurvatureOperator(problem) @ v
    problem.model.train()
    torch.testing.assert_close(CurvatureOperator(problem) @ v, expected, rtol=0, atol=0)
    assert all(m.training for m in problem.model.modules())
    problem.model.eval()
    problem.model[1].train()
    torch.testing.assert_close(CurvatureOperator(problem) @ v, expected, rtol=0, atol=0)
    assert [m for m in problem.model.modules() if m.training] == [problem.model[1]]


def test_a_vector_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"v has shape \(31,\); this matrix takes \(32,\) or \(32, b\)"):
        CurvatureOperator(case("mlp")) @ torch.zeros(31, dtype=torch.float64)


def test_a_product_that_is_not_finite_is_an_error():
    problem = case("mlp")
    problem.model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite: look at the loss here first"):
        CurvatureOperator(problem) @ torch.ones(32, dtype=torch.float64)


def test_gauss_newton_needs_outputs_and_loss_separately():
    with pytest.raises(ValueError, match="Gauss-Newton and Fisher matrices need outputs and loss as two steps"):
        CurvatureOperator(case("physical"), gauss_newton) @ torch.zeros(12, dtype=torch.float64)


def test_gauss_newton_needs_outputs_to_differentiate():
    problem = Problem.supervised(nn.Linear(2, 2).eval(), "mse", (torch.zeros(3, 2), torch.zeros(3, 2)))
    problem = Problem(problem.model, problem.data, lambda m, b: 3, problem.loss, problem.count, {})
    with pytest.raises(ValueError, match="hold no floating-point tensor"):
        CurvatureOperator(problem, gauss_newton) @ torch.zeros(4)


def test_where_one_rank_of_a_team_cannot_make_an_operator_none_goes_on_with_it():
    messages, barrier, outcomes = [], threading.Barrier(2), {}

    def total(message):
        messages.append(message)
        barrier.wait(10)
        return messages[0] + messages[1]

    def rank(number):
        try:
            outcomes[number] = made_by_all(total, torch.device("cpu"), lambda: [1.0, 2.0][number] / (1 - number))
        except Exception as error:
            outcomes[number] = error

    ranks = [threading.Thread(target=rank, args=(number,)) for number in (0, 1)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert isinstance(outcomes[1], ZeroDivisionError)
    assert str(outcomes[0]) == "the operator in another precision failed on 1 other rank(s) of the team, which say why"
    assert made_by_all(lambda message: message, torch.device("cpu"), lambda: 3) == 3


@pytest.mark.parametrize(
    "model", [Attention(), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), nn.Linear(3, 3)]
)
@pytest.mark.parametrize("loss", ["crossentropy", lambda outputs, _: outputs.sum()], ids=["crossentropy", "linear"])
def test_a_product_of_a_large_model_gives_the_gradient_back_and_has_the_same_bits(model, loss, monkeypatch):
    torch.manual_seed(0)
    x = torch.randint(0, 7, (6, 5)) if isinstance(model, Attention) else torch.randn(6, 3)
    problem = Problem.supervised(model.eval(), loss, (x, torch.arange(6) % 3))
    operator = CurvatureOperator(problem, hessian, "all")
    v = torch.randn(operator.size)
    expected = operator @ v
    monkeypatch.setattr(operators, "MAX_HELD_ENTRIES", 0)
    assert torch.equal(operator @ v, expected)
    assert torch.equal(operator @ v[:, None], expected[:, None])
