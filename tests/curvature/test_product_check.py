"""Products are those of the loss's second derivative, or refused by name: other people's operations, as they come."""

import copy
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from lossmap import EigenvalueMap, Problem, random_plane, spectrum, zoo
from lossmap.curvature import differences
from lossmap.curvature.autotune import prepare
from lossmap.curvature.build import build_operator
from lossmap.curvature.differences import FewSamples
from lossmap.curvature.operators import fisher, gauss_newton, hessian
from lossmap.curvature.product_check import check_product, far, random_part
from lossmap.data.borrow import copy_of


class KeptSwish(torch.autograd.Function):
    """Keeps its gate on ctx, which hangs on no graph."""

    @staticmethod
    def forward(ctx, x):
        ctx.gate = torch.sigmoid(x)
        ctx.save_for_backward(x)
        return x * ctx.gate

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * ctx.gate * (1 + x * (1 - ctx.gate))


class SavedSwish(torch.autograd.Function):
    """The same, as PyTorch's manual has it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return g * gate * (1 + x * (1 - gate))


class OnceSoftplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.softplus(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * torch.sigmoid(ctx.saved_tensors[0])


class NumpySoftplus(torch.autograd.Function):
    """Neither a graph nor a trace sees what NumPy does."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(np.log1p(np.exp(x.detach().numpy())))

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.from_numpy((g.detach() / (1 + (-x.detach()).exp())).numpy())


class Activation(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def net_with(function, inputs=6, width=8, classes=3):
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(inputs, width), Activation(function), nn.Linear(width, classes)).eval()


def problem_of(net, samples=40, inputs=6, classes=3):
    torch.manual_seed(6)
    return Problem.supervised(
        net, "crossentropy", (torch.randn(samples, inputs), torch.randint(0, classes, (samples,)))
    )


def by_differences(problem, names=None, step=1e-5):
    """(n, n) Hessian of the mean loss by central differences of the gradient, in float64 on a copy."""
    net = copy.deepcopy(problem.model).double().eval()
    batch = next(iter(problem.to(dtype=torch.float64).rebatched(problem.data.samples).data))
    own = [p for k, p in net.named_parameters() if (p.dim() > 1 if names is None else k in names)]

    def gradient():
        loss = problem.loss(problem.forward(net, batch), batch) / problem.data.samples
        return torch.cat([g.to_dense().reshape(-1) for g in torch.autograd.grad(loss, own, materialize_grads=True)])

    columns = []
    for p in own:
        flat = p.data.view(-1)
        for i in range(p.numel()):
            middle = float(flat[i])
            flat[i] = middle + step
            ahead = gradient()
            flat[i] = middle - step
            columns.append((ahead - gradient()) / (2 * step))
            flat[i] = middle
    return torch.stack(columns)


def entries(operator):
    return (operator @ torch.eye(operator.size, dtype=operator.dtype)).double()


def assert_right(problem, operator, tolerance=2e-4):
    truth = by_differences(problem)
    assert float((entries(operator) - truth).norm()) <= tolerance * float(truth.norm())


@pytest.mark.parametrize("function", [KeptSwish, OnceSoftplus])
def test_what_double_backward_gets_wrong_in_silence_is_linearized(function, caplog):
    problem = problem_of(net_with(function.apply))
    assert_right(problem, build_operator(problem, "hessian", "weights"))  # small: no probe
    assert_right(problem, prepare(problem).at())
    assert_right(problem, prepare(problem, backend="double-backward").at())
    assert "double backward" in caplog.text


def test_what_no_backend_gets_right_is_refused_by_name():
    problem = problem_of(net_with(NumpySoftplus.apply))
    for make in (lambda: build_operator(problem, "hessian", "weights"), lambda: prepare(problem)):
        with pytest.raises(ValueError, match=r"second derivative of NumpySoftplus \(a custom autograd Function\)"):
            make()


def test_a_loss_that_changes_at_every_seventh_call_has_no_wrong_backward():
    refusals = []
    for first in range(7):  # whatever call it is that changes: where none is noticed, products are right
        problem, counter = problem_of(net_with(torch.tanh)), iter(range(first, 10**6))
        changing = Problem.supervised(
            problem.model,
            lambda o, t, counter=counter: F.cross_entropy(o, t) * (1 + 0.1 * (next(counter) % 7 == 0)),
            problem.data.tensors,
        )
        try:
            assert not check_product(changing).rejected
        except ValueError as refusal:
            refusals.append(str(refusal))
    assert len(refusals) >= 3
    assert all("the loss is not repeatable: the same samples gave" in text for text in refusals), refusals


