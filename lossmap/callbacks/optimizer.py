"""What an optimizer's next step makes of the Hessian: the matrix whose largest eigenvalue decides on its stability.

    M = D (H + W) D,    D = P^-1/2 (largest rate = 1),  W = the weight decay that is added to the gradient

    SGD    P = 1; threshold 2 (1 + mu) / rate, Nesterov's less (`diagnostics.stability`)
    Adam   P = (1 - beta1^t) (sqrt(v / (1 - beta2^t)) + eps), v the mean square of the gradient after t steps;
           threshold (2 + 2 beta1) / ((1 - beta1) rate)

Full-batch steps are stable along a direction while the eigenvalue of M is below the threshold. Groups of parameters
with rates of their own are part of P: sqrt(rate / largest rate) stands in D. A parameter that the optimizer does not
move has D = 0, and so has one whose gradients were never more than rounding: a bias in front of batch norm, whose P
would be eps, has curvature in evaluation mode only. The decoupled decay of AdamW, which is no part of the gradient, is
left out, as in the source. Adam's P is that of the last step taken. Source: Cohen et al. (2022), arXiv:2207.14484.

Symbols: n the parameters that the Hessian is of. Price: two vectors (n,) for Adam.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf, nan, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.diagnostics.stability import adam_stability_limit, stability_limit

RATE_IS_0 = "the learning rate is 0"  # as at both ends of many schedules: no step diverges
ROUNDING = 16.0  # roundings of the largest gradient, up to which a parameter has none
ADAM = (torch.optim.Adam, torch.optim.AdamW)


@dataclass(frozen=True, eq=False)
class StepRule:
    """How the optimizer's next step sees the Hessian.

    threshold  the eigenvalue of M above which full-batch steps diverge; NaN where it is not known
    scale      D, (n,) in float64; None where it is 1
    decay      W, (n,) in float64, or one number for all
    name       of the optimizer
    reason     why the threshold is not known; empty where it is
    without_gradient  the parameters left out, since their gradients were never more than rounding
    """

    threshold: float
    scale: Tensor | None = field(default=None, repr=False)
    decay: Tensor | float = 0.0
    name: str = ""
    reason: str = ""
    without_gradient: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether M is H but for a multiple of the identity, so that its eigenvalues are known from those of H."""
        return self.scale is None and not isinstance(self.decay, Tensor)


def unwrapped(optimizer: Any) -> Any:
    """The optimizer of PyTorch inside the wrappers of Accelerate and Lightning, which keep it as `optimizer`."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def step_rule(optimizer: Any, named: Mapping[str, nn.Parameter]) -> StepRule:
    """The rule of the optimizer's next step, from its groups and its state; with a reason where it is not known.

    named  the parameters that the Hessian is of, by name, in order
    """
    optimizer = unwrapped(optimizer)
    name = type(optimizer).__name__
    is_adam = type(optimizer) in ADAM
    if not is_adam and type(optimizer) is not torch.optim.SGD:
        reason = f"no stability threshold is known for {name}; SGD, Adam and AdamW have one"
        return StepRule(nan, name=name, reason=reason)
    group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
    moving = [group_of.get(p) for p in named.values()]
    groups = [group for group in moving if group is not None]
    if not groups:
        return StepRule(nan, name=name, reason="the optimizer moves none of the parameters that the Hessian is of")
    kinds = {_momentum_of(group) for group in groups}
    if len(kinds) > 1 or any(group.get("maximize") for group in groups):
        reason = "no stability threshold is known for groups that differ in their momentum, or that maximize"
        return StepRule(nan, name=name, reason=reason)
    rate = max(float(group["lr"]) for group in groups)
    if rate <= 0.0:
        return StepRule(inf, name=name, reason=RATE_IS_0)
    decay = _joined(named, [_decay_of(optimizer, group) for group in moving])
    absent = _without_gradient(optimizer, named) if is_adam else ()
    roots = [
        0.0 if key in absent else _root(optimizer, p, group, rate, is_adam)
        for (key, p), group in zip(named.items(), moving, strict=True)
    ]
    scale: Tensor | float | None = _joined(named, roots)
    if isinstance(scale, float):
        scale = None if scale == 1.0 else _as_vector(named, scale)
    return StepRule(_threshold(groups[0], rate, is_adam), scale, decay, name, "", absent)


def _momentum_of(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """What must be the same in all groups for one threshold."""
    if "betas" in group:
        return (float(group["betas"][0]),)
    return (group["momentum"], group["dampening"], group["nesterov"])


def _threshold(group: Mapping[str, Any], rate: float, is_adam: bool) -> float:
    """The threshold of the largest rate, with this group's momentum."""
    if is_adam:
        return adam_stability_limit(rate, float(group["betas"][0]))
    momentum = float(group["momentum"])
    if momentum:  # without momentum torch does not dampen
        rate *= 1.0 - float(group["dampening"])
    return stability_limit(rate, momentum, bool(group["nesterov"]))


