"""Every measure borrows the model and gives it back as it was: asked of models that are easily spoilt.

A model is described before and after by `description`: the tensors of its state (the objects, where they lie, their
bits), gradients, requires_grad, modes, hooks and every attribute of every module, tables and counters included. Then it
must train.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lossmap
from lossmap import Grid, Problem, random_plane
from lossmap.curvature.autotune import prepare
from lossmap.curvature.build import build_operator
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.per_sample_gradients import gradient_covariance
from lossmap.diagnostics.activations import activation_statistics
from lossmap.diagnostics.label_noise import label_noise
from lossmap.diagnostics.layer_signals import signals
from lossmap.diagnostics.neural_collapse import neural_collapse
from lossmap.diagnostics.singular_values import singular_values
from lossmap.dynamics.checkpoint_curvature import CheckpointCurvature
from lossmap.health.diagnose import diagnose
from lossmap.landscape.eigenvalues import EigenvalueMap
from lossmap.landscape.sharpness import sharpness
from lossmap.spectra.blocks import layer_spectra
from lossmap.spectra.layer_hessian import layer_hessians
from lossmap.spectra.spectrum import spectrum
from lossmap.training import Recorder, ends, readings

SAMPLES, INPUTS, CLASSES = 12, 4, 3


class Body(nn.Module):
    """Two layers: what the nasty ones add something to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(INPUTS, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class CachedTable(Body):
    """Builds tables in its first pass and keeps them: as attributes, in a dictionary, in an object, beside a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None
        self.built, self.tables, self.passes = False, {}, []
        self.helper = type("Helper", (), {})()

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append(len(x))
        if not self.built:
            self.table = torch.linspace(0.5, 1.5, 5, dtype=x.dtype)
            self.helper.scale = torch.ones(5, dtype=x.dtype)
            self.built = True
        if "shift" not in self.tables:
            self.tables["shift"] = torch.linspace(-0.1, 0.1, 5, dtype=x.dtype)
        h = torch.tanh(self.first(x)) * self.table * self.helper.scale + self.tables["shift"]
        return self.last(h)


class LazyBuffer(Body):
    """Registers a buffer in its first pass, and counts its passes in another."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if "scale" not in self._buffers:
            self.register_buffer("scale", torch.full((INPUTS,), 0.7, dtype=x.dtype))
        self.count += 1
        return super().forward(x * self.scale)


class Adapter(nn.Linear):
    """A low-rank adapter that is merged into the weight in eval(), as in loralib."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.lora_a = nn.Parameter(torch.randn(2, inputs) * 0.5)
        self.lora_b = nn.Parameter(torch.randn(outputs, 2) * 0.5)
        self.weight.requires_grad_(False)
        self.merged = False

    def train(self, mode: bool = True) -> Adapter:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.lora_b @ self.lora_a).data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight, self.bias)
        return out if self.merged else out + x @ self.lora_a.T @ self.lora_b.T


class Adapted(Body):
    def __init__(self) -> None:
        super().__init__()
        self.first = Adapter(INPUTS, 5)


class FrozenNorm(Body):
    """Keeps its batch norm in evaluation mode while it trains, as networks with a frozen backbone do; drops units."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other, self.drop = nn.BatchNorm1d(5), nn.BatchNorm1d(5), nn.Dropout(0.5)
        self.first.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(torch.tanh(self.other(self.norm(self.first(x))))))


class Auxiliary(Body):
    """A second head in training mode."""

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.first(x))
        return (self.last(h), self.last(h * 0.5)) if self.training else self.last(h)


