"""What an optimizer's next step makes of the Hessian: the matrix whose largest eigenvalue decides on its stability.

    M = D (H + W) D,    D = P^-1/2 (largest rate = 1),  W = the weight decay that is added to the gradient

    SGD    P = 1; threshold 2 (1 + mu) / rate, Nesterov's less (`diagnostics.stability`)
    RMSprop  P = sqrt(v) + eps, of the centred v where it is centred; threshold 2 (1 + mu) / rate
    Adam   P = (1 - beta1^t) (sqrt(v / (1 - beta2^t)) + eps), v the mean square of the gradient after t steps;
           threshold (2 + 2 beta1) / ((1 - beta1) rate)

Full-batch steps are stable along a direction while the eigenvalue of M is below the threshold. Groups of parameters
with rates of their own are part of P: sqrt(rate / largest rate) stands in D. The decoupled decay w of AdamW, which is
no part of the gradient, shrinks theta by 1 - rate w, and lowers the threshold by the factor 1 - rate w / 2 (of groups
that differ in it that of the largest, which is on the safe side). A parameter that the optimizer does not move has
D = 0, and so has one whose gradients were never more than rounding: a bias in front of batch norm, whose P would be
eps, has curvature in evaluation mode only. Trained in bfloat16 its gradients were rounding of that precision: those of
up to 16 batches in training mode, in float64 where the model bears it, tell it from a parameter whose are small. An
entry whose gradients were all 0, such as the row of a token that did not occur or that pads, was not moved either: its
P would be eps, until a gradient comes. Adam's P is that of the last step taken. Source: Cohen et al. (2022),
arXiv:2207.14484.

Symbols: n the parameters that the Hessian is of. Price: two vectors (n,) for Adam.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf, nan, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.data.batches import FixedBatches, map_tensors
from lossmap.data.borrow import copy_of, temporary_parameters
from lossmap.data.preconditioner import Preconditioner
from lossmap.data.problem import Problem
from lossmap.device_errors import raise_if_of_device
from lossmap.diagnostics.parameter_groups import parameters_of_groups
from lossmap.diagnostics.stability import adam_stability_limit, stability_limit
from lossmap.geometry.parameter_vector import selected
from lossmap.seeding import same_random_state
from lossmap.sums import float64_device, for_float64, in_float64

RATE_IS_0 = "the learning rate is 0"  # as at both ends of many schedules: no step diverges
ROUNDING = 16.0  # roundings of the largest gradient, up to which a parameter has none
SHARE_IN_FLOAT64 = 1e-10  # of the largest gradient, up to which one in float64 is rounding
MAX_WIDENED = 1 << 24  # parameters of a model that is copied in float64
MAX_BATCHES, LEAST_BATCH = 16, 32  # over which gradients are looked at; samples of one where the problem's have one
COARSE = 2.0**-8  # unit roundoff of bfloat16, in which autocast may have computed the gradients of float32 parameters
ADAM = (torch.optim.Adam, torch.optim.AdamW)
RMSPROP = torch.optim.RMSprop
ADAPTIVE = (*ADAM, RMSPROP)
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg")  # entries of a state, of the parameter's shape
WRAPPERS = ("module.", "_orig_mod.")
TRAINERS = {"accelerate", "lightning", "lightning_fabric", "pytorch_lightning"}  # whose optimizers step as those inside


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
    """The optimizer of PyTorch inside the wrappers of Accelerate and Lightning, which keep it as `optimizer`.

    Others that do, such as Lookahead, take steps of their own.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        packages = {kind.__module__.partition(".")[0] for kind in type(optimizer).__mro__}
        if not packages & TRAINERS:
            break
        optimizer = inner
    return optimizer