def _decay_of(optimizer: Any, group: Mapping[str, Any] | None) -> float:
    """The decay that is added to the gradient; that of AdamW is not."""
    is_decoupled = isinstance(optimizer, torch.optim.AdamW)
    if group is None or is_decoupled or group.get("decoupled_weight_decay", False):
        return 0.0
    return float(group["weight_decay"])


def _root(
    optimizer: Any, parameter: nn.Parameter, group: Mapping[str, Any] | None, largest: float, is_adam: bool
) -> Tensor | float:
    """One parameter's part of D: P^-1/2 with its share of the largest rate; 0 where the optimizer does not move it."""
    if group is None:
        return 0.0
    share = float(group["lr"]) / largest
    if not is_adam:
        return sqrt(share)
    state = optimizer.state.get(parameter, {})
    if "exp_avg_sq" not in state:
        return 0.0
    beta1, beta2 = (float(beta) for beta in group["betas"])
    steps = float(state["step"])
    mean_square = state.get("max_exp_avg_sq", state["exp_avg_sq"]).detach().double()
    root_mean_square = (mean_square / (1.0 - beta2**steps)).sqrt()
    root: Tensor = ((1.0 - beta1**steps) * (root_mean_square + float(group["eps"]))).rsqrt()
    return root * sqrt(share)


def _without_gradient(optimizer: Any, named: Mapping[str, nn.Parameter]) -> tuple[str, ...]:
    """The parameters whose root mean square gradient is nowhere more than rounding of the largest of all."""
    peaks: dict[str, float] = {}
    for name, p in named.items():
        mean_square = optimizer.state.get(p, {}).get("exp_avg_sq")
        if mean_square is not None and mean_square.numel():
            peaks[name] = float(mean_square.max()) ** 0.5
    largest = max(peaks.values(), default=0.0)
    return tuple(
        name for name, peak in peaks.items() if peak <= ROUNDING * torch.finfo(named[name].dtype).eps * largest
    )


def _joined(named: Mapping[str, nn.Parameter], parts: list[Any]) -> Tensor | float:
    """One number where all parts are the same number, else a vector (n,) of them."""
    if all(isinstance(part, float) and part == parts[0] for part in parts):
        return float(parts[0])
    return torch.cat(list(_vectors(named, parts)))


def _as_vector(named: Mapping[str, nn.Parameter], value: Tensor | float) -> Tensor:
    """A number for all parameters as a vector (n,)."""
    if isinstance(value, Tensor):
        return value
    return torch.cat(list(_vectors(named, [value] * len(named))))


def _vectors(named: Mapping[str, nn.Parameter], parts: list[Any]) -> Iterator[Tensor]:
    for p, part in zip(named.values(), parts, strict=True):
        if isinstance(part, Tensor):
            yield part.reshape(-1)
        else:
            yield torch.full((p.numel(),), part, dtype=torch.float64, device=p.device)
