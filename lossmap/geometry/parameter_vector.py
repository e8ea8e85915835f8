"""Flat vectors over named tensors: theta and its like, (n,), and which parameters they are made of."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lossmap.geometry.unregistered import explained, quantized, unregistered

logger = logging.getLogger("lossmap")

Named = Mapping[str, Tensor]
GROUPS = ("weights", "all", "trainable")  # of parameters, by name; any other word is a regular expression
MAX_SHOWN = 8  # names in a message


@dataclass(frozen=True)
class Layout:
    """Which tensors a flat vector is made of: names and shapes, in the order of the state dict."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, named: Named) -> Layout:
        """The layout of these tensors, in their order."""
        return cls(tuple(named), tuple(tuple(t.shape) for t in named.values()))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each tensor."""
        return tuple(prod(s) for s in self.shapes)

    @property
    def size(self) -> int:
        """The entries n of a flat vector."""
        return sum(self.sizes)

    def flatten(self, named: Named) -> Tensor:
        """Named tensors -> (n,). Raises KeyError for a name that is missing."""
        return torch.cat([named[name].reshape(-1) for name in self.names])

    def split(self, v: Tensor) -> list[Tensor]:
        """(n,) -> the tensors in order, views of v. Raises ValueError for another length."""
        if v.shape != (self.size,):
            raise ValueError(f"the vector has shape {tuple(v.shape)}; this layout takes ({self.size},)")
        return [part.view(s) for part, s in zip(torch.split(v, list(self.sizes)), self.shapes, strict=True)]

    def unflatten(self, v: Tensor) -> dict[str, Tensor]:
        """(n,) -> named tensors, views of v."""
        return dict(zip(self.names, self.split(v), strict=True))


def movable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The floating-point and complex parameters by name, in order; whole numbers and truth values stand still.

    Raises ValueError for a lazy module that has not met its first input, and so has no parameters yet; and for two
    parameters, or entries of one, in one memory, of which PyTorch's derivatives know nothing.
    """
    named = dict(model.named_parameters())
    for name, p in named.items():
        if is_lazy(p):
            raise ValueError(f"the parameter {name!r} has no shape yet; run the model once on an input (lazy modules)")
    _refuse_shared_memory(named)
    return {name: p for name, p in named.items() if p.is_floating_point() or p.is_complex()}


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's state dict; modules may keep other things there (`get_extra_state`)."""
    return {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}


def _refuse_shared_memory(named: Named) -> None:
    """Raises ValueError for parameters that overlap: they move together in training, and one by one in a survey."""
    by_storage: dict[int, list[tuple[int, int, str]]] = {}
    for name, p in named.items():
        plain = type(p) is nn.Parameter and p.layout == torch.strided and p.device.type != "meta"
        if not (plain and p.numel()):
            continue
        span = _span(p)
        if span < p.numel():
            raise ValueError(
                f"entries of the parameter {name!r} lie in one memory, as after `a.expand(...)`, and move together: "
                "clone it, or take the smaller tensor for the parameter and expand it in the forward pass"
            )
        storage, begin, end = memory_of(p)
        by_storage.setdefault(storage, []).append((begin, end, name))
    for places in by_storage.values():
        still: list[tuple[int, str]] = []  # those that reach as far as the present one
        for begin, end, second in sorted(places):
            still = [(other, first) for other, first in still if begin < other]
            for _, first in still:
                if _overlap(named[first], named[second]):
                    raise ValueError(
                        f"the parameters {first!r} and {second!r} lie in one memory, as after `a.data = b.data`, and "
                        "are two to PyTorch: tie them (module_a.weight = module_b.weight), or clone one"
                    )
            still.append((end, second))


def memory_of(t: Tensor) -> tuple[int, int, int]:
    """(the identity of a strided tensor's storage, the bytes there from its first entry to the one behind its last)."""
    begin, unit = int(t.storage_offset()), t.element_size()
    return t.untyped_storage()._cdata, begin * unit, (begin + _span(t)) * unit