def step_rule(
    optimizer: Any, named: Mapping[str, nn.Parameter], at_start: bool = False, problem: Problem | None = None
) -> StepRule:
    """The rule of the optimizer's next step, from its groups and its state; with a reason where it is not known.

    named     the parameters that the Hessian is of, by name, in order
    at_start  with the learning rates that a schedule began with, in place of those of the next step
    problem   of these parameters, whose gradients tell rounding from what is small; None: none do
    """
    optimizer = unwrapped(optimizer)
    name = type(optimizer).__name__
    is_adam = type(optimizer) in ADAM
    is_adaptive = type(optimizer) in ADAPTIVE
    if not is_adaptive and type(optimizer) is not torch.optim.SGD:
        reason = f"no stability threshold is known for {name}; SGD, Adam, AdamW and RMSprop have one"
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
    rate = max(_rate_of(group, at_start) for group in groups)
    if rate <= 0.0:
        return StepRule(inf, name=name, reason=RATE_IS_0)
    decay = _joined(named, [_decay_of(optimizer, group) for group in moving])
    absent = _without_gradient(optimizer, named, problem) if is_adaptive else ()
    roots = [
        0.0 if key in absent or group is None else _root(optimizer, p, group, _rate_of(group, at_start) / rate)
        for (key, p), group in zip(named.items(), moving, strict=True)
    ]
    scale: Tensor | float | None = _joined(named, roots)
    if isinstance(scale, float):
        scale = None if scale == 1.0 else _as_vector(named, scale)
    shrinking = max(_rate_of(group, at_start) * _decoupled_decay_of(optimizer, group) for group in groups)
    threshold = _threshold(groups[0], rate, is_adam) * (1.0 - 0.5 * shrinking)
    return StepRule(threshold, scale, decay, name, "", absent)


def rule_of_reading(optimizer: Any, named: Mapping[str, nn.Parameter], problem: Problem | None = None) -> StepRule:
    """The rule of the next step; where the learning rate is 0, which every eigenvalue is stable at, with its M.

    That is known where the groups' shares of the rate are.
    """
    rule = step_rule(optimizer, named, problem=problem)
    if rule.reason != RATE_IS_0 or not _starts_are_known(unwrapped(optimizer).param_groups):
        return rule
    at_start = step_rule(optimizer, named, at_start=True, problem=problem)
    return rule if at_start.reason else replace(at_start, threshold=inf)


