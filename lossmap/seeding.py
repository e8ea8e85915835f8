"""Random numbers from a generator made of what they are for: the same on every rank, device and machine.

A purpose is a sequence of names and numbers, such as ("direction", seed, axis, tensor name). It is hashed (SHA-256)
to the seed of a generator on the CPU, so that no number depends on what was drawn before it, or on who draws it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch

from lossmap import accelerators

P = ParamSpec("P")
T = TypeVar("T")
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
SEPARATOR = "\x1f"  # between the parts of a purpose; no name contains it


def generator(*purpose: str | int) -> torch.Generator:
    """A generator on the CPU, seeded by its purpose."""
    text = SEPARATOR.join(str(part) for part in purpose).encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1  # torch takes 63 bits
    return torch.Generator("cpu").manual_seed(seed)


def normal(n: int, *purpose: str | int) -> torch.Tensor:
    """(n,) standard normal numbers, float32 on the CPU, made from their purpose alone."""
    return torch.randn(n, generator=generator(*purpose), dtype=torch.float32)


def signs(n: int, *purpose: str | int) -> torch.Tensor:
    """(n,) numbers +1 or -1 with equal probability, float32 on the CPU, made from their purpose alone."""
    return torch.randint(0, 2, (n,), generator=generator(*purpose)).to(torch.float32).mul_(2).sub_(1)


@contextmanager
def preserved_random_state(devices: bool = True) -> Iterator[None]:
    """The global generators of torch (also on `devices`), NumPy and Python are afterwards as they were before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    on_devices = accelerators.random_states() if devices else []
    with torch.random.fork_rng(devices=()):
        try:
            yield
        finally:
            accelerators.set_random_states(on_devices)
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def leaves_own_generators(function: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """The function, after which the generators that its first argument holds, such as a loader, are as before.

    A loader shuffles by its own `generator=`, and a data set may augment by one: the training that reads it next would
    see its samples in another order.
    """

    @wraps(function)
    def called(data: Any, /, *args: P.args, **keywords: P.kwargs) -> T:
        states = [(each, state_of(each)) for each in _generators_in(data)]
        try:
            return function(data, *args, **keywords)
        finally:
            for each, state in states:
                set_state_of(each, state)

    return called


def _generators_in(data: Any, depth: int = 3) -> Iterator[Any]:
    """The generators among the attributes of a loader, its data set and its samplers."""
    held = data.__dict__ if type(data).__dictoffset__ else {}
    for name, value in held.items():
        if isinstance(value, GENERATORS):
            yield value
        elif depth and name in ("dataset", "sampler", "batch_sampler", "collate_fn"):
            yield from _generators_in(value, depth - 1)


def state_of(each: Any) -> Any:
    """What a generator of torch, NumPy or Python will draw next."""
    if isinstance(each, np.random.Generator):
        return each.bit_generator.state
    return each.getstate() if isinstance(each, random.Random) else each.get_state()


def shown_state_of(each: Any) -> int:
    """The same number for the same state of a generator."""
    state = state_of(each)
    return hash(state.numpy().tobytes() if isinstance(state, torch.Tensor) else repr(state))


def is_own_generator(each: Any) -> bool:
    """Whether it is one whose state can be set, and not one of those that all draw from."""
    if not isinstance(each, GENERATORS) or isinstance(each, random.SystemRandom):
        return False
    shared = (torch.default_generator, np.random.mtrand._rand, random._inst, *torch.cuda.default_generators)
    return not any(each is one for one in shared)


def set_state_of(each: Any, state: Any) -> None:
    """Let a generator draw what it would have drawn."""
    if isinstance(each, np.random.Generator):
        each.bit_generator.state = state
    elif isinstance(each, random.Random):
        each.setstate(state)
    else:
        each.set_state(state)


def random_states() -> tuple[Any, ...]:
    """What the global generators of torch (also on GPUs), NumPy and Python will draw next, to be compared."""
    states = [torch.get_rng_state()]
    for _, each in accelerators.random_states():
        states += each
    _, keys, *position = np.random.get_state(legacy=True)
    own = (keys.tobytes(), tuple(position))  # type: ignore[union-attr]
    return (*(state.numpy().tobytes() for state in states), own, random.getstate())


@contextmanager
def same_random_state(seed: int = 0, devices: bool = True) -> Iterator[None]:
    """Inside, the global generators of torch, NumPy and Python start from a seed; outside they are as before.

    User code, such as a factory, then gives the same to every rank, and to every later run. Without `devices` those on
    GPUs are left alone, which a process that only reads data must not touch.
    """
    with preserved_random_state(devices):
        # not torch.manual_seed, which also queues a call, with a traceback, for each kind of device that is absent
        torch.default_generator.manual_seed(seed)
        if devices:
            accelerators.seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # NumPy takes 32 bits
        yield
