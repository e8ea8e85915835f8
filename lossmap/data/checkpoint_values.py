"""Whether a checkpoint's tensors hold the numbers that a model's tensors need: values, real and not quantized.

`load_state_dict` copies whole numbers and complex ones into real parameters without a word, int8 weights without their
scale, or real parts alone; and into buffers what they cannot hold: 300 as 44 in int8, 2.5 as 2 in int64.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

COUNT = "num_batches_tracked"  # of batch norm, which training alone reads; averages of checkpoints have fractions in it
SMALL = (torch.int8, torch.uint8, torch.int16)


@dataclass(frozen=True)
class _Misfit:
    """A kind of tensor that is refused.

    applies  (tensor, the model's own) -> whether it is one
    text     what it holds, and what to do
    """

    applies: Callable[[Tensor, Tensor | None], bool]
    text: str


def _is_meta(t: Tensor, own: Tensor | None) -> bool:
    return t.is_meta


def _is_quantized(t: Tensor, own: Tensor | None) -> bool:
    if t.is_quantized:
        return True
    return own is not None and own.is_floating_point() and not (t.is_floating_point() or t.is_complex())


def _is_complex(t: Tensor, own: Tensor | None) -> bool:
    return own is not None and t.is_complex() and not own.is_complex() and bool((t.imag != 0).any())


def _is_changed(t: Tensor, own: Tensor | None) -> bool:
    """Whether the model's tensor would hold other numbers, by more than the rounding of floating-point ones."""
    if own is None or own.dtype == t.dtype or t.is_quantized:
        return False
    t, made = plain(t), plain(t).to(own.dtype)
    if made.is_floating_point() or made.is_complex():
        return bool((t.isfinite() & ~made.isfinite()).any())
    return not torch.equal(made.to(t.dtype), t)


MISFITS = (
    _Misfit(_is_meta, "holds no values (meta tensors), only shapes: save it again from a model that has been loaded"),
    _Misfit(_is_quantized, "holds whole or quantized numbers for floating-point parameters: save the dequantized ones"),
    _Misfit(_is_complex, "holds complex numbers for real parameters"),
)
OF_BUFFERS = (
    _Misfit(_is_complex, "holds complex numbers for real buffers"),
    _Misfit(_is_changed, "holds numbers that the model's own tensors, of another type, cannot hold"),
)


def readable_values(state: Mapping[str, Tensor], model: nn.Module, origin: str) -> dict[str, Tensor]:
    """The tensors, sparse ones as dense. Raises ValueError, with their names, for those that hold no such numbers."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    tensors = parameters | {name: t for name, t in model.named_buffers() if not name.endswith(COUNT)}
    for misfit, own in (*((each, parameters) for each in MISFITS), *((each, tensors) for each in OF_BUFFERS)):
        names = [name for name, t in state.items() if misfit.applies(t, own.get(name))]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"{origin} {misfit.text}: {', '.join(names[:3])}{more}")
    return {name: plain(t) for name, t in state.items()}


def readable_given(given: Mapping[str, Any], origin: str) -> OrderedDict[str, Any]:
    """What the model's own rules load, sparse tensors as dense, with its versions. Raises as `readable_values` does."""
    refuse_meta(given, origin)
    dense = OrderedDict((name, plain(t) if isinstance(t, Tensor) else t) for name, t in given.items())
    if hasattr(given, "_metadata"):
        dense._metadata = given._metadata  # type: ignore[attr-defined]
    return dense


def refuse_meta(given: Mapping[str, Any], origin: str) -> None:
    """Raises ValueError where tensors have shapes alone."""
    names = [name for name, t in given.items() if isinstance(t, Tensor) and t.is_meta]
    if names:
        raise ValueError(f"{origin} {MISFITS[0].text}: {', '.join(names[:3])}")


def buffers_told(state: Mapping[str, Tensor], model: nn.Module, origin: str) -> tuple[str, ...]:
    """Sentences on floating-point buffers of small whole numbers, as quantized ones are, and on fractions of counts."""
    own = {name: t for name, t in model.named_buffers() if name in state}
    small = [name for name, t in own.items() if t.is_floating_point() and state[name].dtype in SMALL]
    cut = [name for name, t in own.items() if name.endswith(COUNT) and _is_changed(state[name], t)]
    notes = []
    if small:
        names = ", ".join(small[:3])
        notes.append(f"{origin}: whole numbers are taken as they are for floating-point buffers: {names}")
    if cut:
        notes.append(f"{origin}: {cut[0]} has a fraction, which is left out: training alone reads this count")
    return tuple(notes)


def refuse_scaled(state: Mapping[str, Tensor], beside: Iterable[str], origin: str) -> None:
    """Raises ValueError where weights of one byte are to be multiplied by scales that the file has beside them."""
    scales = [name for name in beside if "scale" in name.rpartition(".")[2]]
    if scales and any(_is_float8(t) for t in state.values()):
        raise ValueError(f"{origin} holds float8 weights with scales beside them ({scales[0]}): save dequantized ones")


def _is_float8(t: Tensor) -> bool:
    return t.is_floating_point() and t.element_size() == 1


def plain(t: Tensor) -> Tensor:
    """The tensor as dense, and in a format that can be computed with."""
    dense = t if t.layout == torch.strided else t.to_dense()
    return dense.float() if _is_float8(dense) else dense
