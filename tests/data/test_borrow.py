"""Models that are borrowed: what stands still, what is refused by name, adapters that merge in evaluation mode."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossmap import Problem, losses, random_plane
from lossmap.curvature.autotune import prepare
from lossmap.curvature.build import build_operator
from lossmap.data.borrow import borrowed_once, copy_of, temporary_parameters
from lossmap.spectra.spectrum import spectrum


class Merging(nn.Linear):
    """A low-rank adapter that is merged into the weight in eval()."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.lora_A, self.lora_B = (
            nn.Parameter(torch.randn(2, inputs) * 0.6),
            nn.Parameter(torch.randn(outputs, 2) * 0.6),
        )
        self.weight.requires_grad_(False)
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.lora_B @ self.lora_A).data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight, self.bias)
        return out if self.merged else out + x @ self.lora_A.T @ self.lora_B.T


class Plain(Merging):
    """The same that never merges."""

    def train(self, mode: bool = True) -> Plain:
        nn.Linear.train(self, mode)
        return self


class Wrapped(nn.Module):
    """An adapter around a layer, as in PEFT, merged by its mode, with dropout before it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base, self.drop = nn.Linear(inputs, outputs), nn.Dropout(0.5)
        self.lora_A, self.lora_B = (
            nn.Parameter(torch.randn(2, inputs) * 0.6),
            nn.Parameter(torch.randn(outputs, 2) * 0.6),
        )

    def train(self, mode: bool = True) -> Wrapped:
        if mode != self.training:
            self.base.weight.data += (-1 if mode else 1) * (self.lora_B @ self.lora_A).data
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        return out + self.drop(x) @ self.lora_A.T @ self.lora_B.T if self.training else out


def net_of(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(6)
    return nn.Sequential(kind(4, 8), nn.Tanh(), nn.Linear(8, 3))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, 4, generator=generator), torch.arange(40) % 3


def top(net: nn.Module, adapters: str = "lora") -> tuple[float, float]:
    problem = Problem.supervised(net, nn.CrossEntropyLoss(), data())
    found: Any = spectrum(problem, parameters=adapters, top=1, bottom=1, trace_products=0, density_error=None)
    return found.largest


@pytest.mark.parametrize("kind", [Merging, Wrapped])
def test_adapters_are_read_apart_from_the_weight_that_they_are_merged_into(kind):
    net = net_of(kind).train()
    before = {k: t.clone() for k, t in net.state_dict().items()}
    if kind is Merging:
        expected = top(net_of(Plain).eval())[0]
    else:  # the same numbers, without its dropout
        twin = net_of(kind)
        twin[0].drop.p = 0.0
        expected = top(twin)[0]
    assert expected > 0.01 and top(net)[0] == pytest.approx(expected, rel=1e-3)
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize("kind", [Merging, Wrapped])
def test_adapters_that_are_merged_already_are_refused_by_name(kind):
    net = net_of(kind).eval()
    before = {k: t.clone() for k, t in net.state_dict().items()}
    with pytest.raises(
        ValueError, match=rf"eval\(\) changes parameters of this model: {kind.__name__} '0'.*model.train"
    ):
        top(net)
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())
    assert not any(m.training for m in net.modules())


def test_an_embedding_that_renormalizes_its_rows_moves_neither_model_nor_plane():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 4, max_norm=0.5), nn.Flatten(), nn.Linear(12, 3))
    before = net[0].weight.detach().clone()
    problem = Problem.supervised(net, nn.CrossEntropyLoss(), (torch.arange(30).view(10, 3) % 5, torch.arange(10) % 3))
    plane = random_plane(net, axes=1, seed=0)
    origin = plane.origin["0.weight"].clone()
    measure = losses(problem, plane)
    assert measure((0.0,)) == measure((0.0,))
    assert torch.equal(net[0].weight, before) and torch.equal(plane.origin["0.weight"], origin)


class Counting(nn.Module):
    """With parameters of whole numbers and truth values beside a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.tensor([[2, 0, 1, 3]]), requires_grad=False)
        self.mask = nn.Parameter(torch.tensor([[True, False, True, True]]), requires_grad=False)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x[:, self.order[0]] * self.mask[0])


