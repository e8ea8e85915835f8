"""How units are used and layers amplify: firing rates, dead and saturated units, gains with their error bars.

One forward pass over the data, in evaluation mode. For a unit (a channel, or a feature) over all samples and places:

    rate       share of places at which a ReLU-like activation is above zero
    dead       units that never fire. Of a unit silent in N samples it is known, with 95 % confidence, that it fires in
               fewer than 3/N of them (the rule of three): samples are counted, not places, which are not independent
    dormant    units whose mean |output| is at most .025 of their layer's mean (the measure of Sokar et al. 2023,
               arXiv:2302.12902; the threshold ours)
    saturated  share of places at which a bounded activation (tanh, sigmoid) is within .01 of its end

Activations are seen where they are called, as modules or as functions; `behind` names the module whose output went
straight in. This is the one place that knows what rectifies, and what is dead. For a layer with weights:

    gain       root mean square of what leaves over that of what enters; where the layer's output goes straight into a
               normalisation, what leaves the normalisation: a weight's size alone says nothing there

with jackknife errors over samples. Sources: He et al. (2015), arXiv:1502.01852, for signals that keep their size;
Glorot and Bengio (2010), proceedings.mlr.press/v9/glorot10a, for saturation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lossmap.curvature.gradient import loss_and_gradient
from lossmap.data.problem import Problem, temporary_parameters

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
    """One place in the network where an activation function is called."""

    name: str  # the module that it is called in, numbered where there are several
    kind: str
    units: int
    rate: float  # NaN where the function is not rectifying
    dead: int  # 0 for those that cannot die
    dormant: int
    saturated: float  # NaN where the function has no ends
    samples: int
    behind: str | None = None  # the module whose output it was given

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
    """What was seen in one pass."""

    activations: tuple[Activation, ...]
    gains: tuple[Gain, ...]
    samples: int


class _Units:
    """Sums over the data at one activation. Not a result."""

    def __init__(self, kind: str, width: int, behind: str | None) -> None:
        self.kind, self.behind = kind, behind
        self.fired = torch.zeros(width, dtype=torch.float64)
        self.size = torch.zeros(width, dtype=torch.float64)
        self.places = self.samples = 0
        self.ends = 0.0

    def add(self, values: Tensor, samples: int) -> None:
        """Takes in (places, units)."""
        self.fired += (values > 0).sum(0).cpu()
        self.size += values.double().abs().sum(0).cpu()
        if self.kind in BOUNDED:
            low, high = BOUNDED[self.kind]
            self.ends += float(((values < low + 0.01) | (values > high - 0.01)).sum())
        self.places += len(values)
        self.samples += samples

    def join(self, other: _Units) -> None:
        """Takes in what another call of the same function, behind the same module, has seen."""
        self.fired, self.size = self.fired + other.fired, self.size + other.size
        self.places, self.ends = self.places + other.places, self.ends + other.ends

    def result(self, name: str) -> Activation:
        rectifies, count = self.kind in RECTIFIERS, len(self.fired)
        size = self.size / self.places
        return Activation(
            name=name,
            kind=self.kind,
            units=count,
            rate=float(self.fired.sum() / (self.places * count)) if rectifies else float("nan"),
            dead=int((self.fired == 0).sum()) if rectifies else 0,
            dormant=int((size <= DORMANT * size.mean()).sum()),
            saturated=self.ends / (self.places * count) if self.kind in BOUNDED else float("nan"),
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
        below, above, bare = (torch.cat(x).numpy() for x in (self.entering, self.leaving, self.alone))
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
    """Sees every activation function that is called, and tells of it."""

    def __init__(self, told: Callable[[str, Any, Tensor], None]) -> None:
        super().__init__()
        self.told = told

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").rstrip("_")
        if name in RECTIFIERS or name in LEAKY or name in BOUNDED:
            self.told(name, args[0] if args else None, result)
        return result


class Watch:
    """Stands by while the data pass: which module is running, what it was given, and what it gave.

    with watching(model) as watch:
        for batch in data:
            watch.again()
            model(...)
    watch.activations()
    """

    def __init__(self) -> None:
        self.units: dict[str, _Units] = {}
        self.flows: dict[str, _Flow] = {}
        self.inside = [""]
        self.calls: dict[str, int] = {}
        self.latest: tuple[str, Tensor] | None = None  # the layer called last, and what it gave
        self.given: tuple[str, Tensor] | None = None  # the module that ended last, whichever it is, and what it gave
        self.by_channel = False

    def again(self) -> None:
        """A further batch begins."""
        self.calls.clear()

    def activations(self) -> dict[str, Activation]:
        """What was seen at each place, in the order of the calls."""
        return {name: units.result(name) for name, units in self.units.items()}

    def rectified(self) -> dict[str, Activation]:
        """By module: the rectifying activation straight behind it; of several calls a unit is dead if it is in all."""
        found: dict[str, _Units] = {}
        for units in self.units.values():
            if units.behind is None or units.kind not in RECTIFIERS:
                continue
            if units.behind in found:
                found[units.behind].join(units)
            else:
                found[units.behind] = copy.copy(units)
        return {behind: units.result(behind) for behind, units in found.items()}

    def enters(self, name: str) -> Callable[..., None]:
        return lambda _module, _given: self.inside.append(name)

    def leaves(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
            self.inside.pop()
            if isinstance(out, Tensor):
                self.given = (name, out)
            if isinstance(module, BY_CHANNEL + BY_FEATURE):
                self.by_channel = isinstance(module, BY_CHANNEL)
            if isinstance(module, WEIGHTED) and isinstance(out, Tensor):
                flow = self.flows.setdefault(name, _Flow())
                flow.entering.append(_mean_square(given[0]))
                flow.leaving.append(_mean_square(out))
                flow.alone.append(flow.leaving[-1])
                self.latest = (name, out)
            elif isinstance(module, NORMS) and self.latest is not None and given[0] is self.latest[1]:
                flow = self.flows[self.latest[0]]
                flow.norm = name
                flow.leaving[-1] = _mean_square(out)

        return hook

    def told(self, kind: str, given: Any, result: Tensor) -> None:
        place = self.inside[-1]
        self.calls[place] = self.calls.get(place, 0) + 1
        name = place if self.calls[place] == 1 else f"{place}#{self.calls[place]}"
        axis = 1 if self.by_channel or result.dim() < 3 else result.dim() - 1
        values = result.detach().movedim(axis, -1).reshape(-1, result.shape[axis])
        if name not in self.units:
            straight = self.given is not None and self.given[1] is given
            self.units[name] = _Units(kind, values.shape[1], self.given[0] if straight and self.given else None)
        self.units[name].add(values, len(result))


def activation_statistics(problem: Problem) -> ActivationStatistics:
    """Watches one pass over the problem's data. The model comes back as it was."""
    model = problem.model
    with (
        temporary_parameters(model, {}),
        torch.enable_grad(),
        watching(model) as watch,
    ):  # a loss may differentiate by its inputs
        for batch in problem.data:
            watch.again()
            problem.forward(model, batch)
    names = list(watch.flows)
    return ActivationStatistics(
        tuple(watch.activations().values()),
        tuple(flow.result(name, name == names[0], name == names[-1]) for name, flow in watch.flows.items()),
        problem.data.samples,
    )


