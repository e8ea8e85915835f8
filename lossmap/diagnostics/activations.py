"""How units are used and layers amplify: firing rates, dead and saturated units, gains with their error bars.

One forward pass over the data, in evaluation mode. For a unit (a channel, or a feature) over all samples and positions:

    rate       share of positions at which a ReLU-like activation is above zero
    dead       units that never fire. Of a unit silent in N samples it is known, with 95 % confidence, that it fires in
               fewer than 3/N of them (the rule of three): samples are counted, not positions, which are not independent
    dormant    units whose mean |output| is at most .025 of their layer's mean (the measure of Sokar et al. 2023,
               arXiv:2302.12902; the threshold ours)
    saturated  share of positions at which a bounded activation (tanh, sigmoid) is within .01 of its end

Activations are recorded where they are called, as modules or as functions; `behind` names the module whose output went
straight in. What is no signal of samples is left out: functions of a parameter (a gate), of one number or one row, and
those whose units are others in every batch. Only this module defines what rectifies, and what is dead. For a layer with
weights:

    gain       root mean square of what leaves over that of what enters; where the layer's output goes straight into a
               normalisation, what leaves the normalisation: a weight's size alone says nothing there

with jackknife errors over samples. Sources: He et al. (2015), arXiv:1502.01852, for signals that keep their size;
Glorot and Bengio (2010), proceedings.mlr.press/v9/glorot10a, for saturation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lossmap.curvature.gradient_rounding import measured_gradient
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.data.sample_count import samples_in
from lossmap.stable.losses import is_wrapped
from lossmap.sums import in_float64

Array = np.ndarray

DORMANT = 0.025
RECTIFIERS = {"relu", "relu6", "threshold"}
LEAKY = {"leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "hardswish"}
BOUNDED = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0), "hardtanh": (-1.0, 1.0), "hardsigmoid": (0.0, 1.0)}
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
BY_CHANNEL = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
BY_FEATURE = (nn.Linear, nn.LayerNorm, nn.Embedding)


@dataclass(frozen=True)
class Activation:
    """One call of an activation function in the network.

    The field names stand in the JSON of a diagnosis.
    """

    name: str  # the module that it is called in, numbered where there are several
    kind: str
    units: int
    rate: float  # NaN where the function is not rectifying
    dead: int  # 0 for those that cannot die
    dormant: int
    saturated: float  # NaN where the function has no ends
    samples: int
    behind: str | None = None  # the module whose output is its input

    @property
    def all_dead(self) -> bool:
        """Whether none of its units ever fires."""
        return self.dead == self.units > 0

    @property
    def silence(self) -> float:
        """A dead unit fires, with 95 % confidence, in less than this share of samples."""
        return min(1.0, 3.0 / self.samples)


@dataclass(frozen=True)
class Gain:
    """One layer with weights: how much larger the signal leaves it than it enters."""

    name: str
    norm: str | None  # the normalisation that its output goes straight into
    gain: float
    error: float
    alone: float  # without the normalisation
    entering: float  # root mean square of what enters
    first: bool = False  # whether it is called first of all layers with weights
    last: bool = False


@dataclass(frozen=True)
class ActivationStatistics:
    """Activations and gains of one pass over `samples` samples."""

    activations: tuple[Activation, ...]
    gains: tuple[Gain, ...]
    samples: int


class _Units:
    """Sums over the data at one activation. Not a result."""

    def __init__(self, kind: str, width: int, behind: str | None) -> None:
        self.kind, self.behind = kind, behind
        self.fired = torch.zeros(width, dtype=torch.float64)
        self.size = torch.zeros(width, dtype=torch.float64)
        self.positions = self.samples = 0
        self.ends: Tensor | int = 0

    def add(self, values: Tensor, samples: int) -> None:
        """Adds outputs, (positions, units)."""
        # on the device until all data have passed, so that the host waits for no batch
        sizes, fired = in_float64(values).abs().sum(0), (values > 0).sum(0)
        self.fired = self.fired.to(sizes.device) + fired.to(sizes.device)
        self.size = self.size.to(sizes.device) + sizes
        if self.kind in BOUNDED:
            low, high = BOUNDED[self.kind]
            self.ends = self.ends + ((values < low + 0.01) | (values > high - 0.01)).sum()
        self.positions += len(values)
        self.samples += samples

    def join(self, other: _Units) -> None:
        """Adds the sums of another call of the same function behind the same module."""
        self.fired, self.size = self.fired + other.fired, self.size + other.size
        self.positions, self.ends = self.positions + other.positions, self.ends + other.ends

    def result(self, name: str) -> Activation:
        count = len(self.fired)
        outputs = self.positions * count
        fired, size = self.fired.cpu(), self.size.cpu() / self.positions
        rate = saturated = nan
        dead = 0
        if self.kind in RECTIFIERS:
            rate, dead = float(fired.sum() / outputs), int((fired == 0).sum())
        if self.kind in BOUNDED:
            saturated = float(self.ends) / outputs
        return Activation(
            name=name,
            kind=self.kind,
            units=count,
            rate=rate,
            dead=dead,
            dormant=int((size <= DORMANT * size.mean()).sum()),
            saturated=saturated,
            samples=self.samples,
            behind=self.behind,
        )


class _Flow:
    """Mean squares of what enters and leaves one layer, sample by sample. Not a result."""

    def __init__(self) -> None:
        self.entering: list[Tensor] = []
        self.leaving: list[Tensor] = []
        self.alone: list[Tensor] = []
        self.norm: str | None = None

    def result(self, name: str, first: bool, last: bool) -> Gain:
        below, above, bare = (torch.cat(x).cpu().numpy() for x in (self.entering, self.leaving, self.alone))
        gain, error = _root_of_ratio(above, below)
        return Gain(
            name=name,
            norm=self.norm,
            gain=gain,
            error=error,
            alone=_root_of_ratio(bare, below)[0],
            entering=float(np.sqrt(below.mean())),
            first=first,
            last=last,
        )


class _Functions(TorchFunctionMode):
    """Reports every activation function that is called: its name, its input, its output, and the input's version."""

    def __init__(self, report: Callable[[str, Any, Tensor, int | None], None]) -> None:
        super().__init__()
        self.report = report

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        argument = next(iter(args), None)
        version = version_of(argument)  # which it has no longer where the function writes into it
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").rstrip("_")
        if name in RECTIFIERS or name in LEAKY or name in BOUNDED:
            self.report(name, argument, result, version)
        return result