class Tied(nn.Module):
    """One weight in two places, with a bias of its own each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Clamped(Body):
    """Writes into its own weights in every pass."""

    def forward(self, x: Tensor) -> Tensor:
        self.first.weight.data.clamp_(-0.2, 0.2)
        return super().forward(x)


def weight_normed() -> nn.Module:
    net = Body()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(net.first)
    nn.utils.parametrizations.weight_norm(net.last)
    return net


def spectrally_normed() -> nn.Module:
    net = Body()
    nn.utils.spectral_norm(net.first)
    nn.utils.parametrizations.spectral_norm(net.last)
    return net


def hooked() -> nn.Module:
    net = Body()
    net.first.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.9,))
    net.first.register_forward_hook(lambda module, inputs, output: output + 0.1)
    net.last.register_full_backward_hook(lambda module, inputs, outputs: None)
    return net


NETS: dict[str, Callable[[], nn.Module]] = {
    "cached tables": CachedTable,
    "a lazily built buffer": LazyBuffer,
    "a merging adapter": Adapted,
    "a frozen batch norm": FrozenNorm,
    "an auxiliary head": Auxiliary,
    "tied weights": Tied,
    "weights clamped in every pass": Clamped,
    "weight norm": weight_normed,
    "spectral norm": spectrally_normed,
    "hooks": hooked,
}


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(SAMPLES, INPUTS, generator=generator)
    return x, torch.arange(SAMPLES) % CLASSES


def made(name: str) -> nn.Module:
    """A model in training mode, with gradients."""
    torch.manual_seed(3)
    net = NETS[name]().train()
    if name == "a frozen batch norm":
        x, y = data()
        F.cross_entropy(net(x), y).backward()
    else:
        for p in net.parameters():
            p.grad = torch.ones_like(p)
    return net


Measure = Callable[[Problem, Any], Any]
EDGES: dict[str, Any] = {"certify": "none", "tol": 1e-2}


def _surface(problem: Problem, path: Any) -> Any:
    plane = random_plane(problem.model, axes=1, seed=0)
    return lossmap.survey(lossmap.losses(problem, plane), Grid.line(-1, 1, 3))


def _eigenmap(problem: Problem, path: Any) -> Any:
    measure = EigenvalueMap({"train": prepare(problem)}, random_plane(problem.model, axes=1, seed=0), **EDGES)
    return [measure((x,)) for x in (0.0, 0.5)]


def _dynamics(problem: Problem, path: Any) -> Any:
    torch.save({"state_dict": problem.model.state_dict()}, path / "step_0.pt")
    measure = CheckpointCurvature(problem, {0.0: path / "step_0.pt"}, store_vectors=lambda step, v: None, top=1)
    return measure((0.0,))


def _monitor(problem: Problem, path: Any) -> Any:
    recorder = Recorder(path / "run", every=1, curvature=ends(problem, tol=1e-2))
    recorder(problem.model, torch.tensor(1.0))
    return recorder.records


MEASURES: dict[str, Measure] = {
    "losses": _surface,
    "eigenmap": _eigenmap,
    "linearized eigenmap": lambda p, _: prepare(p, backend="linearized").at() @ torch.ones(_size(p)),
    "retained graph": lambda p, _: prepare(p, backend="retained-graph").at() @ torch.ones(_size(p)),
    "product": lambda p, _: build_operator(p, "hessian", "all") @ torch.ones(_size(p, "all")),
    "Gauss-Newton": lambda p, _: build_operator(p, "gauss-newton", "all") @ torch.ones(_size(p, "all")),
    "spectrum": lambda p, _: spectrum(p, top=1, bottom=1, trace_products=0, density_error=None, dense=4),
    "layers": lambda p, _: layer_spectra(p, density_error=None),
    "layer Hessian": lambda p, _: layer_hessians(p),
    "dynamics": _dynamics,
    "line": lambda p, _: lossmap.connect(p, {k: v + 0.1 for k, v in p.model.named_parameters()}, points=3),
    "aligned line": lambda p, _: lossmap.connect(
        p, {k: v + 0.1 for k, v in p.model.named_parameters()}, points=3, align="weights"
    ),
    "refined surface": lambda p, _: lossmap.survey(
        lossmap.losses(p, lossmap.random_plane(p.model)), lossmap.Grid.square(-0.1, 0.1, 13), refine=0.1, progress=False
    ),
    "sharpness": lambda p, _: sharpness(p, draws=2, ascent_steps=1, trace_products=0),
    "diagnose": lambda p, _: diagnose(p, density_error=None),
    "gradient": lambda p, _: loss_and_gradient(p),
    "per-sample gradients": lambda p, _: gradient_covariance(p),
    "training monitor": _monitor,
    "readings": lambda p, _: readings(p),
    "singular values": lambda p, _: singular_values(p.model),
    "activations": lambda p, _: activation_statistics(p),
    "label noise": lambda p, _: label_noise(p),
    "signals": lambda p, _: signals(p),
    "neural collapse": lambda p, _: neural_collapse(p),
}
# those that are given a problem which has been asked already whether it writes into its batches
INNER = ("gradient", "layer Hessian", "activations", "label noise", "signals", "neural collapse")


def _size(problem: Problem, parameters: str = "weights") -> int:
    return build_operator(problem, "hessian", parameters).size


def _value(value: Any) -> Any:
    """An attribute, by identity where it is a tensor or a module; containers and plain objects by what they hold."""
    if isinstance(value, Tensor):
        bits = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        return (id(value), value.data_ptr(), value.dtype, bits, value.is_inference())
    if isinstance(value, (nn.Module, str, bytes, int, float, type(None))):
        return id(value) if isinstance(value, nn.Module) else value
    if isinstance(value, dict):
        return {key: _value(v) for key, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_value(v) for v in value]
    if callable(value) or not hasattr(value, "__dict__"):
        return id(value)
    return {key: _value(v) for key, v in value.__dict__.items()}


def description(model: nn.Module) -> dict[str, Any]:
    """All that a borrower could change."""
    described: dict[str, Any] = {
        f"{name}.{key}": _value(value) for name, m in model.named_modules() for key, value in m.__dict__.items()
    }
    for name, p in model.named_parameters():
        described[f"gradient of {name}"] = _value(p.grad)
        described[f"requires_grad of {name}"] = p.requires_grad
    described["grad enabled"] = torch.is_grad_enabled()
    described["default dtype"] = torch.get_default_dtype()
    described["chance"] = torch.get_rng_state().numpy().tobytes()
    described["chance of NumPy"] = np.random.get_state()[1].tobytes()
    return described


def changed(model: nn.Module, before: dict[str, Any]) -> list[str]:
    """What is no longer as it was."""
    now = description(model)
    return [key for key in {**before, **now} if now.get(key, "gone") != before.get(key, "gone")]


def trains(model: nn.Module) -> None:
    """One step of training, with gradients in every parameter that takes part."""
    x, y = data()
    outputs = model(x)
    F.cross_entropy(outputs[0] if isinstance(outputs, tuple) else outputs, y).backward()


@pytest.mark.parametrize("net", list(NETS))
@pytest.mark.parametrize("measure", list(MEASURES))
def test_a_measure_leaves_the_model_as_it_was(measure, net, tmp_path):
    model = made(net)
    problem = Problem.supervised(model, nn.CrossEntropyLoss(), data())
    before = description(model)
    try:
        MEASURES[measure](problem, tmp_path)
    except ValueError as error:  # of weights that are overwritten the gradient is none, and few nets can be aligned
        overwritten = net == "weights clamped in every pass"
        said = ("cannot trace", "may change its place", "no tensor named") if measure == "aligned line" else ()
        assert any(text in str(error) for text in said) or (
            overwritten and "gradient that PyTorch gives is not that of the loss" in str(error)
        )
    assert changed(model, before) == []
    trains(model)


class Writing(Body):
    """Writes into its input and, as a loss, into its targets."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.1))

    @staticmethod
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        targets[targets == CLASSES] = 0
        return F.cross_entropy(outputs, targets)