def _span(p: Tensor) -> int:
    """The entries of memory from the first of a tensor to its last."""
    return 1 + sum((count - 1) * step for count, step in zip(p.shape, p.stride(), strict=True))


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors whose ranges in a storage overlap have an entry in common; columns side by side have none."""
    if a.element_size() != b.element_size() or (_span(a) == a.numel() and _span(b) == b.numel()):
        return True
    return bool(torch.isin(_positions(a), _positions(b)).any())


def _positions(p: Tensor) -> Tensor:
    """Where the entries of a tensor stand in its storage, (p.numel(),)."""
    places = torch.full((), int(p.storage_offset()))
    for count, step in zip(p.shape, p.stride(), strict=True):
        places = places[..., None] + torch.arange(count) * step
    return places.reshape(-1)


def refuse_complex(named: Named) -> None:
    """Raises ValueError, with its name, for a complex tensor."""
    for name, t in named.items():
        if t.is_complex():
            raise ValueError(
                f"the parameter {name!r} is complex ({str(t.dtype).removeprefix('torch.')}); planes and derivatives are"
                " taken by real parameters: keep torch.view_as_real(weight) as the parameter, and view_as_complex "
                "of it in the forward pass"
            )


def selected(model: nn.Module, which: str = "weights") -> dict[str, nn.Parameter]:
    """The model's parameters to differentiate by, in order.

    which  `weights`: those of dimension > 1, as in the paper; `all`; `trainable`: those that require a gradient; or a
           regular expression that is searched in the names. A name of a module selects all below it: `layer1` or `fc`.

    Raises ValueError where nothing matches, with the nearest names.
    """
    named = movable_parameters(model)
    if which == "all":
        parameters = named
    elif which == "trainable":
        parameters = {k: p for k, p in named.items() if p.requires_grad}
        if named and not parameters:
            raise ValueError("parameters 'trainable': all parameters of the model are frozen (requires_grad is False)")
    elif which == "weights":
        parameters = {k: p for k, p in named.items() if p.dim() > 1}
    else:
        try:
            pattern = re.compile(which)
        except re.error as error:
            raise ValueError(f"{which!r} is not a regular expression: {error}") from None
        parameters = {k: p for k, p in named.items() if pattern.search(k) or _other_name(model, k, p, pattern)}
    if not parameters:
        names = list(named)[:MAX_SHOWN]
        if len(named) > MAX_SHOWN:
            names.append("...")
        lost = unregistered(model)
        reason = explained(lost) if lost else quantized(model)
        reason = f"; {reason}" if reason else ""
        raise ValueError(f"no parameter matches {which!r}; the model has {', '.join(names) or 'none'}{reason}")
    refuse_complex(parameters)
    return parameters


def _tied_names(model: nn.Module, which: str) -> dict[str, str]:
    """Other names, by which tied parameters are selected: name -> that name."""
    if which in GROUPS:
        return {}
    pattern = re.compile(which)
    chosen = {k: p for k, p in selected(model, which).items() if not pattern.search(k)}
    return {k: str(_other_name(model, k, p, pattern)) for k, p in chosen.items()}


def _other_name(model: nn.Module, name: str, parameter: nn.Parameter, pattern: re.Pattern[str]) -> str | None:
    """Another name of a tied parameter that matches; none of an expression for all but some names, as `^(?!head)`."""
    if pattern.search(""):
        return None
    names = (k for k, p in model.named_parameters(remove_duplicate=False) if p is parameter and k != name)
    return next(filter(pattern.search, names), None)


def _matched_outside(model: nn.Module, which: str) -> list[str]:
    """The parameters that a name of a parameter or module selects, as a regular expression, beside those within it."""
    names = [name for name, _ in model.named_parameters()]
    if which in GROUPS or not any(name == which or name.startswith(f"{which}.") for name in names):
        return []
    return [k for k in selected(model, which) if k != which and not k.startswith(f"{which}.")]


def frozen_entries(model: nn.Module, which: str) -> int:
    """Entries of the parameters that are left out because they require no gradient: with `trainable` alone."""
    if which != "trainable":
        return 0
    return sum(p.numel() for p in movable_parameters(model).values() if not p.requires_grad)


def frozen_among(model: nn.Module, which: str) -> dict[str, nn.Parameter]:
    """The selected parameters that are frozen; none of a model for evaluation alone, where no parameter is trained."""
    if not any(p.requires_grad for p in model.parameters()):
        return {}
    return {name: p for name, p in selected(model, which).items() if not p.requires_grad}


def warn_of_frozen(model: nn.Module, which: str, what: str) -> None:
    """Log one sentence where some of the selected parameters are frozen, but not all of the model's are.

    Another one says where a name selects more than what bears it: `layer1` matches in `layer10.weight`, too; and
    which parameters are tied to those of another name that it matches.

    what  of those parameters is done: `are counted in the Hessian`
    """
    others = _matched_outside(model, which)
    if others:
        logger.warning(
            "tensors outside of %s match it, too, and %s: %s%s; '^%s' selects that name alone", which, what,
            ", ".join(others[:MAX_SHOWN]), ", ..." if len(others) > MAX_SHOWN else "",
            re.escape(which) + (r"\." if which not in dict(model.named_parameters()) else "$"),
        )  # fmt: skip
    for name, other in _tied_names(model, which).items():
        logger.warning("%s is tied to %s, which %s matches: they are one parameter, and %s", other, name, which, what)
    frozen = sum(p.numel() for p in frozen_among(model, which).values())
    if frozen:
        logger.warning(
            "%s of the %s parameters that %s are frozen (requires_grad is False); with parameters `trainable` they are "
            "left out", f"{frozen:,}", f"{sum(p.numel() for p in selected(model, which).values()):,}", what,
        )  # fmt: skip
