"""GPUs of every kind that PyTorch computes on: CUDA's (and ROCm's, which it calls `cuda`), Intel's and Apple's.

PyTorch has a module for each kind, named as its devices are: `torch.cuda`, `torch.xpu`, `torch.mps`. What they offer
differs; what the package asks of them it asks here. Importing this loads no PyTorch, and no question starts a GPU.

Source: the documentation of these modules.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

KINDS = ("cuda", "xpu", "mps")
AUTOMATIC = ("cuda", "xpu")  # that `--device auto` takes where they are, in this order
NAMES = {"mps": "Apple GPU"}  # of devices that do not say theirs


def module_of(kind: str) -> Any:
    """PyTorch's module of a kind of device; None for the CPU, and for a kind that nothing is known of."""
    if kind not in KINDS:
        return None
    import torch

    return getattr(torch, kind, None)


def count(kind: str) -> int:
    """How many devices of a kind this process sees."""
    module = module_of(kind)
    return 0 if module is None else int(module.device_count())


def automatic_kind() -> str | None:
    """The kind of GPU that `--device auto` takes; None where there is none."""
    return next((kind for kind in AUTOMATIC if count(kind)), None)


def started() -> list[Any]:
    """The modules of the kinds that this process uses; () without PyTorch."""
    torch = sys.modules.get("torch")
    modules = [getattr(torch, kind, None) for kind in KINDS]
    return [module for module in modules if module is not None and _is_started(module)]


def _is_started(module: Any) -> bool:
    if hasattr(module, "is_initialized"):
        return bool(module.is_initialized())
    return bool(module.device_count() and module.current_allocated_memory())  # MPS does not say


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given; on the CPU all is done."""
    module = module_of(device.type)
    if module is None:
        return
    if device.type == "mps":  # of which there is one
        module.synchronize()
    else:
        module.synchronize(device)


def name_of(device: torch.device) -> str:
    """What a device is called: a GPU by its model, all else by its kind."""
    module = module_of(device.type)
    if module is None:
        return device.type
    if not hasattr(module, "get_device_name"):
        return NAMES.get(device.type, device.type)
    return str(module.get_device_name(device))


def release_cache() -> None:
    """Give back what the allocators of GPUs hold of freed tensors; without a GPU nothing happens."""
    for module in started():
        module.empty_cache()


def peak_bytes(device: torch.device) -> int | None:
    """The most bytes that tensors of this process have taken on a GPU, as far as it says; None for the CPU."""
    module = module_of(device.type)
    if module is None:
        return None
    if hasattr(module, "max_memory_allocated"):
        return int(module.max_memory_allocated(device))
    return int(module.driver_allocated_memory())  # Apple's: what is taken now


def free_bytes(device: torch.device) -> int | None:
    """The bytes that are free on a GPU; None for the CPU. Apple's share the memory of the host, which may have less."""
    module = module_of(device.type)
    if module is None:
        return None
    if hasattr(module, "mem_get_info"):
        return int(module.mem_get_info(device)[0])
    if hasattr(module, "recommended_max_memory"):
        return max(0, int(module.recommended_max_memory()) - int(module.driver_allocated_memory()))
    total = int(module.get_device_properties(device).total_memory)
    return max(0, total - int(module.memory_reserved(device)))


def random_states() -> list[tuple[Any, list[torch.Tensor]]]:
    """The states of the generators of all GPUs that this process uses, with the modules that they belong to."""
    return [
        (module, module.get_rng_state_all() if hasattr(module, "get_rng_state_all") else [module.get_rng_state()])
        for module in started()
    ]


def set_random_states(states: list[tuple[Any, list[torch.Tensor]]]) -> None:
    """Put the generators of GPUs into these states."""
    for module, each in states:
        if hasattr(module, "set_rng_state_all"):
            module.set_rng_state_all(each)
        else:
            module.set_rng_state(each[0])


def random_state_of(device: torch.device) -> torch.Tensor | None:
    """The state of the generator of one GPU; None for the CPU."""
    module = module_of(device.type)
    if module is None:
        return None
    state: torch.Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return state


def set_random_state_of(device: torch.device, state: torch.Tensor) -> None:
    """Put the generator of one GPU into a state that was read there."""
    module = module_of(device.type)
    if device.type == "mps":
        module.set_rng_state(state)
    else:
        module.set_rng_state(state, device)


def seed(number: int) -> None:
    """Seed the generators of all GPUs that this process sees, or will when it begins to use them."""
    for kind in KINDS:
        if not count(kind):
            continue
        module = module_of(kind)
        if hasattr(module, "manual_seed_all"):
            module.manual_seed_all(number)
        elif _is_started(module):
            module.manual_seed(number)


__all__ = [
    "AUTOMATIC",
    "KINDS",
    "automatic_kind",
    "count",
    "free_bytes",
    "module_of",
    "name_of",
    "peak_bytes",
    "random_state_of",
    "random_states",
    "release_cache",
    "seed",
    "set_random_state_of",
    "set_random_states",
    "started",
    "synchronize",
]