@pytest.mark.parametrize("measure", [m for m in MEASURES if m not in INNER])
def test_a_measure_leaves_the_data_as_they_were(measure, tmp_path):
    torch.manual_seed(3)
    x, y = data()
    y[0] = CLASSES
    before = (x.clone(), y.clone())
    try:
        MEASURES[measure](Problem.supervised(Writing(), Writing.loss, (x, y)), tmp_path)
    except ValueError as error:
        assert measure == "aligned line" and "cannot trace" in str(error)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


@pytest.mark.parametrize("measure", list(MEASURES))
def test_a_model_that_raises_in_the_middle_is_left_as_it_was(measure, tmp_path):
    class Failing(CachedTable):
        fails = False

        def forward(self, x: Tensor) -> Tensor:
            h = super().forward(x)
            if type(self).fails:
                raise OSError("the disk is full")
            return h

    torch.manual_seed(3)
    model = Failing().train()
    problem = Problem.supervised(model, nn.CrossEntropyLoss(), data())
    before = description(model)
    Failing.fails = True
    try:
        MEASURES[measure](problem, tmp_path)
    except OSError as error:
        assert "the disk is full" in str(error)
    else:
        assert measure in ("singular values", "linearized eigenmap")  # those run no forward pass, or fall back
    Failing.fails = False
    assert changed(model, before) == []
    trains(model)