def test_whole_numbers_and_truth_values_stand_still():
    torch.manual_seed(0)
    net = Counting()
    problem = Problem.supervised(net, nn.CrossEntropyLoss(), data())
    plane = random_plane(net, axes=1, seed=0)
    assert set(plane.origin) == {"out.weight", "out.bias"}
    assert losses(problem, plane)((0.5,))["train_loss"] > 0
    for backend in ("double-backward", "linearized", "retained-graph"):
        operator = build_operator(problem, "hessian", "all", backend=backend)
        assert operator.size == 15
        x = data()[0][:, net.order[0]] * net.mask[0]
        weight, bias = (p.detach().clone() for p in net.out.parameters())

        def loss(w: Tensor, b: Tensor, x: Tensor = x) -> Tensor:
            return F.cross_entropy(F.linear(x, w, b), data()[1])

        _, expected = torch.autograd.functional.hvp(
            loss, (weight, bias), (torch.ones_like(weight), torch.ones_like(bias))
        )
        expected = torch.cat([part.reshape(-1) for part in expected])
        torch.testing.assert_close(operator @ torch.ones(15), expected, rtol=1e-4, atol=1e-6)


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.complex64) @ self.weight).abs()


def test_complex_weights_are_refused_by_name():
    net = Spectral()
    problem = Problem.supervised(net, nn.CrossEntropyLoss(), data())
    for ask in (
        lambda: random_plane(net),
        lambda: spectrum(problem),
        lambda: build_operator(problem, "hessian", "all"),
    ):
        with pytest.raises(ValueError, match=r"'weight' is complex.*view_as_real"):
            ask()


def test_a_lazy_module_without_weights_is_refused_by_name():
    net = nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.Linear(5, 3))
    with pytest.raises(ValueError, match=r"'0.weight' has no shape yet; run the model once"):
        random_plane(net)
    with pytest.raises(ValueError, match=r"'0.weight' has no shape yet; run the model once"):
        prepare(Problem.supervised(net, nn.CrossEntropyLoss(), data()))


class Listed(nn.Module):
    """Layers in a Python list, which PyTorch does not find."""

    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.layers = [nn.Linear(4, 5), nn.Linear(5, 3)]
        if beside:
            self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](torch.tanh(self.layers[0](x)))


@pytest.mark.parametrize("beside", [False, True])
def test_weights_in_a_python_list_are_named_where_nothing_else_moves_the_loss(beside):
    net = Listed(beside)
    problem = Problem.supervised(net, nn.CrossEntropyLoss(), data())
    asked = [lambda: losses(problem, random_plane(net)), lambda: prepare(problem), lambda: spectrum(problem)]
    for ask in asked:
        with pytest.raises(ValueError, match=r"layers\[0\].weight.*nn.ModuleList"):
            ask()


def test_a_teacher_in_a_list_is_no_reason_to_refuse():
    net = nn.Sequential(nn.Linear(4, 3))
    net.teacher = [nn.Linear(4, 3)]
    assert losses(Problem.supervised(net, nn.CrossEntropyLoss(), data()), random_plane(net, axes=1))((0.0,))


def test_a_copy_holds_tables_in_its_precision():
    net = nn.Linear(4, 3)
    net.table = torch.ones(3)
    net.tables = {"a": [torch.ones(2)], "b": torch.ones(2)}
    twin = copy_of(net, torch.float64)
    assert twin.table.dtype == twin.tables["b"].dtype == twin.weight.dtype == torch.float64
    assert net.table.dtype == net.tables["b"].dtype == net.weight.dtype == torch.float32


def test_a_copy_has_hooks_and_lists_of_its_own():
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    twin = copy_of(net, torch.float64)
    for a, b in zip(net.modules(), twin.modules(), strict=True):
        shared = [k for k, v in vars(a).items() if isinstance(v, (dict, set, list)) and v is vars(b)[k]]
        assert not shared and [type(v) for v in vars(a).values()] == [type(v) for v in vars(b).values()]
    seen = []
    twin[0].register_forward_hook(lambda *_: seen.append(1))
    twin[1].register_buffer("table", torch.ones(1), persistent=False)
    net(torch.ones(1, 2))
    assert not seen and not dict(net.named_buffers()) and not net[1]._non_persistent_buffers_set
    twin(torch.ones(1, 2).double())
    assert seen


