"""What a model's own loading rules make of a checkpoint: renamed, split or converted tensors, and versions of modules.

Modules may change what they are given: by hooks (`register_load_state_dict_pre_hook`, as the weight norm of PyTorch has
for its old names) or by a `_load_from_state_dict` of their own, which may look at the version that a state dict has of
each module. What they make of a file is found on a copy of the model without storage, so that the model itself stays
as it is where the file does not fit. Price: one copy of the file's tensors, for models with such rules only.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
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


def converted(model: nn.Module, state: OrderedDict[str, Any], strict: bool) -> dict[str, Tensor] | None:
    """The tensors that the model would hold by its own names; None where it cannot load them.

    strict  whether all that the model has must be there, and nothing else
    """
    found = _loaded(model, state, strict)
    return None if found is None else found[0]


def converted_in_part(
    model: nn.Module, state: OrderedDict[str, Any]
) -> tuple[dict[str, Tensor], tuple[str, ...]] | None:
    """The same where the model lacks some of the names, and these; None where anything of the model is missing."""
    found = _loaded(model, state, False)
    keys: Any = None if found is None else found[1]
    if found is None or not hasattr(keys, "missing_keys") or keys.missing_keys:
        return None
    return found[0], tuple(keys.unexpected_keys)


def _loaded(model: nn.Module, state: OrderedDict[str, Any], strict: bool) -> tuple[dict[str, Tensor], Any] | None:
    """What a copy of the model without storage holds once it has loaded a state, and what loading returned."""
    own = [*model.parameters(), *model.buffers()]
    try:
        bare = copy.deepcopy(model, {id(t): _without_storage(t) for t in own})
        keys = bare.load_state_dict(state, strict=strict, assign=True)
        loaded = bare.state_dict()
    except Exception:  # rules are the user's code, and may raise any
        return None
    return {name: t.detach() for name, t in loaded.items() if isinstance(t, Tensor) and not t.is_meta}, keys


def _without_storage(tensor: Tensor) -> Tensor:
    bare = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(bare, requires_grad=tensor.requires_grad)
    return bare