def test_a_power_whose_second_derivative_is_infinite_is_no_wrong_backward():
    net = nn.Linear(3, 2)
    with torch.no_grad():
        net.weight.mul_(0).add_(torch.tensor([[60.0], [-60.0]]))
    x, y = torch.rand(8, 3) + 1, torch.zeros(8, dtype=torch.long)

    def focal(outputs, targets):
        p = outputs.softmax(1).gather(1, targets[:, None])[:, 0]  # 1 in either precision
        return (-((1 - p) ** 1.5) * p.log()).mean()

    with pytest.raises(ValueError, match=r"not finite at these parameters.*a power, a root or a logarithm at 0"):
        check_product(Problem.supervised(net, focal, (x, y)))


def test_a_few_samples_that_are_fitted_too_well_to_tell_are_not_all_that_is_asked():
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(1)
    x = torch.cat([torch.linspace(34, 36.5, 6), torch.full((10,), 3.0)])[:, None]

    def focal(outputs, targets):
        p = torch.sigmoid(outputs)
        right = p * targets + (1 - p) * (1 - targets)
        return (F.binary_cross_entropy_with_logits(outputs, targets, reduction="none") * (1 - right) ** 2).mean()

    first = Problem.supervised(net, focal, (x[:6], torch.ones(6, 1)))
    with pytest.raises(ValueError, match="cannot be told from zero in float64"):
        check_product(first)  # whose loss is rounding alone: 1 - right is some multiple of 1e-16
    problem = Problem.supervised(net, focal, (x, torch.ones(16, 1)))
    z = x.double().requires_grad_()
    loss = -F.logsigmoid(z) * torch.sigmoid(-z) ** 2
    (slope,) = torch.autograd.grad(loss.sum(), z, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), z)
    s = spectrum(problem, top=1, density_error=None, trace_products=0)
    assert s.largest[0] == pytest.approx(float((curvature * x.double() ** 2).mean()), rel=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_of_a_deep_net_with_kinks_one_difference_along_each_vector_is_enough(monkeypatch, seed):
    gradients, evaluate = [], FewSamples.loss_and_gradient

    def counted(few, *step):
        gradients.append(step)
        return evaluate(few, *step)

    monkeypatch.setattr(FewSamples, "loss_and_gradient", counted)
    torch.manual_seed(seed)
    data = (torch.randn(40, 1, 8, 8), torch.arange(40) % 10)
    problem = Problem.supervised(zoo.build("resnet20-w8", seed=seed), "crossentropy", data)
    check = check_product(problem, backends=("double-backward", "retained-graph"), distant=False)
    assert check.rejected == {} and check.disagreement == 0
    assert len(gradients) == 5  # at the point, and on both sides of it along two vectors


def test_a_function_that_saves_its_inputs_is_as_good_as_any(caplog):
    problem = problem_of(net_with(SavedSwish.apply))
    assert check_product(problem, backends=("double-backward", "retained-graph")).rejected == {}
    assert_right(problem, build_operator(problem, "hessian", "weights"))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


class StraightThrough(nn.Module):
    def forward(self, x):
        return x + (x.sign() - x).detach()


class RoundedWeight(nn.Module):
    """Reads its weight through NumPy."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        scale = float(np.abs(self.weight.detach().cpu().numpy()).mean())
        return x @ self.weight / scale


@pytest.mark.parametrize("layer", [StraightThrough, RoundedWeight])
def test_a_gradient_that_is_not_of_the_loss_is_refused(layer):
    torch.manual_seed(0)
    problem = problem_of(nn.Sequential(nn.Linear(6, 6), layer(), nn.Linear(6, 3)).eval())
    for matrix in ("hessian", "gauss-newton"):
        with pytest.raises(ValueError, match="not that of the loss"):
            build_operator(problem, matrix, "weights")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("width", [5, 22])
def test_weight_norm_is_computed_by_its_formula(old, width):
    norm = nn.utils.weight_norm if old else parametrizations.weight_norm
    torch.manual_seed(12)
    with pytest.warns(FutureWarning) if old else torch.enable_grad():
        net = nn.Sequential(norm(nn.Linear(6, width)), nn.Tanh(), norm(nn.Linear(width, 3))).eval()
    problem = problem_of(net)
    if not old:
        assert_right(problem, build_operator(problem, "hessian", "weights"))
    for backend in ("double-backward", "linearized", "retained-graph"):
        operator = prepare(problem, backend=backend).at()
        h = entries(operator)
        assert float((h - h.T).norm()) <= 1e-5 * float(h.norm())


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(5, 3), nn.ModuleList(nn.Linear(5, 4) for _ in range(3))

    def forward(self, x):
        p = self.gate(x).softmax(1)
        best, out = p.argmax(1), x.new_zeros(len(x), 4)
        for k, expert in enumerate(self.experts):
            mine = (best == k).nonzero()[:, 0]
            out = out.index_add(0, mine, p[mine, k : k + 1] * expert(x[mine]).tanh())
        return out


class MaskedExperts(Experts):
    def forward(self, x):
        p = self.gate(x).softmax(1)
        best, out = p.argmax(1), x.new_zeros(len(x), 4)
        for k, expert in enumerate(self.experts):
            mine = best == k
            out = out.index_put((mine,), p[mine, k : k + 1] * expert(x[mine]).tanh())
        return out


class Baked(nn.Module):
    """A number read from a weight, which a trace takes for a constant."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x):
        sign = 1.0 if float(self.a.weight.detach().cpu().numpy()[0, 0]) > 0 else -1.0
        return self.b((sign * self.a(x)).tanh() + self.a(x).sigmoid())


@pytest.mark.parametrize("kind", [Experts, MaskedExperts, Baked])
@pytest.mark.parametrize("backend", ["auto", "linearized"])
def test_what_depends_on_values_is_right_at_every_point(kind, backend):
    torch.manual_seed(1)
    net = kind().eval()
    problem = problem_of(net, 30, inputs=5, classes=4)
    plane = random_plane(net, axes=1, seed=0)
    factory = prepare(problem, backend=backend)
    for place in (0.0, -1.5, 2.0):
        there = kind().eval()
        there.load_state_dict(net.state_dict() | dict(plane.at((place,))))
        truth = by_differences(problem_of(there, 30, inputs=5, classes=4))
        assert float((entries(factory.at(plane.at((place,)))) - truth).norm()) <= 1e-3 * float(truth.norm())


class Lookup(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table, self.head = table, nn.Linear(4, 3)

    def forward(self, x):
        rows = self.table(x)
        return self.head((rows.mean(1) if rows.dim() == 3 else rows).tanh())


@pytest.mark.parametrize(
    "table",
    [
        lambda: nn.Embedding(7, 4, sparse=True),
        lambda: nn.Embedding(7, 4, padding_idx=2),
        lambda: nn.EmbeddingBag(7, 4),
        lambda: nn.EmbeddingBag(7, 4, mode="sum", sparse=True, padding_idx=0),
        lambda: nn.EmbeddingBag(7, 4, mode="max"),
    ],
)
def test_tables_without_a_second_derivative_are_looked_up_densely(table):
    torch.manual_seed(3)
    net = Lookup(table()).eval()
    problem = Problem.supervised(net, "crossentropy", (torch.randint(0, 7, (20, 5)), torch.randint(0, 3, (20,))))
    dense = Lookup(nn.Embedding(7, 4)).eval()
    if isinstance(net.table, nn.Embedding):
        dense.load_state_dict(net.state_dict())
        truth = by_differences(Problem.supervised(dense, "crossentropy", problem.data))
        assert float((entries(build_operator(problem, "hessian", "weights")) - truth).norm()) <= 2e-4 * truth.norm()
    else:
        assert_right(problem, build_operator(problem, "hessian", "weights"))
    assert_right_everywhere(problem)


def assert_right_everywhere(problem):
    """All backends give the same matrix."""
    reference = entries(prepare(problem, backend="double-backward").at())
    for backend in ("linearized", "retained-graph"):
        again = entries(prepare(problem, backend=backend).at())
        assert float((again - reference).norm()) <= 2e-4 * float(reference.norm())


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


def test_a_recurrent_net_is_linearized_in_float32():
    torch.manual_seed(2)
    problem = Problem.supervised(Reader().eval(), "crossentropy", (torch.randn(20, 5, 3), torch.randint(0, 3, (20,))))
    enabled = torch.backends.mkldnn.enabled
    assert_right_everywhere(problem)
    assert torch.backends.mkldnn.enabled == enabled


IN_PLACE = {
    "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish, "relu6": F.relu6, "elu": F.elu, "celu": F.celu,
    "silu": F.silu, "mish": F.mish, "hardtanh": F.hardtanh,
}  # fmt: skip


@pytest.mark.parametrize("function", [*IN_PLACE, "sigmoid_", "tanh_"])
def test_what_writes_in_place_is_right_whether_its_result_or_its_input_is_used(function):
    def write(x):
        return IN_PLACE[function](x, inplace=True) if function in IN_PLACE else getattr(x, function)()

    for is_returned in (True, False):

        def layer(x, is_returned=is_returned):
            x = 1.5 * x
            result = write(x)
            return result if is_returned else x

        problem = problem_of(net_with(layer), samples=12)
        assert_right(problem, build_operator(problem, "hessian", "weights"))
        assert_right(problem, prepare(problem, backend="linearized").at())


def planted(error, vanishing):
    """A layer whose second derivative by its 16 weights is off by a share; at the origin it may vanish."""

    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w, w0):
            ctx.save_for_backward(x, w, w0)
            return torch.tanh(x @ w)

        @staticmethod
        def backward(ctx, g):
            x, w, w0 = ctx.saved_tensors
            y = torch.tanh(x @ w)
            slope = g * (1 - y**2)
            share = error * ((w - w0).detach().square().mean() if vanishing else 1.0)
            # the value of the gradient is right, its derivative by w is not
            off = share * slope - (share * slope).detach()
            return slope @ w.T, x.T @ (slope + off), None

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4))
            self.register_buffer("w0", self.w.detach().clone())

        def forward(self, x):
            return Off.apply(x, self.w, self.w0)

    return Layer()