def test_a_borrowed_model_may_be_borrowed_again_inside():
    net = nn.Linear(2, 2).train()
    weight = net.weight.detach().clone()
    with temporary_parameters(net, {"weight": torch.zeros(2, 2)}):
        with temporary_parameters(net, {"weight": torch.eye(2)}):
            assert torch.equal(net.weight, torch.eye(2))
        assert torch.equal(net.weight, torch.zeros(2, 2)) and not net.training
    assert torch.equal(net.weight, weight) and net.training


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support")
def test_a_sparse_matrix_in_compressed_rows_is_copied_with_its_model():
    """PyTorch's `deepcopy` does not bear one."""
    net = nn.Linear(3, 2)
    net.rows = torch.eye(3).to_sparse_csr()
    net.register_buffer("columns", torch.eye(3).to_sparse_csc())
    twin = copy_of(net, torch.float64)
    assert twin.rows.dtype == twin.columns.dtype == torch.float64 and net.rows.dtype == torch.float32
    assert torch.equal(twin.rows.to_dense(), torch.eye(3).double()) and twin.rows is not net.rows


class Recording(nn.Linear):
    """Registers a hook, a submodule and a buffer at its first call, as models of transformers do with their hooks."""

    def forward(self, x):
        if not hasattr(self, "is_ready"):
            self.is_ready = True
            self.register_forward_hook(lambda module, args, outputs: 2 * outputs)
            self.register_buffer("table", torch.ones(1))
            self.add_module("inner", nn.Identity())
        return super().forward(x)


def test_what_a_first_pass_registers_is_taken_away_with_its_mark():
    model, x = Recording(2, 1, bias=False), torch.ones(3, 2)
    for _ in range(2):
        with temporary_parameters(model, {}):
            model(x)
            outputs = model(x)
        assert torch.allclose(outputs, 2 * F.linear(x, model.weight))  # one hook, whatever was borrowed before
    assert not model._forward_hooks and not model._buffers and not model._modules
    model(x)
    assert torch.allclose(model(x), 2 * F.linear(x, model.weight))


class Leaves(nn.Module):
    """Every pass reads and leaves a count, a buffer, a weight, a mode, a flag and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(1))
        self.passes, self.tables = 0, {}  # type: ignore[var-annotated]

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2) -> (N, 2)."""
        state = (self.passes, float(self.seen), self.line.training, self.line.bias.requires_grad, len(self.tables))
        print(*state, self.line.weight[0, 0].item(), self.line.bias[0].item(), file=read)
        self.passes += 1
        self.seen += 1.0
        self.tables[len(self.tables)] = x.detach()
        self.line.training = True
        self.line.bias.requires_grad_(False)
        with torch.no_grad():
            self.line.bias.add_(1.0)
        return self.line(x)


read = io.StringIO()  # which no look finds, and nothing puts back


def test_passes_in_one_borrow_see_what_they_would_see_alone_and_leave_nothing() -> None:
    model = Leaves().train()
    model.line.weight.grad = torch.ones(2, 2)
    moved = {"line.weight": torch.full((2, 2), 3.0)}
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def passes() -> list[str]:
        start = read.tell()
        for tensors in ({}, moved, {}, moved):
            with temporary_parameters(model, tensors):
                model(torch.ones(1, 2))
        return read.getvalue()[start:].splitlines()

    alone = passes()
    assert len(set(alone)) == 2 and alone[0] == alone[2] and alone[1] == alone[3]
    with borrowed_once(model):
        assert passes() == alone
    assert model.training and model.line.training and model.passes == 0 and not model.tables
    assert model.line.bias.requires_grad and torch.equal(model.line.weight.grad, torch.ones(2, 2))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    passes()
    assert passes() == alone
