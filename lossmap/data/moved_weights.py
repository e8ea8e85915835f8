"""Weights far from those of a model, at which a loss is looked at a second time.

Where a layer is 0, as a head or the last layer of a residual branch at the beginning, nothing that stands before it
reaches the loss: neither dropout nor the coupling of a batch shows at the model's own weights, and at every other point
of a survey they do.

    theta' = theta + s z        z of standard normal numbers, s half the root mean square of the tensor, and for small
                                tensors half of 1/sqrt(fan in) at least

    with MovedWeights(model).borrowed():        the model at these weights; afterwards it is as it was

They are a second set of weights beside the model's own. Of a large model whose values are read again from its file,
`stored_origin`, none is made: the model itself is moved, a block of a tensor at a time, and put back from the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import sqrt
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lossmap.data.borrow import on_own_tensors, temporary_parameters
from lossmap.data.stored_tensors import StoredTensors
from lossmap.seeding import generator
from lossmap.sums import in_float64

SHARE = 0.5
BLOCK = 1 << 18  # numbers that are in float64, or drawn, at a time
DRAWN_AT_ONCE = 16  # normal numbers by PyTorch: blocks of a multiple of them continue each other

_stored: WeakKeyDictionary[nn.Module, StoredTensors] = WeakKeyDictionary()


@contextmanager
def stored_origin(model: nn.Module, origin: object) -> Iterator[None]:
    """Inside, the model is moved in place and put back from this origin, where it is one that is read again."""
    if not isinstance(origin, StoredTensors):
        yield
        return
    origin.verify(model)
    before = _stored.get(model)
    _stored[model] = origin
    try:
        yield
    finally:
        del _stored[model]
        if before is not None:
            _stored[model] = before


def is_moved_in_place(model: nn.Module) -> bool:
    """Whether the model has an origin that is read again, so that nothing of its size is to be made beside it."""
    return model in _stored


class MovedWeights:
    """A model's weights moved at random, always alike: held, or made anew each time where its origin is stored."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._origin = _stored.get(model)
        self._tensors = moved_weights(model) if self._origin is None else {}

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """The model at these weights, in evaluation mode; given back untouched."""
        with temporary_parameters(self.model, self._tensors):
            if self._origin is None:
                yield
                return
            with on_own_tensors(self.model, tuple(self._origin)), self._origin.moved(self.model, _move):
                yield


def moved_weights(model: nn.Module) -> dict[str, Tensor]:
    """The floating-point parameters of a model moved at random, by name, in their own precision; always the same."""
    moved: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.is_floating_point() or not p.numel():
                continue
            # nothing of the tensor's size beside the result: one embedding can be a third of a language model
            result = torch.empty(p.shape, dtype=p.dtype, device=p.device)
            _write_moved(name, p, result)
            moved[name] = result
    return moved


def _move(tensors: Mapping[str, Tensor]) -> None:
    """Move these tensors themselves."""
    for name, t in tensors.items():
        if t.numel():
            _write_moved(name, t, t)


def _write_moved(name: str, t: Tensor, result: Tensor) -> None:
    """Write a tensor's moved values into a result, which may be the tensor itself."""
    size = _size(t)
    draws = generator("moved weights", name)
    is_whole = not (t.is_contiguous() and result.is_contiguous())
    for start, stop in _blocks(t.numel(), t.numel() if is_whole else BLOCK):
        part, target = (t, result) if is_whole else (t.view(-1)[start:stop], result.view(-1)[start:stop])
        z = torch.randn(stop - start, generator=draws, dtype=torch.float32).view(part.shape).to(t.device)
        if t.dtype == torch.float64:
            z = z.double()
        target.copy_(z.mul_(SHARE * size).add_(part))


def _size(t: Tensor) -> float:
    """How far a tensor's entries may be moved: their root mean square, 1/sqrt(fan in) at least."""
    squares = sum(float(in_float64(part).square().sum()) for part in torch.split(t.reshape(-1), BLOCK))
    return max(sqrt(squares / t.numel()), 1 / sqrt(max(t[0].numel(), 1)) if t.dim() else 0.0)


def _blocks(numbers: int, most: int) -> Iterator[tuple[int, int]]:
    """From where to where: the last one is longer, rather than too short to continue the numbers drawn before it."""
    start = 0
    while start < numbers:
        stop = numbers if numbers - start < most + DRAWN_AT_ONCE else start + most
        yield start, stop
        start = stop


__all__ = ["MovedWeights", "is_moved_in_place", "moved_weights", "stored_origin"]
