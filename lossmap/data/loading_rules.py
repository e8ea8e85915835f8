"""What a model's own loading rules make of a checkpoint: renamed, split or converted tensors, and versions of modules.

Modules may change what they are given: by hooks (`register_load_state_dict_pre_hook`, as the weight norm of PyTorch has
for its old names) or by a `_load_from_state_dict` of their own, which may look at the version that a state dict has of
each module. What they make of a file is found on a copy of the model without storage, so that the model itself stays
as it is where the file does not fit. Price: one copy of the file's tensors, for models with such rules only.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

EXTRA_STATE = "_extra_state"  # the last part of the name under which a module keeps what is no tensor


def has_rules(model: nn.Module) -> bool:
    """Whether loading may be more than copying tensors by name; PyTorch's own modules only count with hooks."""
    return any(_has_rules(module) for module in model.modules())


def _has_rules(module: nn.Module) -> bool:
    if module._load_state_dict_pre_hooks:
        return True
    for method in ("_load_from_state_dict", "load_state_dict"):
        own = next(kind for kind in type(module).__mro__ if method in vars(kind))
        if own.__module__.partition(".")[0] != "torch":
            return True
    return False


def state_to_load(tensors: Mapping[str, Any], versions: Mapping[str, Any] | None = None) -> OrderedDict[str, Any]:
    """A state dict with tensors that rules may write into, and what it says of each module, such as its version."""
    state = OrderedDict((name, t.clone() if isinstance(t, Tensor) else t) for name, t in tensors.items())
    if versions:
        state._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    return state


@dataclass(frozen=True)
class Loaded:
    """What a model holds once it has loaded a state.

    tensors     by its own names
    missing     its names of which nothing was loaded, but for counts of batches
    unexpected  names of the state that it has no use for; None where its own `load_state_dict` does not say
    """

    tensors: dict[str, Tensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...] | None


def loaded_by(model: nn.Module, state: OrderedDict[str, Any], strict: bool) -> Loaded | None:
    """What the model would hold by its own rules; None where it cannot load the state.

    strict  whether all that the model has must be there, and nothing else
    """
    own = [*model.parameters(), *model.buffers()]
    try:
        bare = copy.deepcopy(model, {id(t): _without_storage(t) for t in own})
        with _assigning():
            keys: Any = load(bare, state, strict)
        after = {name: t for name, t in bare.state_dict().items() if isinstance(t, Tensor)}
    except Exception:  # rules are the user's code, and may raise any
        return None
    left = [name for name, t in after.items() if t.is_meta]  # also what a `load_state_dict` of its own has left out
    missing = tuple(name for name in dict.fromkeys([*getattr(keys, "missing_keys", ()), *left]) if not _is_count(name))
    if strict and missing:
        return None
    unexpected = getattr(keys, "unexpected_keys", None)
    tensors = {name: t.detach() for name, t in after.items() if not t.is_meta}
    return Loaded(tensors, missing, None if unexpected is None else tuple(unexpected))


def load(model: nn.Module, state: Mapping[str, Any], strict: bool) -> Any:
    """Calls the model's `load_state_dict`, which may be its own, and take less than PyTorch's."""
    known = inspect.signature(model.load_state_dict).parameters
    takes_strict = "strict" in known or any(p.kind == p.VAR_KEYWORD for p in known.values())
    return model.load_state_dict(state, strict=strict) if takes_strict else model.load_state_dict(state)


@contextmanager
def _assigning() -> Iterator[None]:
    """Inside, PyTorch's own `load_state_dict` puts tensors in place of the model's, which may have no storage."""
    before = nn.Module.load_state_dict

    def assigning(module: nn.Module, state: Mapping[str, Any], strict: bool = True, assign: bool = True) -> Any:
        return before(module, state, strict, True)

    nn.Module.load_state_dict = assigning  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.load_state_dict = before  # type: ignore[method-assign]


def _is_count(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _without_storage(tensor: Tensor) -> Tensor:
    bare = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(bare, requires_grad=False)  # in whose place whole numbers can be put, and then be named
    return bare
