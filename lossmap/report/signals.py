"""What passes through the modules of a network, in words: one line a module."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan

from lossmap.report.stored import StoredReport, array_names, rows_of
from lossmap.report.text import wrapped


@dataclass(frozen=True)
class SignalSummary:
    """What passes through one module: root mean squares over all samples, and the dead units of the ReLU behind it.

    active  share of its outputs above zero
    dead    of `units`; both 0 where no ReLU is behind it
    """

    module: str
    kind: str
    input: float
    output: float
    active: float
    gradient: float
    dead: int
    units: int


ARRAYS = array_names(SignalSummary, "signal_")


def signal_text(s: SignalSummary) -> str:
    """One module's signals."""
    if isnan(s.input) and isnan(s.output):
        where = "inside a transform of torch.func (vmap, grad, jvp) or TorchScript"
        return f"{s.kind}: no signal seen: it is not called, or {where}"
    dead = f", {s.dead} of {s.units} units dead" * bool(s.dead)
    return (
        f"{s.kind}: input {s.input:.2g}, output {s.output:.2g} (rms), {100 * s.active:.0f} % active{dead}, gradient "
        f"{s.gradient:.2g}"
    )


def signal_lines(stored: StoredReport, modules: set[str]) -> list[str]:
    """The signals of the blocks' modules, which say why a block is zero."""
    summaries = rows_of(stored, SignalSummary, ARRAYS)
    lines: list[str] = []
    for s in summaries:
        if s.module in modules:
            lines += wrapped(s.module or "the model", signal_text(s))
    if not lines:
        return []
    return ["", "  Signals through the layers:", *lines]
