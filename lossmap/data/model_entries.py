"""What of a batch a model takes, by the arguments of its `forward`: the rest is left out and reported.

    {"image": x, "path": [...], "label": y}, forward(image)        path is left out
    {"image": x, "label": y}, forward(input)                       the only entry is the only argument
    (x, [...], y), forward(x)                                      words among the entries are left out
    (x, [...], y), forward(x, n: int = 1)                          and so they are where the argument takes none

Only what cannot be meant is left out: words, numbers of samples (`index`), and tensors where every argument of
`forward` has its entry. A tensor beside an argument that was not given may be that argument under another name, such
as a mask, and is refused; and so are words in the place of an optional argument that does not say what it takes.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lossmap.data.batch_parts import are_arguments, are_words, target_name, targets_of
from lossmap.data.batch_structure import TARGET_NAMES, holds_tensors
from lossmap.data.batches import Batch
from lossmap.data.huggingface_pass import is_huggingface, model_within

log = logging.getLogger(__name__)
_ANYTHING = re.compile(r"\b(Any|object|([Ll]ist|[Tt]uple|Sequence|Iterable)\b(?!\[))")  # annotations that may be words
NUMBERS_OF_SAMPLES = ("idx", "index", "indices", "id", "image_id", "sample_id")  # names of what no model computes with


@dataclass(frozen=True)
class ModelEntries:
    """batch -> the batch without what the model does not take.

    model       the name of its class, for messages
    required    arguments of `forward` without a default, in order
    optional    those with one
    positional  how many may be given by position; None: any number
    keywords    whether any other keyword is taken
    lenient     whether tensors without an argument are left out whatever is missing, as Hugging Face's Trainer does
    words       optional arguments -> whether they take words, by annotation and default; None where these do not tell
    by_position  arguments that may be given by position, in order
    """

    model: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    positional: int | None
    keywords: bool
    lenient: bool
    words: Mapping[str, bool | None]
    by_position: tuple[str, ...]
    _reported: set[str] = field(default_factory=set, compare=False, repr=False)

    def __call__(self, batch: Batch) -> Batch:
        """The batch; as it is where the model takes all of it. Raises ValueError where it is not evident what fits."""
        if isinstance(batch, Mapping):
            return self._of_mapping(batch)
        if not isinstance(batch, Sequence) or isinstance(batch, str) or len(batch) < 2:
            return batch
        if len(batch) > 2 and are_words(batch[-1]):  # words are no targets
            self._report([_words(1)])
            batch = (*batch[:-1],)
        *inputs, targets = batch
        if len(inputs) > 1:
            taken = self._of_sequence(inputs)
            return batch if taken is inputs else (*taken, targets)
        only = inputs[0]
        if isinstance(only, Mapping):
            given = self._given(only)
            return batch if given is only else (given, targets)
        if are_arguments(only):
            taken = self._of_sequence(only)
            return batch if taken is only else (tuple(taken), targets)
        return batch

    def _of_sequence(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """The inputs without words that the model does not take; the same object where it takes all of them."""
        if self.positional is None or not any(map(are_words, inputs)):
            self._report_numbers(inputs)
            return inputs
        numbers = [entry for entry in inputs if not are_words(entry)]
        places = dict(zip(self.by_position, inputs, strict=False))
        words = [name for name, entry in places.items() if are_words(entry)]
        if len(inputs) <= self.positional and all(name in self.required or self.words[name] for name in words):
            return inputs
        if not len(self.required) <= len(numbers) <= self.positional:
            return inputs
        unclear = [name for name in words if self.words.get(name, False) is None]
        if unclear and len(inputs) <= self.positional:
            raise ValueError(
                f"the batches hold words in the place of {unclear[0]}, an optional argument of {self.model}.forward, "
                "which does not say whether it takes them: leave them out of the batches, or give dicts with the names "
                f"of the arguments; where it takes them, annotate it as {unclear[0]}: list[str]"
            )
        self._report([_words(len(inputs) - len(numbers))])
        self._report_numbers(numbers)
        return numbers

    def _report_numbers(self, inputs: Sequence[Any]) -> None:
        """Log once where an optional argument is given one whole number a sample, which may be the sample's own."""
        for name, entry in zip(self.by_position, inputs, strict=False):
            if name in self.words and _is_a_number_each(entry) and f"numbers as {name}" not in self._reported:
                self._reported.add(f"numbers as {name}")
                log.warning(
                    "the batches hold a whole number for each sample, which is given to %s.forward as %s; the last "
                    "entry is the target: as dicts with the names of the arguments they need no such order",
                    self.model, name,
                )  # fmt: skip

    def _of_mapping(self, batch: Mapping[str, Any]) -> Batch:
        target = target_name(batch)
        if target is None:
            return batch
        entries = {name: value for name, value in batch.items() if name != target}
        others = [name for name in entries if name in TARGET_NAMES and name not in (*self.required, *self.optional)]
        self._report(others)
        for name in others:
            del entries[name]
        given = self._given(entries)
        if given is entries and not others:
            return batch
        if isinstance(given, Mapping) and not set(given) & set(TARGET_NAMES):
            return {**given, target: batch[target]}
        return (given, targets_of(batch))

    def _given(self, entries: Mapping[str, Any]) -> Any:
        """What the model is given of these entries: a dict of keywords, or the only tensor as the only argument."""
        named = (*self.required, *self.optional)
        if self.keywords or not all(isinstance(name, str) for name in entries):
            return entries
        unknown = [name for name in entries if name not in named]
        if not unknown:
            return entries
        tensors = [name for name in unknown if name not in NUMBERS_OF_SAMPLES and _is_for_a_model(entries[name])]
        missing = [name for name in self.required if name not in entries]
        if not self.lenient and len(tensors) == len(missing) == 1:
            return self._renamed(entries, tensors[0], missing[0])
        unfilled = [name for name in self.optional if name not in entries]
        if tensors and not self.lenient and (missing or unfilled):
            raise ValueError(
                f"the batches hold {', '.join(tensors)}, which {self.model}.forward does not take; it takes "
                f"{', '.join(named)}, of which the batches lack {', '.join([*missing, *unfilled])}: give the entries "
                "the names of the arguments, leave out what the model does not need, or say how it is called by "
                "lossmap.Problem.custom(model, loss, data)"
            )
        self._report(unknown)
        return {name: value for name, value in entries.items() if name in named}

    def _renamed(self, entries: Mapping[str, Any], name: str, argument: str) -> Any:
        """The entries with one under the name of the argument that it must be; a tensor where it is the only one."""
        named = (*self.required, *self.optional)
        self._report([other for other in entries if other not in (*named, name)])
        key = f"{name} as {argument}"
        if key not in self._reported:
            self._reported.add(key)
            log.warning("the entry %s of the batches is given to %s.forward as %s", name, self.model, argument)
        given = {argument if other == name else other: entries[other] for other in entries if other in (*named, name)}
        return (given[argument],) if len(given) == 1 else given

    def _report(self, names: Sequence[str]) -> None:
        """Log once which entries are left out."""
        new = [name for name in names if name not in self._reported]
        if new:
            self._reported.update(new)
            taken = ", ".join((*self.required, *self.optional)) or "nothing by name"
            log.warning(
                "left out of the batches, since %s.forward does not take it: %s; it takes %s",
                self.model, ", ".join(new), taken if len(taken) < 200 else f"{taken[:200]} ...",
            )  # fmt: skip


