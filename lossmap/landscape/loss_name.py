"""The name of a loss in the settings of a file: two losses that differ in a setting must not bear one name.

    nn.CrossEntropyLoss()                      crossentropy, as on the command line
    nn.CrossEntropyLoss(label_smoothing=0.1)   CrossEntropyLoss() with ignore_index=-100, label_smoothing=0.1, ...
    functools.partial(focal, gamma=2.0)        focal with gamma=2.0
    a function                                 its name, and the values that it encloses

Numbers, text and tensors (by their SHA-256) are told apart; other objects go by their class, and of a function's code
only its name is known.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from lossmap.data.criteria import SupervisedLoss
from lossmap.data.problem import Problem
from lossmap.sums import in_float64

PLAIN = (bool, int, float, str, type(None))


def loss_name(problem: Problem) -> str:
    """The name of the loss as the command line has it, where it does; else that of the function and its settings."""
    return _name(getattr(problem.forward, "loss", problem.loss))  # the former of `Problem.custom`


def _name(loss: Any, above: tuple[int, ...] = ()) -> str:
    """above  the objects within which it lies: one that holds itself is named there"""
    if isinstance(loss, SupervisedLoss):
        loss = loss.loss
    if isinstance(loss, str):
        return loss
    if type(loss) is nn.CrossEntropyLoss:  # of a subclass, the code may be another
        plain = loss.weight is None and loss.ignore_index == -100 and loss.label_smoothing == 0.0
        if plain and loss.reduction == "mean":
            return "crossentropy"
    if type(loss) is nn.MSELoss and loss.reduction == "mean":
        return "mse"
    return _described(loss, above)


def _described(loss: Any, above: tuple[int, ...] = ()) -> str:
    name = str(getattr(loss, "__qualname__", type(loss).__name__))
    if isinstance(loss, functools.partial):
        name = _name(loss.func, above)
    elif isinstance(loss, nn.Module):
        name = re.sub(r"0x[0-9a-f]+", "", repr(loss))  # addresses, where somebody's `extra_repr` shows an object
    inner, entries = (*above, id(loss)), sorted(dict(_settings_of(loss)).items())
    settings = ", ".join(f"{key}={_value(value, inner)}" for key, value in entries)
    if not settings:
        return name
    return f"{name} with {settings}"


def _settings_of(loss: Any) -> Iterator[tuple[str, Any]]:
    """What tells this loss from another one of its class or code, by name."""
    if isinstance(loss, functools.partial):
        yield from loss.keywords.items()
        yield from ((f"argument {i}", value) for i, value in enumerate(loss.args))
    elif isinstance(loss, nn.Module):
        yield from loss.named_parameters()
        for prefix, module in loss.named_modules():
            dot = "." if prefix else ""
            own = {
                **vars(module),
                **module._buffers,
            }  # also the buffers that no checkpoint holds, such as class weights
            yield from ((f"{prefix}{dot}{key}", value) for key, value in _shown(own) if key != "training")
    elif inspect.ismethod(loss):
        yield from _settings_of(loss.__self__)
    elif hasattr(loss, "__code__"):
        if "<" in loss.__qualname__:  # a lambda or a function within one: made several times, with other defaults
            yield from ((f"default {i}", value) for i, value in enumerate(loss.__defaults__ or ()))
            yield from (loss.__kwdefaults__ or {}).items()
        for key, cell in zip(loss.__code__.co_freevars, loss.__closure__ or (), strict=True):
            try:
                yield key, cell.cell_contents
            except ValueError:  # a name that has no value yet
                continue
    else:
        yield from _shown(getattr(loss, "__dict__", {}))


def _shown(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in attributes.items() if not key.startswith("_") and value is not None)


def _value(value: Any, above: tuple[int, ...] = ()) -> str:
    if isinstance(value, PLAIN):
        return repr(value)
    if id(value) in above:
        return type(value).__name__
    inner = (*above, id(value))
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return _digest(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item, inner) for item in value)}]"
    if isinstance(value, Mapping):
        entries = sorted(f"{key}: {_value(item, inner)}" for key, item in value.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, type):
        return value.__qualname__
    if callable(value):
        return _name(value, above)
    return type(value).__name__


def _digest(value: Any) -> str:
    """Shape and SHA-256 of an array's numbers; the shape alone of what holds no real numbers (text, sparse tensors)."""
    try:
        array = in_float64(torch.as_tensor(value).detach()).cpu().numpy()
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return f"{type(value).__name__} {tuple(value.shape)}"
    return f"{tuple(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