@contextmanager
def watching(model: nn.Module) -> Iterator[Watch]:
    """A watch over every module and activation function of the model, until the block ends."""
    watch = Watch()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(watch.enters(name)).remove)
            stack.callback(module.register_forward_hook(watch.leaves(name)).remove)
        stack.enter_context(_Functions(watch.told))
        yield watch


def _mean_square(signal: Tensor) -> Tensor:
    """(B,) the mean square of each sample's signal, in float64."""
    return signal.detach().flatten(1).double().square().mean(1).cpu()


def _root_of_ratio(above: Array, below: Array) -> tuple[float, float]:
    """The root of the ratio of two means over samples, with its jackknife error."""
    n = len(above)
    if not below.sum() > 0:
        return float("nan"), float("nan")
    found = float(np.sqrt(above.sum() / below.sum()))
    rest = below.sum() - below
    if n < 3 or not (rest > 0).all():
        return found, float("nan")
    parts = np.sqrt(np.maximum(above.sum() - above, 0.0) / rest)
    return found, float(np.sqrt((n - 1) / n * np.square(parts - parts.mean()).sum()))


def gradient_norms(problem: Problem, parameters: str = "weights") -> dict[str, float]:
    """The norm of the mean loss's gradient, tensor by tensor, in nats per unit of theta."""
    loss, gradient, layout = loss_and_gradient(problem, parameters)
    if not isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at these parameters: its gradient has no norm")
    return {name: float(part.norm()) for name, part in layout.unflatten(gradient).items()}