def _momentum_of(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """What must be the same in all groups for one threshold."""
    if "betas" in group:
        return (float(group["betas"][0]),)
    return (group["momentum"], group.get("dampening", 0.0), group.get("nesterov", False))


def _threshold(group: Mapping[str, Any], rate: float, is_adam: bool) -> float:
    """The threshold of the largest rate, with this group's momentum."""
    if is_adam:
        return adam_stability_limit(rate, float(group["betas"][0]))
    momentum = float(group["momentum"])
    if momentum:  # without momentum torch does not dampen
        rate *= 1.0 - float(group.get("dampening", 0.0))
    return stability_limit(rate, momentum, bool(group.get("nesterov", False)))


def _decay_of(optimizer: Any, group: Mapping[str, Any] | None) -> float:
    """The decay that is added to the gradient; that of AdamW is not."""
    if group is None or _is_decoupled(optimizer, group):
        return 0.0
    return float(group["weight_decay"])


def _decoupled_decay_of(optimizer: Any, group: Mapping[str, Any]) -> float:
    """The decay by which a step shrinks the parameters themselves."""
    return float(group["weight_decay"]) if _is_decoupled(optimizer, group) else 0.0


def _is_decoupled(optimizer: Any, group: Mapping[str, Any]) -> bool:
    return isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay", False))


def _rate_of(group: Mapping[str, Any], at_start: bool) -> float:
    """The learning rate of a group; at the start of a schedule that which it keeps of it, and without one 1."""
    return float(group.get("initial_lr", 1.0) if at_start else group["lr"])


def _root(optimizer: Any, parameter: nn.Parameter, group: Mapping[str, Any], share: float) -> Tensor | float:
    """One parameter's part of D: P^-1/2 with its share of the largest rate; 0 where the optimizer does not move it."""
    if type(optimizer) not in ADAPTIVE:
        return sqrt(share)
    state = optimizer.state.get(parameter, {})
    if "square_avg" in state:
        mean_square = in_float64(state["square_avg"].detach())
        if group["centered"]:
            mean_square = (mean_square - in_float64(state["grad_avg"].detach()).square()).clamp(min=0.0)
        scale: Tensor = (mean_square.sqrt() + float(group["eps"])).rsqrt()
        return _where_moved(scale * sqrt(share), state["square_avg"])
    steps = float(state.get("step", 0.0))
    if "exp_avg_sq" not in state or steps <= 0.0:
        return 0.0
    beta1, beta2 = (float(beta) for beta in group["betas"])
    mean_square = in_float64(state.get("max_exp_avg_sq", state["exp_avg_sq"]).detach())
    root_mean_square = (mean_square / (1.0 - beta2**steps)).sqrt()
    root: Tensor = ((1.0 - beta1**steps) * (root_mean_square + float(group["eps"]))).rsqrt()
    # squares of small gradients in float16 are 0, but not the gradients
    return _where_moved(root * sqrt(share), mean_square + in_float64(state["exp_avg"].detach()).abs())


def _where_moved(root: Tensor, gradients: Tensor) -> Tensor:
    """The part of D, 0 where no gradient ever came."""
    return torch.where(gradients == 0.0, 0.0, root)


def _without_gradient(
    optimizer: Any, named: Mapping[str, nn.Parameter], problem: Problem | None = None
) -> tuple[str, ...]:
    """The parameters whose root mean square gradient is nowhere more than rounding of the largest of all.

    Up to the rounding of bfloat16, of which the precision of the parameters does not tell, a gradient decides.
    """
    peaks: dict[str, float] = {}
    for name, p in named.items():
        state = optimizer.state.get(p, {})
        mean_square = state.get("exp_avg_sq", state.get("square_avg"))
        if mean_square is not None and mean_square.numel():
            peaks[name] = float(mean_square.max()) ** 0.5
    largest = max(peaks.values(), default=0.0)
    tiny = {n for n, peak in peaks.items() if peak <= ROUNDING * torch.finfo(torch.float32).eps * largest}
    coarse = {n: max(COARSE, ROUNDING * torch.finfo(p.dtype).eps) for n, p in named.items()}
    small = {n for n, peak in peaks.items() if n not in tiny and peak <= coarse[n] * largest}
    if problem is None:
        return tuple(n for n in peaks if n in tiny)
    if small:
        tiny |= _only_rounding(problem, small)
    return tuple(n for n in peaks if n in tiny)


def _only_rounding(problem: Problem, names: Collection[str]) -> set[str]:
    """Which of these parameters have gradients in training mode that are rounding of the largest of all.

    By a copy of the model, in float64 where it bears that, over some batches at least; none where that cannot be told.
    A gradient of exactly 0 tells nothing: no sample of these may have come by.
    """
    size = sum(p.numel() for p in problem.model.parameters())
    for dtype in (torch.float64, None) if size <= MAX_WIDENED else (None,):
        share = SHARE_IN_FLOAT64 if dtype is torch.float64 else ROUNDING * torch.finfo(torch.float32).eps
        try:
            # around the copy, so that what the loss keeps for itself is put back
            with temporary_parameters(problem.model, {}), torch.enable_grad(), same_random_state():
                peaks = _peaks_in_training(problem, copy_of(problem.model, dtype), names, dtype, share)
        except Exception as error:  # somebody's own forward may raise anything
            raise_if_of_device(error)
            continue
        return {n for n in names if 0.0 < peaks[n] <= share * max(peaks.values())}
    return set()


def _peaks_in_training(
    problem: Problem, twin: nn.Module, names: Collection[str], dtype: torch.dtype | None, share: float
) -> dict[str, float]:
    """The largest entry of each parameter's gradients over some batches, by this model in training mode.

    Until those of `names` are all far above this share of the largest.
    """
    twin.train()
    own = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    data, peaks = problem.data, dict.fromkeys([*own, *names], 0.0)
    if data.batch_size == 1 and not isinstance(data, FixedBatches):
        data = data.rebatched(min(data.samples, LEAST_BATCH))  # batch norm refuses one sample
    for batch in islice(data, MAX_BATCHES):
        wide = batch if dtype is None else map_tensors(for_float64, batch)
        value = replace(problem, model=twin).total(wide)
        for name, g in zip(own, torch.autograd.grad(value, list(own.values()), allow_unused=True), strict=True):
            if g is not None and g.numel():
                peaks[name] = max(peaks[name], float(g.abs().max()))
        if all(peaks[name] > 100 * share * max(peaks.values()) for name in names):
            break
    return peaks


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
            yield torch.full((p.numel(),), part, dtype=torch.float64, device=float64_device(p.device))


def preconditioner_of(
    optimizer: Any, named: Mapping[str, nn.Parameter], problem: Problem | None = None
) -> Preconditioner:
    """P of an optimizer after its last step, over these parameters. Raises ValueError where it has none."""
    optimizer = unwrapped(optimizer)
    if type(optimizer) not in ADAPTIVE:
        raise ValueError(
            f"{type(optimizer).__name__} has no preconditioner; Adam, AdamW and RMSprop have one (of plain gradient "
            "descent the matrix is the Hessian)"
        )
    rule = step_rule(optimizer, named, problem=problem)
    if rule.reason == RATE_IS_0 and _starts_are_known(optimizer.param_groups):  # at the end of a schedule
        rule = replace(step_rule(optimizer, named, at_start=True, problem=problem), threshold=nan)
    if rule.reason or rule.scale is None or not bool((rule.scale > 0).any()):
        raise ValueError(f"the optimizer has no preconditioner: {rule.reason or 'it has taken no step'}")
    sizes = [p.numel() for p in named.values()]
    decays = torch.split(_as_vector(named, rule.decay), sizes)
    roots = torch.split(rule.scale, sizes)
    for name, root in zip(named, roots, strict=True):
        if not bool(torch.isfinite(root).all()):
            raise ValueError(f"P of {name} has entries of 0, of which there is no inverse: its eps is 0")
    return Preconditioner(
        {name: root.reshape(p.shape) for (name, p), root in zip(named.items(), roots, strict=True)},
        {name: decay.reshape(p.shape) for (name, p), decay in zip(named.items(), decays, strict=True)},
        rule.threshold,
        rule.name,
        tuple(name for name, root in zip(named, roots, strict=True) if root.numel() and not bool(root.any())),
    )


def _starts_are_known(groups: Any) -> bool:
    """Whether the shares of the groups' learning rates are known where all are 0 by now."""
    return len(groups) == 1 or all("initial_lr" in group for group in groups)


def optimizer_of_state(state: Mapping[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer of the model's parameters with this state dict, whose kind is told by its settings.

    Raises ValueError where the kind is not known, or which parameter is which.
    """
    groups, values = state["param_groups"], state["state"]
    first = groups[0]
    if "alpha" in first and "centered" in first:
        kind: Any = RMSPROP
    elif "betas" in first and "amsgrad" in first:
        # files of PyTorch before 2.7 do not say: then it is taken for AdamW, whose decay is no part of the matrix
        decoupled = first.get("decoupled_weight_decay", True)
        kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    else:
        raise ValueError(
            f"the optimizer's state is none of Adam, AdamW or RMSprop; its settings are {', '.join(map(str, first))}"
        )
    places = [i for group in groups for i in group["params"]]
    parameters = _parameters_of(groups, places, values, model)
    _check_entries(dict(zip(places, parameters, strict=True)), values, model)
    optimizer: torch.optim.Optimizer = kind(parameters, lr=1.0)
    by_place = dict(zip(places, parameters, strict=True))
    own = [{**optimizer.defaults, **group, "params": [by_place[i] for i in group["params"]]} for group in groups]
    optimizer.param_groups = own
    for place, p in by_place.items():
        entries = values.get(place, {})
        optimizer.state[p] = {k: v.to(p.device) if isinstance(v, Tensor) else v for k, v in entries.items()}
    return optimizer


def scale_gradients(optimizer: torch.optim.Optimizer, factors: Mapping[nn.Parameter, float]) -> None:
    """Make an optimizer's state what it would be had the gradients of these parameters been larger by a factor."""
    powers = {"exp_avg": 1, "grad_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "square_avg": 2}
    for parameter, factor in factors.items():
        state = optimizer.state.get(parameter, {})
        for name, power in powers.items():
            if name in state:
                state[name] = state[name] * factor**power


def _unwrapped_name(name: str) -> str:
    """A parameter's name without what wrappers of the model (DDP, torch.compile) put before it."""
    for prefix in WRAPPERS * 2:
        name = name.removeprefix(prefix)
    return name


def _check_entries(parameters: Mapping[Any, nn.Parameter], values: Mapping[Any, Any], model: nn.Module) -> None:
    """Raises ValueError where the state of a parameter is not of its shape, or lacks what belongs to it."""
    names = {p: name for name, p in model.named_parameters()}
    for place, p in parameters.items():
        entries = values.get(place, {})
        for key in SQUARES:
            if key in entries and tuple(entries[key].shape) != tuple(p.shape):
                raise ValueError(
                    f"the optimizer's state of {names[p]} has shape {tuple(entries[key].shape)}, the parameter "
                    f"{tuple(p.shape)}: it is the state of another model, or in another order"
                )
            if key in entries and key != "grad_avg" and not bool((entries[key] >= 0).all()):
                raise ValueError(
                    f"the optimizer's state of {names[p]} is negative or not finite, which no step leaves behind"
                )
        if "exp_avg_sq" in entries and "step" not in entries:
            raise ValueError(f"the optimizer's state of {names[p]} does not say after how many steps it is (`step`)")


def _shape_of(entries: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of the parameter that these entries of a state are of; None where they do not tell."""
    return next((tuple(entries[key].shape) for key in SQUARES if key in entries), None)


def _parameters_of(groups: Any, places: list[Any], values: Mapping[Any, Any], model: nn.Module) -> list[nn.Parameter]:
    """The model's parameters in the order of an optimizer's. Raises ValueError where that order is not known."""
    named = dict(model.named_parameters())
    if all("param_names" in group for group in groups):
        names = [_unwrapped_name(name) for group in groups for name in group["param_names"]]
        if set(names) <= set(named) and len(set(names)) == len(names) == len(places):
            return [named[name] for name in names]
    if len(groups) > 1:
        shapes = [[_shape_of(values.get(place, {})) for place in group["params"]] for group in groups]
        return parameters_of_groups(groups, shapes, model)
    for candidates in (list(named.values()), [p for p in named.values() if p.requires_grad]):
        if len(candidates) == len(places) and all(
            tuple(value.shape) == tuple(p.shape)
            for place, p in zip(places, candidates, strict=True)
            for key, value in values.get(place, {}).items()
            if key in SQUARES
        ):
            return candidates
    raise ValueError(
        f"the optimizer's state is of {len(places)} parameters, in number or shape not those of the model, which has "
        f"{len(named)}"
    )


def with_preconditioner(problem: Problem, preconditioner: Any, parameters: str) -> Problem:
    """The problem with this preconditioner: an optimizer, a diagonal by name, or (n,) over the parameters.

    Raises ValueError for entries that do not fit.
    """
    if preconditioner is None:
        return problem
    named = dict(problem.model.named_parameters())
    if isinstance(preconditioner, Preconditioner):
        return replace(problem, preconditioner=preconditioner)
    if isinstance(unwrapped(preconditioner), torch.optim.Optimizer):
        return replace(problem, preconditioner=preconditioner_of(preconditioner, named, problem))
    shapes = {name: tuple(p.shape) for name, p in selected(problem.model, parameters).items()}
    return replace(problem, preconditioner=Preconditioner.of_diagonal(preconditioner, shapes))


def threshold_of(problem: Problem, matrix: str) -> float:
    """The eigenvalue of a preconditioned Hessian at which the optimizer's steps begin to diverge; NaN of others."""
    if matrix != "preconditioned" or problem.preconditioner is None:
        return nan
    return problem.preconditioner.threshold
