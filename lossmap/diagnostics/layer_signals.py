"""What passes through each layer: activations forward, gradients back. One pass over the data.

For every module with parameters of its own, over all samples in evaluation mode:

    input, output   root mean square of what enters and leaves
    active          share of its outputs that are above zero (what a ReLU behind it lets through)
    behind          the rectifying activation directly behind it, with its dead units (`activations`); None without one
    gradient        root mean square of the derivative of the mean loss by its outputs, times N
    reached         share of those derivatives that are not zero

They explain a block of the Hessian that is zero: no signal comes in, or no gradient comes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.curvature.operators import differentiated
from lossmap.data.problem import Problem
from lossmap.data.sample_count import samples_in
from lossmap.diagnostics.activations import Activation, recording
from lossmap.geometry.parameter_vector import movable_parameters
from lossmap.report.signals import SignalSummary, signal_text
from lossmap.stable.losses import is_wrapped
from lossmap.sums import in_float64


@dataclass(frozen=True)
class Signal:
    """One module's signals; NaN where there is none, as of a module that is never called, or none to be seen.

    calls   how often it was called
    behind  the rectifying activation directly behind it
    is_hidden  whether it is called, or may be, where nothing can be seen: in a transform of torch.func, in TorchScript
    """

    module: str
    kind: str
    calls: int
    input: float
    output: float
    active: float
    gradient: float
    reached: float
    behind: Activation | None
    is_hidden: bool = False

    @property
    def all_dead(self) -> bool:
        """Whether a ReLU behind it shuts all of its units for all samples."""
        return self.behind is not None and self.behind.all_dead

    def summary(self) -> SignalSummary:
        """What a report says of it, and a file keeps as one row."""
        dead = units = 0
        if self.behind is not None:
            dead, units = self.behind.dead, self.behind.units
        return SignalSummary(
            self.module, self.kind, self.input, self.output, self.active, self.gradient, dead=dead, units=units
        )

    def __repr__(self) -> str:
        return signal_text(self.summary())


class _Tally:
    """Sums while the data pass. Not a result."""

    def __init__(self) -> None:
        self.calls = self.entries_in = self.entries = self.derivatives = 0
        # sums stay on the device until all data have passed, so that the host waits for no layer and no batch
        self.above: Tensor | int = 0
        self.nonzero: Tensor | int = 0
        self.squares_in: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0
        self.slopes: Tensor | float = 0.0
        self.is_hidden = False  # whether vmap, grad or jvp of torch.func, or TorchScript, hide what passes
        self.is_final = False  # whether gradients are those of the loss, and not of one that it is made of

    def enter(self, inputs: tuple[Any, ...]) -> None:
        """Before the module runs, which may write into its inputs."""
        if any(isinstance(x, Tensor) and is_wrapped(x) for x in inputs):
            self.is_hidden = True
            return
        for x in inputs:
            if isinstance(x, Tensor) and x.is_floating_point():
                self.squares_in = _plus(self.squares_in, (in_float64(x.detach()) ** 2).sum())
                self.entries_in += x.numel()

    def leave(self, output: Any) -> None:
        """After it has run."""
        self.calls += 1
        if isinstance(output, Tensor) and is_wrapped(output):
            self.is_hidden = True
        if self.is_hidden:
            return
        if isinstance(output, tuple) and output:
            output = output[0]
        if not (isinstance(output, Tensor) and output.is_floating_point()):
            return
        z = output.detach()
        self.squares = _plus(self.squares, (in_float64(z) ** 2).sum())
        self.entries += z.numel()
        self.above = _plus(self.above, (z > 0).sum())
        if output.requires_grad:
            output.register_hook(self.backward)  # type: ignore[no-untyped-call]

    def backward(self, slope: Tensor) -> None:
        if not self.is_final:  # a physics-informed loss differentiates by its inputs on the way
            return
        slope = slope.detach()
        self.slopes = _plus(self.slopes, (in_float64(slope) ** 2).sum())
        self.derivatives += slope.numel()
        self.nonzero = _plus(self.nonzero, (slope != 0).sum())


def signals(problem: Problem) -> dict[str, Signal]:
    """The signals of every module with parameters of its own, in the order in which they are first called."""
    model = problem.model
    own = {name: m for name, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))}
    tallies = {m: _Tally() for m in own.values()}
    for m, tally in tallies.items():
        tally.is_hidden = isinstance(m, torch.jit.ScriptModule)
    order: dict[nn.Module, None] = {}

    def enter(module: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        tallies[module].enter((*inputs, *keywords.values()))

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        order[module] = None
        tallies[module].leave(output)

    parameters = list(movable_parameters(model).values())
    handles = []
    try:
        seen = [m for m in tallies if not isinstance(m, torch.jit.ScriptModule)]  # which takes no such hooks
        handles = [m.register_forward_pre_hook(enter, with_kwargs=True) for m in seen]
        handles += [m.register_forward_hook(leave) for m in seen]
        with differentiated(model, parameters), recording(model) as recorder:
            for batch in problem.data:
                recorder.begin_batch(samples_in(batch))
                loss = problem.total(batch)
                for tally in tallies.values():
                    tally.is_final = True
                if loss.requires_grad:
                    torch.autograd.grad(loss, parameters, allow_unused=True)
                for tally in tallies.values():
                    tally.is_final = False
    finally:
        for handle in handles:
            handle.remove()
    names, behind = {m: name for name, m in own.items()}, recorder.rectified()
    never = [m for m in tallies if m not in order]
    return {names[m]: _signal(names[m], m, tallies[m], behind.get(names[m])) for m in [*order, *never]}


def _signal(name: str, module: nn.Module, t: _Tally, behind: Activation | None) -> Signal:
    if t.is_hidden:
        return Signal(name, type(module).__name__, t.calls, nan, nan, nan, nan, nan, None, is_hidden=True)
    return Signal(
        module=name,
        kind=type(module).__name__,
        calls=t.calls,
        input=sqrt(_ratio(t.squares_in, t.entries_in, nan)),
        output=sqrt(_ratio(t.squares, t.entries, nan)),
        active=_ratio(t.above, t.entries, nan),
        gradient=sqrt(_ratio(t.slopes, t.derivatives, 0.0)),
        reached=_ratio(t.nonzero, t.derivatives, 0.0),
        behind=behind,
    )


def _plus(total: Tensor | float, part: Tensor) -> Tensor:
    """A sum on the device on which it began: of a model spread over several, a layer's inputs may lie on two."""
    return total + (part.to(total.device) if isinstance(total, Tensor) else part)


