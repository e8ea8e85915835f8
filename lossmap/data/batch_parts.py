"""What a batch is made of: inputs for the model, and targets for the loss.

(x, y)            x is given to the model, y is the target
((x1, x2), y)     several arguments
({"a": x}, y)     keywords
{"a": x, "y": y}  keywords, but for the target, which has a usual name
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lossmap.data.batches import Batch

TARGET_NAMES = ("labels", "targets", "target", "label", "y")


def targets_of(batch: Batch) -> Any:
    """The targets of a batch: its last entry, or of a dict the entry with a usual name.

    Raises ValueError where there is none.
    """
    if isinstance(batch, Mapping):
        for name in TARGET_NAMES:
            if name in batch:
                return batch[name]
        raise ValueError(f"a dict batch must hold its targets under one of {TARGET_NAMES}; it has {tuple(batch)}")
    if isinstance(batch, Sequence) and len(batch) > 1:
        return batch[-1]
    raise ValueError(
        f"a batch must hold inputs and targets; got {type(batch).__name__}. For other batches see Problem.custom"
    )


def with_targets(batch: Batch, targets: Any) -> Batch:
    """The batch with other targets."""
    if isinstance(batch, Mapping):
        name = next(name for name in TARGET_NAMES if name in batch)
        return {**batch, name: targets}
    return (*batch[:-1], targets)


def inputs_of(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a batch gives to the model: positional and keyword arguments."""
    if isinstance(batch, Mapping):
        return (), {k: v for k, v in batch.items() if k not in TARGET_NAMES}
    *inputs, _ = batch
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        return (), dict(inputs[0])
    if len(inputs) == 1 and isinstance(inputs[0], (tuple, list)):
        return tuple(inputs[0]), {}
    return tuple(inputs), {}