@pytest.mark.parametrize("vanishing", [False, True])
def test_one_percent_in_one_small_tensor_is_found(vanishing):
    missed = 0
    for seed in range(25):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 4), planted(0.01, vanishing), nn.Linear(4, 3))
        try:
            missed += "double-backward" not in check_product(problem_of(net.eval())).rejected
        except ValueError:
            continue
    assert missed == 0


def test_a_relu_at_its_kink_is_no_error_of_the_product():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)).eval()
    x, y = torch.randn(20, 6), torch.randint(0, 3, (20,))
    x[::2] = 0.0  # units exactly at the kink
    check = check_product(Problem.supervised(net, "crossentropy", (x, y)))
    assert check.rejected == {}


class Rounded(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx, x):
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx, g):
        return g


def at_a_kink(seed, activation=nn.ReLU, samples=24):
    """A net in float64 with a unit whose input is exactly 0 for every third sample, and its data."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 3, bias=False), activation(), nn.Linear(3, 2)).double().eval()
    with torch.no_grad():
        net[0].weight[0] = torch.tensor([1.0, -1.0])
    x, y = torch.randn(samples, 2, dtype=torch.float64), torch.randn(samples, 2, dtype=torch.float64)
    x[::3, 1] = x[::3, 0]
    return net, x, y


def dense(net, x, y, move=0.0):
    """(12,) eigenvalues of the Hessian by the weights, ascending, beside the net's own weights."""
    bias = net[2].bias.detach()

    def loss(theta):
        weights = {"0.weight": theta[:6].view(3, 2), "2.weight": theta[6:].view(2, 3), "2.bias": bias}
        return ((functional_call(net, weights, x) - y) ** 2).mean()

    theta = torch.cat([net[i].weight.detach().reshape(-1) for i in (0, 2)])
    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, theta + move)).flip(0)