def _ratio(part: Tensor | float, of: int, otherwise: float) -> float:
    if not of:
        return otherwise
    return float(part) / of


def why_zero(module: str, by_module: Mapping[str, Signal], gradient_norm: float, matrix: str = "hessian") -> str:
    """Why a module's block of the Hessian, or of another matrix, is zero, as far as its signals show.

    by_module      the signals of all modules, in the order of the calls
    gradient_norm  of the mean loss by this module's parameters
    """
    signal = by_module.get(module)
    if signal is None or (signal.calls == 0 and not signal.is_hidden):
        return "its module is never called: the loss does not depend on it"
    order = list(by_module.values())
    before, behind = order[: order.index(signal)], order[order.index(signal) :]
    if signal.input == 0.0:
        text = "no signal comes in: its input is 0 for all samples"
        cause = _first_blocking(before[::-1])
        if cause is not None:
            text += f" ({_blocking_text(cause)} before it)"
        return text
    if signal.gradient == 0.0:
        why = "something behind it blocks them"
        cause = _first_blocking(behind)
        if cause is not None:
            why = _blocking_text(cause)
        return f"no gradient comes back: the loss's derivatives by its outputs are 0 for all samples ({why})"
    if gradient_norm > 0.0 and matrix == "gauss-newton":
        return f"the loss is linear in the model's outputs here, not in this: its gradient is {gradient_norm:.2g}"
    if gradient_norm > 0.0:
        return f"the loss is linear in it here: its gradient is {gradient_norm:.2g}, and does not change with it"
    if isnan(signal.output):
        return "no derivative by its parameters is left"
    return (
        f"signals pass (input {signal.input:.2g}, gradient {signal.gradient:.2g} by its outputs), but no derivative by "
        "its parameters is left"
    )


def _first_blocking(signals: Sequence[Signal]) -> Signal | None:
    """The first that lets nothing through: dead behind its ReLU, or zero."""
    return next((signal for signal in signals if signal.all_dead or signal.output == 0.0), None)


def _blocking_text(signal: Signal) -> str:
    name = signal.module or "the model"
    if signal.all_dead and signal.behind is not None:
        return f"all {signal.behind.units} units of {name} are dead: never above 0 before their ReLU"
    return f"the output of {name} is 0 for all samples"