def _is_a_number_each(value: Any) -> bool:
    """Whether an entry is a whole number for each sample, (B,)."""
    return isinstance(value, Tensor) and value.dim() == 1 and not (value.is_floating_point() or value.is_complex())


def _words(count: int) -> str:
    return "an entry of words" if count == 1 else f"{count} entries of words"


def _is_for_a_model(value: Any) -> bool:
    """Whether an entry holds numbers in tensors or arrays: what may be an argument of a network."""
    if are_words(value):
        return False
    return any(holds_tensors(leaf) or hasattr(leaf, "__array__") for leaf in pytree.tree_leaves(value))


def entries_of(model: nn.Module) -> ModelEntries:
    """What a model takes of a batch, by the signature of its `forward`; of a wrapper by the model's within."""
    within = _signature(model)
    inner = model_within(model)
    if within is None or all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in within.parameters.values()):
        while isinstance(getattr(inner, "module", None), nn.Module):  # DataParallel, AveragedModel
            inner = model_within(inner.module)
        within = _signature(inner)
    parameters = [] if within is None else list(within.parameters.values())
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = {p.kind for p in parameters}
    anything = not by_name and not by_position
    lenient = is_huggingface(model)
    unlimited = anything or inspect.Parameter.VAR_POSITIONAL in takes_any
    return ModelEntries(
        type(inner).__name__,
        tuple(p.name for p in parameters if p in (*by_name, *by_position) and p.default is p.empty),
        tuple(p.name for p in by_name if p.default is not p.empty),
        None if unlimited else len(by_position),
        anything or (inspect.Parameter.VAR_KEYWORD in takes_any and not lenient),
        lenient,
        {p.name: _takes_words(p) for p in parameters if p in (*by_name, *by_position) and p.default is not p.empty},
        tuple(p.name for p in by_position),
    )


def _takes_words(parameter: inspect.Parameter) -> bool | None:
    """Whether an argument takes words, by its default and its annotation; None where these do not tell."""
    default = parameter.default
    if not (default is None or (isinstance(default, (tuple, list)) and not default)):
        return are_words(default)
    said = parameter.annotation
    text = said if isinstance(said, str) else getattr(said, "__name__", "") + str(said)
    if said is parameter.empty or _ANYTHING.search(text):
        return None
    return re.search(r"\b(str|bytes)\b", text) is not None


def _signature(model: nn.Module) -> inspect.Signature | None:
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):  # compiled code shows none
        return None