@pytest.mark.parametrize("seed", range(4))
def test_bars_at_a_kink_hold_the_hessians_of_all_sides(seed, caplog):
    net, x, y = at_a_kink(seed)
    problem = Problem.supervised(net, "mse", (x, y))
    result = spectrum(problem, top=3, bottom=2, density_error=None, trace_products=0, dense=300)
    values = np.r_[result.top.values, result.bottom.values[::-1]]
    bars = np.r_[result.top.residuals, result.bottom.residuals[::-1]]
    assert "the loss has a kink at these parameters" in caplog.text
    reading = EigenvalueMap(problem, random_plane(net, axes=1), backend="double-backward")((0.0,))
    apart = 0.0
    for side in range(8):
        move = 1e-7 * torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(side))
        truth = dense(net, x, y, move).numpy()
        off = np.abs(values - truth[[0, 1, 2, 10, 11]])
        assert (off <= bars).all()
        assert abs(reading["max_eig"] - truth[0]) <= reading["max_eig_error"]
        assert abs(reading["min_eig"] - truth[11]) <= reading["min_eig_error"]
        apart = max(apart, off.max())
    assert apart > 1e-3 * abs(values).max()  # the sides differ, and so bars without them would not hold
    assert bars.max() < 2.0 * abs(values).max()


def test_without_a_kink_no_bar_has_a_part_for_one(caplog):
    net, x, y = at_a_kink(0, nn.Tanh)
    result = spectrum(Problem.supervised(net, "mse", (x, y)), top=1, bottom=1, trace_products=0, density_error=None)
    value, error = result.largest
    assert abs(value - float(dense(net, x, y)[0])) <= error < 1e-3 * value
    assert "kink" not in caplog.text


def test_a_gradient_that_is_not_of_the_loss_is_refused_at_a_kink_too():
    net, x, y = at_a_kink(1)
    net[1] = nn.Sequential(nn.ReLU(), Activation(Rounded.apply))
    with pytest.raises(ValueError, match="not that of the loss"):
        check_product(Problem.supervised(net, "mse", (x, y)))


def own_loss(outputs, targets):
    return F.cross_entropy(outputs, targets)


