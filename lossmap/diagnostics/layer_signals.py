"""What passes through each layer: activations forward, gradients back. One pass over the data.

For every module with parameters of its own, over all samples in evaluation mode:

    input, output   root mean square of what enters and leaves
    active          share of its outputs that are above zero (what a ReLU behind it lets through)
    behind          the rectifying activation straight behind it, with its dead units (`activity`); None without one
    gradient        root mean square of the derivative of the mean loss by its outputs, times N
    reached         share of those derivatives that are not zero

They explain a block of the Hessian that is zero: no signal comes in, or no gradient comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.curvature.operators import differentiated
from lossmap.data.problem import Problem
from lossmap.diagnostics.activations import Activation, watching
from lossmap.report.signals import SignalSummary, signal_text


@dataclass(frozen=True)
class Signal:
    """One module's signals; NaN where nothing was seen, such as a module that is never called."""

    module: str
    kind: str
    calls: int
    input: float
    output: float
    active: float
    gradient: float
    reached: float
    behind: Activation | None

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
        self.calls = self.entries_in = self.entries = self.above = self.derivatives = self.nonzero = 0
        self.squares_in = self.squares = self.slopes = 0.0

    def forward(self, inputs: tuple[Any, ...], output: Any) -> None:
        self.calls += 1
        for x in inputs:
            if isinstance(x, Tensor) and x.is_floating_point():
                self.squares_in += float((x.detach().double() ** 2).sum())
                self.entries_in += x.numel()
        output = output[0] if isinstance(output, tuple) and output else output
        if not (isinstance(output, Tensor) and output.is_floating_point()):
            return
        z = output.detach()
        self.squares += float((z.double() ** 2).sum())
        self.entries += z.numel()
        self.above += int((z > 0).sum())
        if output.requires_grad:
            output.register_hook(self.backward)  # type: ignore[no-untyped-call]

    def backward(self, slope: Tensor) -> None:
        self.slopes += float((slope.double() ** 2).sum())
        self.derivatives += slope.numel()
        self.nonzero += int((slope != 0).sum())


def signals(problem: Problem) -> dict[str, Signal]:
    """The signals of every module with parameters of its own, in the order in which they are first called."""
    model = problem.model
    own = {name: m for name, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))}
    tallies = {m: _Tally() for m in own.values()}
    order: dict[nn.Module, None] = {}

    def seen(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        order[module] = None
        tallies[module].forward(inputs, output)

    parameters = list(model.parameters())
    handles = []
    try:
        handles = [m.register_forward_hook(seen) for m in tallies]
        with differentiated(model, parameters), watching(model) as watch:
            for batch in problem.data:
                watch.again()
                loss = problem.total(batch)
                if loss.requires_grad:
                    torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    names, behind = {m: name for name, m in own.items()}, watch.rectified()
    never = [m for m in tallies if m not in order]
    return {names[m]: _signal(names[m], m, tallies[m], behind.get(names[m])) for m in [*order, *never]}


def _signal(name: str, module: nn.Module, t: _Tally, behind: Activation | None) -> Signal:
    return Signal(
        module=name,
        kind=type(module).__name__,
        calls=t.calls,
        input=sqrt(t.squares_in / t.entries_in) if t.entries_in else nan,
        output=sqrt(t.squares / t.entries) if t.entries else nan,
        active=t.above / t.entries if t.entries else nan,
        gradient=sqrt(t.slopes / t.derivatives) if t.derivatives else 0.0,
        reached=t.nonzero / t.derivatives if t.derivatives else 0.0,
        behind=behind,
    )


def why_zero(module: str, found: Mapping[str, Signal], gradient_norm: float) -> str:
    """Why a module's block of the Hessian is zero, as far as its signals tell."""
    signal = found.get(module)
    if signal is None or signal.calls == 0:
        return "its module is never called: the loss does not depend on it"
    order = list(found)
    before, behind = order[: order.index(module)], order[order.index(module) :]
    if signal.input == 0.0:
        culprit = next((found[m] for m in reversed(before) if found[m].all_dead or found[m].output == 0.0), None)
        by = "" if culprit is None else f" ({_culprit(culprit)} before it)"
        return f"no signal comes in: its input is 0 for all samples{by}"
    if signal.gradient == 0.0:
        culprit = next((found[m] for m in behind if found[m].all_dead or found[m].output == 0.0), None)
        by = "something behind it blocks them" if culprit is None else _culprit(culprit)
        return f"no gradient comes back: the loss's derivatives by its outputs are 0 for all samples ({by})"
    if gradient_norm > 0.0:
        return f"the loss is linear in it here: its gradient is {gradient_norm:.2g}, and does not change with it"
    return (
        f"signals pass (input {signal.input:.2g}, gradient {signal.gradient:.2g} by its outputs), but no derivative by "
        "its parameters is left"
    )


def _culprit(signal: Signal) -> str:
    if signal.all_dead:
        units = signal.behind.units if signal.behind is not None else 0
        return f"all {units} units of {signal.module or 'the model'} are dead: never above 0 before their ReLU"
    return f"{signal.module or 'the model'} gives 0 for all samples"