class ActivationRecorder:
    """Records, while the data pass, which module is running, its input and its output.

    with recording(model) as recorder:
        for batch in data:
            recorder.begin_batch(samples)
            model(...)
    recorder.activations()
    """

    def __init__(self) -> None:
        self.units: dict[str, _Units] = {}
        self.flows: dict[str, _Flow] = {}
        self.inside = [""]
        self.entered: list[tuple[int | None, Tensor | None]] = []  # version and size of each running module's input
        self.calls: dict[str, int] = {}
        self.left_out: set[str] = set()  # activations that are no signal in some batch, or one of other units
        self.samples = 1  # of the present batch
        # the layer called last, and the module that ended last, of any kind: its output, and the version of that
        self.latest: tuple[str, Tensor, int | None] | None = None
        self.output: tuple[str, Tensor, int | None] | None = None
        self.by_channel = False

    def begin_batch(self, samples: int) -> None:
        """A further batch begins, of so many samples."""
        self.calls.clear()
        self.samples = samples

    def activations(self) -> dict[str, Activation]:
        """Each call of an activation function, in the order of the calls."""
        return {name: units.result(name) for name, units in self.units.items()}

    def rectified(self) -> dict[str, Activation]:
        """By module: the rectifying activation directly behind it; of several calls a unit is dead if it is in all."""
        sums: dict[str, _Units] = {}
        for units in self.units.values():
            if units.behind is None or units.kind not in RECTIFIERS:
                continue
            if units.behind in sums:
                sums[units.behind].join(units)
            else:
                sums[units.behind] = copy.copy(units)
        return {behind: units.result(behind) for behind, units in sums.items()}

    def enters(self, name: str) -> Callable[..., None]:
        """The hook, with keywords, that runs before the module of this name, which may write into its input."""

        def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
            self.inside.append(name)
            entering = first_argument(inputs, keywords)
            is_measured = isinstance(module, WEIGHTED) and _is_signal(entering)
            self.entered.append((version_of(entering), _mean_square(entering) if is_measured else None))

        return hook

    def leaves(self, name: str) -> Callable[..., None]:
        """The hook, with keywords, that runs after the module of this name."""

        def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any], out: Any) -> None:
            self.inside.pop()
            version, size = self.entered.pop()
            entering = first_argument(inputs, keywords)
            if isinstance(out, Tensor):
                self.output = (name, out, version_of(out))
            if isinstance(module, BY_CHANNEL + BY_FEATURE):
                self.by_channel = isinstance(module, BY_CHANNEL)
            if size is not None and _is_signal(out):
                flow = self.flows.setdefault(name, _Flow())
                flow.entering.append(size)
                flow.leaving.append(_mean_square(out))
                flow.alone.append(flow.leaving[-1])
                self.latest = (name, out, version_of(out))
            elif isinstance(module, NORMS) and self.latest is not None and _is_same(self.latest, entering, version):
                flow = self.flows[self.latest[0]]
                flow.norm = name
                flow.leaving[-1] = _mean_square(out)

        return hook

    def add_call(self, kind: str, argument: Any, result: Tensor, version: int | None) -> None:
        """Records one call of an activation function: its name, its input, its output, the input's version before."""
        module = self.inside[-1]
        self.calls[module] = self.calls.get(module, 0) + 1
        name = module
        if self.calls[module] > 1:
            name = f"{module}#{self.calls[module]}"
        if result.dim() == 1 and len(result) == self.samples:  # one number of each sample
            result = result[:, None]
        if isinstance(argument, nn.Parameter) or not _is_signal(result):
            self._leave_out(name)
            return
        axis = 1  # channels, or features of (B, features)
        if result.dim() >= 3 and not self.by_channel:
            axis = result.dim() - 1
        values = result.detach().movedim(axis, -1).reshape(-1, result.shape[axis])
        if name in self.units and len(self.units[name].fired) != values.shape[1]:
            self._leave_out(name)
        if name in self.left_out:
            return
        if name not in self.units:
            behind = None
            if self.output is not None and _is_same(self.output, argument, version):
                behind = self.output[0]
            self.units[name] = _Units(kind, values.shape[1], behind)
        self.units[name].add(values, min(self.samples, len(values)))

    def _leave_out(self, name: str) -> None:
        self.left_out.add(name)
        self.units.pop(name, None)