@pytest.mark.parametrize("loss", ["crossentropy", own_loss])
@pytest.mark.parametrize("product", [hessian, gauss_newton, fisher])
def test_a_check_that_holds_no_float64_copies_makes_the_same_differences(product, loss, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 3))
    problem = Problem.supervised(model, loss, (torch.randn(8, 5), torch.arange(8) % 3))
    names = [name for name, _ in model.named_parameters()]
    few = FewSamples.of(problem, names, product, 4)
    monkeypatch.setattr(differences, "MAX_HELD_ENTRIES", 0)
    large = FewSamples.of(problem, names, product, 4)
    assert large.is_large and not few.is_large
    for one, other in ((few, large), (far(few), far(large))):
        v = one.parts(lambda i, t: random_part(t, "test", i))
        made = other.parts(lambda i, t: random_part(t, "test", i))
        (product_held, slope), (product_made, slope_made) = one.difference(v, 1e-5), other.difference(made, 1e-5)
        assert slope == slope_made == other.slope(made, 1e-5)
        for a, b in zip(product_held, product_made, strict=True):
            assert torch.equal(a, b)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not check_product(problem, "all", product, backends=("double-backward", "linearized")).rejected


@pytest.mark.parametrize("function", [KeptSwish, OnceSoftplus], ids=lambda f: f.__name__)
def test_a_check_that_holds_no_float64_copies_finds_what_is_wrong(function, monkeypatch):
    monkeypatch.setattr(differences, "MAX_HELD_ENTRIES", 0)
    problem = problem_of(net_with(function.apply))
    assert "double-backward" in check_product(problem, backends=("double-backward", "linearized")).rejected
    with pytest.raises(ValueError, match="is not that of the loss"):
        check_product(problem_of(nn.Sequential(nn.Linear(6, 6), StraightThrough(), nn.Linear(6, 3)).eval()))


def test_gauss_newton_is_compared_too():
    problem = problem_of(net_with(KeptSwish.apply))
    assert check_product(problem, product=gauss_newton).rejected == {}  # no second derivative of the net enters
    smooth = problem_of(net_with(torch.tanh))
    assert check_product(smooth, product=gauss_newton, backends=("double-backward", "linearized")).rejected == {}


def test_the_model_is_not_touched_and_the_check_is_made_once(monkeypatch):
    problem = problem_of(net_with(torch.tanh))
    before = {k: t.clone() for k, t in problem.model.state_dict().items()}
    first = check_product(problem)
    assert check_product(problem.rebatched(3)) is first
    assert check_product(problem, "0.weight") is first  # a part of what passed
    assert all(torch.equal(t, before[k]) for k, t in problem.model.state_dict().items())
    assert functional_call(problem.model, before, torch.zeros(1, 6)).dtype == torch.float32
    problem.model[1] = nn.Sigmoid()
    assert check_product(problem) is not first


@pytest.mark.parametrize(
    "make, advice",
    [
        (lambda: nn.Embedding(5, 4, max_norm=0.5), "'0' rescales its own rows in every pass; set max_norm=0.5 to None"),
        (
            lambda: nn.Embedding(5, 4, scale_grad_by_freq=True),
            "divides gradients by how often a row occurs; set scale_grad_by",
        ),
        (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 2)), "orthogonal_map='householder'.*'cayley'"),
    ],
)
def test_a_refusal_says_what_to_do(make, advice):
    torch.manual_seed(0)
    module = make()
    x = torch.randint(0, 5, (12,)) if isinstance(module, nn.Embedding) else torch.randn(12, 4)
    model = nn.Sequential(module, nn.LazyLinear(3))
    model(x)
    with pytest.raises(ValueError, match=advice):
        check_product(Problem.supervised(model, "crossentropy", (x, torch.arange(12) % 3)), "all", distant=False)


@pytest.mark.parametrize("share, refused", [(1 - 1e-7, True), (0.1, False)])
def test_a_table_with_max_norm_is_refused_where_its_rows_reach_it(share, refused):
    """Right after a pass all rows lie just within, where the smallest differences see nothing of the rescaling."""
    torch.manual_seed(0)
    table = torch.randn(5, 4)
    module = nn.Embedding(5, 4, max_norm=0.5)
    module.weight.data = share * 0.5 * table / table.norm(dim=1, keepdim=True)
    problem = Problem.supervised(
        nn.Sequential(module, nn.Linear(4, 3)), "crossentropy", (torch.arange(12) % 5, torch.arange(12) % 3)
    )
    if refused:
        with pytest.raises(ValueError, match="'0' rescales its own rows"):
            check_product(problem, "all", distant=False)
    else:
        assert not check_product(problem, "all", distant=False).rejected


def test_a_loss_of_straight_pieces_has_no_curvature_to_state_at_its_kink():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1), torch.randn(20, 3)
    exact = model(x).detach()
    with pytest.raises(ValueError, match="its second derivative is 0 on every side, so that there is no curvature"):
        spectrum(Problem.supervised(model, nn.L1Loss(), (x, exact)), top=1, density_error=None)
    beside = spectrum(Problem.supervised(model, nn.L1Loss(), (x, exact + 1.0)), top=1, density_error=None)
    assert beside.largest == beside.smallest == (0.0, 0.0)  # where it is smooth there is none indeed