def test_the_description_sees_what_a_measure_could_spoil():
    """The test of the tests: each of these changes is noticed."""
    spoil: dict[str, Callable[[nn.Module], Any]] = {
        "a mode": lambda m: m.first.eval(),
        "a weight": lambda m: m.first.weight.data.mul_(1.0 + 1e-7),
        "a dtype": lambda m: m.double(),
        "a table": lambda m: m(torch.randn(2, INPUTS)),
        "a hook": lambda m: m.first.register_forward_hook(lambda *_: None),
        "a gradient": lambda m: setattr(m.first.weight, "grad", None),
        "requires_grad": lambda m: m.first.weight.requires_grad_(False),
        "chance": lambda m: torch.rand(1),
    }
    for what, change in spoil.items():
        model = made("cached tables")
        before = description(model)
        change(model)
        assert changed(model, before) != [], what


def test_in_training_mode_every_measure_reads_evaluation_mode(tmp_path):
    """Losses, gradients and products of a net with dropout and batch norm: the same in either mode.

    Up to the rounding of the plans, which are chosen by the clock.
    """
    answers = []
    for training in (True, False):
        model = made("a frozen batch norm")
        problem = Problem.supervised(model.train(training), nn.CrossEntropyLoss(), data())
        v = torch.ones(_size(problem))
        answers.append(
            [
                float(_surface(problem, tmp_path)["train_loss"][0]),
                loss_and_gradient(problem).gradient,
                build_operator(problem, "hessian", "weights") @ v,
                prepare(problem, backend="linearized").at() @ v,
                prepare(problem, backend="retained-graph").at() @ v,
                gradient_covariance(problem).gram,
            ]
        )
    for one, other in zip(*answers, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


def test_the_copy_of_a_model_is_independent():
    """What `made` makes can be copied: the twin of these tests."""
    model = made("cached tables")
    twin = copy.deepcopy(model)
    trains(twin)
    assert model.table is None


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:The .grad attribute")
@pytest.mark.parametrize("made_by", ["script", "trace"])
def test_torchscript_keeps_its_mode_and_is_measured_like_the_model_itself(made_by):
    """It keeps the mode elsewhere, takes no hooks, and raises AttributeError where torch.func gives it tensors."""
    torch.manual_seed(0)
    plain, x, y = Body().train(), *data()
    model = torch.jit.script(plain) if made_by == "script" else torch.jit.trace(plain, x)
    ours, theirs = (Problem.supervised(net, nn.CrossEntropyLoss(), (x, y)) for net in (model, plain))
    blocks, expected = (layer_spectra(p, probes=0, whole=False, density_error=None) for p in (ours, theirs))
    for one, other in zip(blocks.blocks, expected.blocks, strict=True):
        assert one.values == pytest.approx(other.values, abs=1e-4)
    found = gradient_covariance(ours)
    assert found.rms == pytest.approx(gradient_covariance(theirs).rms, rel=1e-4)
    assert activation_statistics(ours).samples == SAMPLES
    assert all(module.training for module in model.modules())