def activation_statistics(problem: Problem) -> ActivationStatistics:
    """Activations and gains over one pass of the problem's data, in evaluation mode. The model comes back as it was."""
    model = problem.model
    with (
        temporary_parameters(model, {}),
        torch.enable_grad(),
        recording(model) as recorder,
    ):  # a loss may differentiate by its inputs
        for batch in problem.data:
            recorder.begin_batch(samples_in(batch))
            problem.forward(model, batch)
    names = list(recorder.flows)
    return ActivationStatistics(
        tuple(recorder.activations().values()),
        tuple(flow.result(name, name == names[0], name == names[-1]) for name, flow in recorder.flows.items()),
        problem.data.samples,
    )


@contextmanager
def recording(model: nn.Module) -> Iterator[ActivationRecorder]:
    """A recorder of every module and activation function of the model, until the block ends."""
    recorder = ActivationRecorder()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # it takes no such hooks
                continue
            stack.callback(module.register_forward_pre_hook(recorder.enters(name), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(recorder.leaves(name), with_kwargs=True).remove)
        stack.enter_context(_Functions(recorder.add_call))
        yield recorder


def first_argument(inputs: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """What a module was called with first, by position or by name; None for nothing."""
    return next(iter((*inputs, *keywords.values())), None)


def version_of(value: Any) -> int | None:
    """A number that grows with every write into a tensor's memory; None where PyTorch counts none."""
    try:
        return value._version if isinstance(value, Tensor) else None
    except RuntimeError:  # of an inference tensor
        return None


def _is_same(output: tuple[str, Tensor, int | None], entering: Any, version: int | None) -> bool:
    """Whether what entered is a module's output, into which nothing was written meanwhile."""
    return entering is output[1] and version == output[2]


def _is_signal(value: Any) -> bool:
    """Whether a value is a tensor of real numbers with samples and units, which a transform of torch.func hides."""
    return isinstance(value, Tensor) and value.dim() > 1 and value.is_floating_point() and not is_wrapped(value)


def _mean_square(signal: Tensor) -> Tensor:
    """(B,) the mean square of each sample's signal, in float64."""
    return in_float64(signal.detach().flatten(1)).square().mean(1)


def _root_of_ratio(above: Array, below: Array) -> tuple[float, float]:
    """The root of the ratio of two means over samples, with its jackknife error."""
    n = len(above)
    if not below.sum() > 0:
        return nan, nan
    ratio = float(np.sqrt(above.sum() / below.sum()))
    rest = below.sum() - below
    if n < 3 or not (rest > 0).all():
        return ratio, nan
    parts = np.sqrt(np.maximum(above.sum() - above, 0.0) / rest)
    return ratio, float(np.sqrt((n - 1) / n * np.square(parts - parts.mean()).sum()))


def gradient_norms(problem: Problem, parameters: str = "weights") -> dict[str, tuple[float, float]]:
    """The norm of the mean loss's gradient, tensor by tensor, and how far rounding may have moved it; NaN if unknown.

    Both in the unit of the loss per unit of theta.

    parameters  weights (dimension > 1), all, trainable, or a regular expression
    """
    found = measured_gradient(problem, parameters)
    if not isfinite(found.loss):
        raise FloatingPointError(f"the loss is {found.loss} at these parameters: its gradient has no norm")
    tensors = found.layout.unflatten(found.gradient)
    return {name: (float(part.norm()), found.errors[name]) for name, part in tensors.items()}