@pytest.mark.parametrize(
    "norm",
    [lambda: nn.BatchNorm2d(4, track_running_stats=False), lambda: nn.InstanceNorm2d(4), lambda: nn.GroupNorm(4, 4)],
)
def test_a_bias_that_a_normalization_takes_away_is_no_kink(norm, caplog):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), norm(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    data = (torch.randn(12, 1, 5, 5), torch.arange(12) % 3)
    problem = Problem.supervised(nn.Sequential(*layers), "crossentropy", data)
    assert check_product(problem, "all").disagreement == 0.0  # its gradient, 0, is the sum of terms that are not
    assert check_product(problem, r"0\.bias").disagreement == 0.0
    assert not caplog.text


def separated(scale, dtype):
    """A linear classifier of two classes that lie apart, and its samples: probabilities p = 1 - q with q < e^(-2 s)."""
    torch.manual_seed(0)
    x = torch.randn(40, 4, dtype=torch.float64)
    x[:, 0] = x[:, 0].sign() * (1 + x[:, 0].abs())
    net = nn.Linear(4, 2).double()
    with torch.no_grad():
        net.weight.zero_()
        net.bias.zero_()
        net.weight[:, 0] = scale * torch.tensor([-1.0, 1.0])
    q = torch.sigmoid(-2 * scale * x[:, 0].abs())
    top = 2 * torch.linalg.eigvalsh((x * (q * (1 - q))[:, None]).T @ x / len(x))[-1]  # of cross entropy's Hessian
    return net.to(dtype), (x.to(dtype), (x[:, 0] > 0).long()), float(top)


def log_of_softmax(outputs, y):
    return -torch.log(F.softmax(outputs, 1) + 1e-20).gather(1, y[:, None]).mean()


def focal(outputs, y):
    p = F.log_softmax(outputs, 1).gather(1, y[:, None]).exp()
    return (-((1 - p) ** 2) * p.log()).mean()


def focal_of_cross_entropy(outputs, y):
    each = F.cross_entropy(outputs, y, reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [17.0, 80.0])
def test_a_loss_below_the_rounding_of_its_terms_has_no_wrong_gradient(scale, dtype, caplog):
    net, data, top = separated(scale, dtype)
    result = spectrum(Problem.supervised(net, log_of_softmax, data), density_error=None)
    value, error = result.largest
    assert abs(value - top) <= error
    assert "the gradient was not compared with the loss" in caplog.text and "straight-through" not in caplog.text


def test_what_rounds_to_zero_is_not_zero_but_cannot_be_told_from_it():
    net, data, _ = separated(40.0, torch.float64)
    result = spectrum(Problem.supervised(net, focal, data), density_error=None)
    assert result.loss == 0.0 and result.largest[0] == 0.0 < result.largest[1]
    assert "cannot be told from" in str(result) and "no curvature at all" not in str(result)


def test_what_has_no_curvature_by_its_form_is_zero():
    net = nn.Linear(3, 1)
    data = (torch.randn(12, 3), torch.randn(12, 1))
    result = spectrum(Problem.supervised(net, lambda f, y: (f - y).mean(), data), top=1, density_error=None)
    assert result.largest == (0.0, 0.0)


@pytest.mark.parametrize("scale", [20.0, 80.0])
def test_a_product_below_the_rounding_of_the_losss_terms_is_refused_as_such(scale):
    net, data, _ = separated(scale, torch.float64)
    with pytest.raises(ValueError, match="cannot be told from zero in float64"):
        spectrum(Problem.supervised(net, focal_of_cross_entropy, data), density_error=None)


class SingleOnly(nn.Module):
    """Runs in float32 alone, as kernels of one's own do."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, 8), nn.Linear(8, 3), function

    def forward(self, x):
        if x.dtype != torch.float32:
            raise TypeError("expected scalar type Float")
        return self.last(self.function(self.first(x)))


@pytest.mark.parametrize("function", [lambda x: x.detach() * torch.sigmoid(x), lambda x: x + (x.round() - x).detach()])
def test_a_gradient_that_is_not_of_the_loss_is_refused_in_float32_too(function):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="is not that of the loss"):
        check_product(problem_of(SingleOnly(function)))


def test_what_runs_in_float32_alone_and_is_right_is_not_refused():
    torch.manual_seed(0)
    assert "does not run in float64" in check_product(problem_of(SingleOnly(torch.tanh))).unchecked


@pytest.mark.filterwarnings("ignore")  # PyTorch's own quantization is deprecated
def test_quantized_layers_are_refused_by_name():
    torch.manual_seed(0)
    dynamic = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(6, 8)), {nn.Linear}, dtype=torch.qint8)
    problem = problem_of(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), *dynamic))
    with pytest.raises(ValueError, match=r"its quantized layers \(Linear '2'\) have no parameters and no gradient"):
        check_product(problem)
    with pytest.raises(ValueError, match=r"no parameter matches 'weights'.*quantized layers \(Linear '0'\)"):
        spectrum(problem_of(dynamic))
    aware = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).train()
    aware.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    torch.ao.quantization.prepare_qat(aware, inplace=True)(torch.randn(9, 6))
    with pytest.raises(ValueError, match=r"FakeQuantize '.*' rounds, which its gradient ignores"):
        check_product(problem_of(aware))
    aware.apply(torch.ao.quantization.disable_fake_quant)
    assert not check_product(problem_of(aware)).rejected


def test_hooks_on_gradients_of_parameters_are_of_the_training_and_stay(caplog):
    net = net_with(torch.tanh)
    plain = build_operator(problem_of(net), "hessian", "weights")
    truth = entries(plain)
    net[0].weight.register_hook(lambda g: 2 * g)
    assert torch.equal(entries(build_operator(problem_of(net), "hessian", "weights")), truth)
    net[0].weight.sum().backward()
    assert torch.equal(net[0].weight.grad, torch.full_like(net[0].weight, 2.0))


def test_where_all_parameters_are_zero_nothing_is_a_kink(caplog):
    net = net_with(torch.tanh)
    for p in net.parameters():
        nn.init.zeros_(p)
    problem = Problem.supervised(net, "crossentropy", (torch.randn(24, 6), torch.arange(24) % 3))
    assert check_product(problem, "all").disagreement == 0.0 and not caplog.text


def test_checkpoints_that_enter_again_are_no_reason():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.last(checkpoint(self.first, x.requires_grad_(), use_reentrant=True).tanh())

    check = check_product(problem_of(Checkpointed()))
    assert not check.rejected and check.disagreement == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_to_half_precision_is_named(dtype):
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            hidden = torch.tanh(self.first(x)).to(dtype)
            return nn.functional.linear(hidden, self.last.weight.to(dtype), self.last.bias.to(dtype)).float()

    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"casts to {name} in its forward pass.*torch.autocast in its place"):
        check_product(problem_of(Cast()))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_named_and_the_values_of_jagged_ones_are_no_reason():
    class Nested(nn.Module):
        def __init__(self, layout, unbound):
            super().__init__()
            self.first, self.last, self.layout, self.unbound = nn.Linear(6, 8), nn.Linear(8, 3), layout, unbound

        def forward(self, x):
            rows = self.first(torch.nested.as_nested_tensor([x[:1], x[1:]], layout=self.layout))
            return self.last(torch.tanh(torch.cat(list(rows.unbind())) if self.unbound else rows.values()))

    refused = [Nested(layout, True) for layout in (torch.jagged, torch.strided)]
    values = Nested(torch.jagged, False)
    try:
        torch.autograd.grad(values(torch.randn(3, 6)).square().sum(), values.first.weight, create_graph=True)
    except RuntimeError:  # PyTorch 2.6 has no second derivative of these either
        refused.append(values)
    else:
        assert not check_product(problem_of(values)).rejected.get("double-backward")
    for model in refused:
        with pytest.raises(ValueError, match=r"second derivative of nested tensors is missing.*padded tensors"):
            check_product(problem_of(model))


class Sparse(nn.Module):
    """A sparse matrix whose entries are parameters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("places", torch.tensor([[0, 1, 2, 5], [1, 0, 2, 3]]))
        self.entries, self.out = nn.Parameter(torch.randn(4)), nn.Linear(6, 3)

    def forward(self, x):
        matrix = torch.sparse_coo_tensor(self.places, self.entries, (6, 6))
        return self.out(torch.tanh(torch.sparse.mm(matrix, x.T).T))


class Ensemble(nn.Module):
    """Two nets as one, by a function that detaches their parameters."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList([net_with(torch.tanh) for _ in range(2)])

    def forward(self, x):
        parameters, _ = torch.func.stack_module_state(list(self.nets))
        return torch.func.vmap(lambda p: torch.func.functional_call(self.nets[0], p, (x,)))(parameters).mean(0)


def test_operations_on_sparse_tensors_are_named():
    with pytest.raises(ValueError, match=r"of operations on sparse tensors \(SparseAddmmBackward0, .*take index_add"):
        prepare(problem_of(Sparse()), "all")


def test_modules_inside_vmap_are_not_called_wrong():
    """They were, since their arguments mean nothing outside: `Linear 'nets.0.2'` was to blame."""
    with pytest.raises(ValueError, match=r"passes no gradient to them \(8 of the 8 tensors"):
        prepare(problem_of(Ensemble()), "all")


class Fourier(nn.Module):
    """Complex weights as pairs of real ones, at an odd place of theta, and a parameter without entries."""

    def __init__(self):
        super().__init__()
        self.shift, self.none = nn.Parameter(torch.zeros(1, 1)), nn.Parameter(torch.zeros(0, 4))
        self.pairs, self.out = nn.Parameter(torch.randn(3, 2)), nn.Linear(4, 3)

    def forward(self, x):
        waves = torch.fft.rfft(x + self.shift) * torch.view_as_complex(self.pairs)
        return self.out(torch.tanh(torch.fft.irfft(waves, n=4)))


def scripted():
    return nn.Sequential(nn.Linear(4, 5), torch.jit.script(nn.Tanh()), nn.Linear(5, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("make", [Fourier, scripted])
def test_complex_pairs_empty_parameters_and_scripted_modules_are_right_at_every_point(make):
    torch.manual_seed(0)
    net, x, y = make(), torch.randn(20, 4), torch.arange(20) % 3
    plane = random_plane(net, axes=1)
    measured = EigenvalueMap(Problem.supervised(net, "crossentropy", (x, y)), plane, parameters="all")((0.5,))
    at = {name: t.double().requires_grad_(True) for name, t in plane.at((0.5,)).items()}
    loss = F.cross_entropy(functional_call(copy.deepcopy(net).double(), at, (x.double(),)), y)
    slope = torch.autograd.grad(loss, list(at.values()), create_graph=True, materialize_grads=True)
    every = {"retain_graph": True, "materialize_grads": True}
    rows = [torch.autograd.grad(g, list(at.values()), **every) for part in slope for g in part.reshape(-1)]
    values = torch.linalg.eigvalsh(torch.stack([torch.cat([h.reshape(-1) for h in row]) for row in rows]))
    assert measured["max_eig"] == pytest.approx(float(values[-1]), abs=measured["max_eig_error"])
    assert measured["min_eig"] == pytest.approx(float(values[0]), abs=measured["min_eig_error"])


def test_weights_that_are_all_zero_behind_a_relu_blame_no_operation():
    """The mean of both sides is what any difference of the gradient gives there: the gradient has the kink."""
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    for p in net.parameters():
        nn.init.zeros_(p)
    problem = Problem.supervised(net, "crossentropy", (torch.randn(20, 4), torch.arange(20) % 3))
    with pytest.raises(ValueError, match="kink exactly at these parameters: its second derivative is 0 here"):
        check_product(problem)
    assert check_product(problem, "all").disagreement > 0.5  # the last bias has curvature on every side


@pytest.mark.parametrize("distant, most", [(False, 5), (True, 10)])
def test_a_check_takes_few_gradients(monkeypatch, distant, most):
    """At one point: one, and two for each of a vector over all of theta and one over half of it."""
    torch.manual_seed(0)
    model, count = nn.Sequential(*(nn.Linear(5, 5) if i % 2 == 0 else nn.Tanh() for i in range(12))), []
    plain = FewSamples.loss_and_gradient

    def counted(self, *args, **keywords):
        count.append(1)
        return plain(self, *args, **keywords)

    monkeypatch.setattr(FewSamples, "loss_and_gradient", counted)
    problem = Problem.supervised(model, "crossentropy", (torch.randn(12, 5), torch.arange(12) % 5))
    assert not check_product(problem, distant=distant).rejected
    assert 0 < len(count) <= most


def test_a_frozen_teacher_that_is_called_without_gradients_is_refused_with_the_way_out():
    class Distilled(nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = nn.Linear(3, 2), nn.Linear(3, 2).requires_grad_(False)

        def forward(self, x):
            with torch.no_grad():
                aim = self.teacher(x)
            return self.student(x) - aim

    torch.manual_seed(0)
    model, x = Distilled(), torch.randn(12, 3)
    problem = Problem.supervised(model, "mse", (x, torch.zeros(12, 2)))
    sentence = (
        r"the loss follows teacher\.weight, teacher\.bias, but passes no gradient to them \(2 of the 4 tensors "
        r".*leave the frozen parameters out: parameters='trainable' \(--parameters trainable\)"
    )
    with pytest.raises(ValueError, match=sentence):
        check_product(problem, "all")
    with pytest.raises(ValueError, match=r"follows teacher\.weight, but passes no gradient to it \(one tensor that is"):
        check_product(problem, "weights")
    model.teacher.requires_grad_(True)
    with pytest.raises(ValueError, match=r"freeze them \(requires_grad_\(False\)\) and take parameters='trainable'"):
        check_product(problem, "all")
    model.teacher.requires_grad_(False)
    assert not check_product(problem, "trainable", backends=("double-backward",)).rejected


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_gradients_of_a_script_are_compared_in_float64_and_never_reach_the_model_that_was_copied(caplog):
    torch.manual_seed(0)
    model = torch.jit.script(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)))
    problem = Problem.supervised(model, "crossentropy", (torch.linspace(-2, 4, 36).view(12, 3), torch.arange(12) % 2))
    assert spectrum(problem) is not None and "products and differences" not in caplog.text
    assert all(p.is_leaf and p.requires_grad for p in copy_of(model, torch.float64).parameters())
