"""What a batch is made of: inputs for the model, and targets for the loss.

(x, y)            x is given to the model, y is the target
((x1, x2), y)     several arguments
({"a": x}, y)     keywords
{"a": x, "y": y}  keywords, but for the target, which has a usual name

What of a dict the model does not take is left out before (`data.model_entries`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lossmap.data.batch_structure import TARGET_NAMES, in_own_containers
from lossmap.data.batches import Batch
from lossmap.data.sample_count import with_count_of


def target_name(batch: Mapping[str, Any]) -> str | None:
    """The name of a dict's targets; of several usual ones the first, but words are none where another has numbers."""
    names = [name for name in TARGET_NAMES if name in tuple(batch)]
    return next((name for name in names if not are_words(batch[name])), names[0] if names else None)


def are_words(value: Any) -> bool:
    """Whether a part of a batch is text, such as the path or the name of every sample, which no model computes with."""
    if isinstance(value, (list, tuple)) and value:
        return all(map(are_words, value))
    return isinstance(value, (str, bytes))


def are_arguments(value: Any) -> bool:
    """Whether the only input of a batch stands for several arguments, as a tuple of tensors does; texts are one."""
    return isinstance(value, (tuple, list)) and not isinstance(value, PackedSequence) and not are_words(value)


def targets_of(batch: Batch, outputs: Any = None) -> Any:
    """The targets of a batch: its last entry, or of a dict the entry with a usual name.

    outputs  of the model, on whose device targets are to be: a model whose layers are on several ends on its last one;
             lists and dicts in targets beside them are the caller's to change

    Raises ValueError where there is none.
    """
    if outputs is not None:
        targets = in_own_containers(targets_of(batch))
        if isinstance(targets, Tensor) and isinstance(outputs, Tensor) and targets.device != outputs.device:
            return targets.to(outputs.device)
        return targets
    if isinstance(batch, Mapping):
        name = target_name(batch)
        if name is not None:
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
        return with_count_of({**batch, str(target_name(batch)): targets}, batch)
    return with_count_of((*batch[:-1], targets), batch)


def inputs_of(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a batch gives to the model: positional and keyword arguments."""
    if isinstance(batch, Mapping):
        target = target_name(batch)
        return (), {name: value for name, value in batch.items() if name != target}
    *inputs, _ = batch
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        return (), dict(inputs[0])
    if len(inputs) == 1 and are_arguments(inputs[0]):
        return tuple(inputs[0]), {}
    return tuple(inputs), {}
