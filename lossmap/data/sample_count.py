"""How many samples a batch holds, whatever its structure: rows of tensors, entries of lists, graphs, sequences."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from lossmap.data.batch_structure import (
    TARGET_NAMES,
    attributes_of,
    collection_of,
    entries_and_rest,
    holds_tensors,
    in_own_containers,
    register,
)
from lossmap.seeding import preserved_random_state
from lossmap.trees import rebuilt

PLAIN_NUMBERS = (int, float, np.number, np.bool_)


class _List(list[Any]):
    pass


class _Tuple(tuple[Any, ...]):
    pass


# a list in a batch, or the batch itself, whose entries are the samples, as other batches or the loader tell
_ENTRIES = _List, _Tuple
_MARK = "_entries_are_samples"  # such a one of a class of its own
for _kind_of_list in _ENTRIES:
    pytree.register_pytree_node(
        _kind_of_list,
        lambda values: (list(values), type(values)),
        lambda values, kind: kind(values),
        flatten_with_keys_fn=lambda values: (
            [(pytree.SequenceKey(i), v) for i, v in enumerate(values)],
            type(values),
        ),
    )


def entries(values: Any) -> Any:
    """A list or tuple, its entries marked as the samples."""
    if type(values) in (list, tuple, *_ENTRIES) or not hasattr(values, "__dict__"):
        return _Tuple(values) if isinstance(values, tuple) else _List(values)
    made = collection_of(type(values), *entries_and_rest(values))
    vars(made)[_MARK] = True
    return made


def are_entries(values: Any) -> bool:
    """Whether this is a list or tuple whose entries are marked as the samples."""
    return isinstance(values, _ENTRIES) or _MARK in getattr(values, "__dict__", {})


class _CountedDict(dict[Any, Any]):
    pass


class _CountedTuple(tuple[Any, ...]):
    pass


class _CountedList(list[Any]):
    pass


_COUNT = "_number_of_samples"  # an attribute, which these have and plain ones have not
_COUNTED: dict[Any, Any] = {dict: _CountedDict, tuple: _CountedTuple, list: _CountedList}
for _kind_of_batch, _key in zip(
    _COUNTED.values(), (pytree.MappingKey, pytree.SequenceKey, pytree.SequenceKey), strict=True
):
    register(_kind_of_batch, entries_and_rest, collection_of, _key)


def counted(batch: Any, samples: int) -> Any:
    """The batch with its number of samples as an attribute; as it is where it bears none, as a tensor by itself."""
    kind = _COUNTED.get(type(batch))
    bears_none = isinstance(batch, torch.Tensor) or hasattr(batch, "_fields")
    if kind is None and (bears_none or getattr(batch, "__dict__", batch) is batch):
        return batch
    made = in_own_containers(batch) if kind is None else kind(batch)
    object.__setattr__(made, _COUNT, samples)
    return made


def told_count(batch: Any) -> int | None:
    """The number of samples that `counted` gave a batch; None of any other."""
    number = None if isinstance(batch, torch.Tensor) else getattr(batch, "__dict__", {}).get(_COUNT)
    return number if isinstance(number, int) else None


def with_count_of(batch: Any, original: Any) -> Any:
    """The batch, which was made of another, with the number of samples that `counted` gave that one, if it did."""
    number = told_count(original)
    return batch if number is None else counted(batch, number)


def some_entries(values: Any, first: int, last: int) -> Any:
    """Some of marked entries, with the rows for them of the tensors that a class of its own has as attributes."""
    if isinstance(values, _ENTRIES):
        return entries(values[first:last])
    n = len(values)
    parts, (*places, rest) = entries_and_rest(values)
    own = [p[first:last] if isinstance(p, torch.Tensor) and p.dim() and len(p) == n else p for p in parts[n:]]
    return collection_of(type(values), [*parts[first:last], *own], (*places[first:last], *places[n:], rest))


def with_entries(batches: Sequence[Any], told: Sequence[Collated] = (), of_stream: bool = False) -> list[Any]:
    """The batches, lists of samples in them marked by `entries`.

    They are lists of samples where their lengths differ from batch to batch, are those that the loader makes, or are 1
    where the tensors in a batch have no one first dimension: those in others may have one by chance.

    told       of each batch what the loader tells, if it does
    of_stream  whether a batch was put together of samples that may be batches each, of which it may be the first alone
    """
    sizes = [each.samples for each in told]
    for kind, (number_of, marked) in enumerate(zip(_numbers_of(), (entries, _with_marked_lists), strict=True)):
        numbers = [number_of(batch) for batch in batches]
        rows = [lengths_of(leaves_of(batch)) for batch in batches]
        if [{number} for number in numbers] == rows:
            continue  # rows of tensors are as many: of two samples in a pair of inputs and targets, for one
        differ = len(set(numbers)) > 1 or (set(numbers) == {1} and any(len(lengths) > 1 for lengths in rows))
        are_listed = numbers == sizes and all(each.lists[kind] for each in told)
        if are_listed or (not told and differ and None not in numbers):
            return list(map(marked, batches))
    return _with_counts(batches, told, of_stream)


def _with_counts(batches: Sequence[Any], told: Sequence[Collated], of_stream: bool) -> list[Any]:
    """The batches, with the numbers that the loader tells where their tensors' first dimension is not these.

    So it is where the samples were found along the second, the time being the first; and where nothing in a batch
    shows how many there are, so that each would count once.
    """
    numbers = [each.samples for each in told if each.samples is not None]
    graphs = [number for batch in batches if (number := _graphs_in_each(batch))]
    are_known = graphs == numbers or len(set(graphs)) > 1
    if len(graphs) == len(batches) and are_known and len(set(map(len, batches))) == 1:
        return list(map(counted, batches, graphs))  # pairs of graphs, also where each puts together one
    lengths = [lengths_of(leaves_of(batch)) for batch in batches]
    if any(map(_has_other_rows, batches, numbers)):  # some samples were left out
        return list(batches)
    if len(numbers) < len(batches) or any(map(is_counted_otherwise, batches)) or not all(lengths):
        return list(batches)
    sizes = [samples_in(batch) for batch in batches]
    once = [size == 1 and len(rows) > 1 for size, rows in zip(sizes, lengths, strict=True)]
    known = all(map(operator.or_, once, map(operator.eq, sizes, numbers))) and any(once)
    if not have_columns(told) and (of_stream or not known):
        return list(batches)
    return [counted(batch, number) for batch, number in zip(batches, numbers, strict=True)]


def _has_other_rows(batch: Any, number: int) -> bool:
    """Whether several tensors in a batch have rows, as many as each other, and none has this number of them."""
    rows = [shape[0] for shape in _shapes(batch)]
    return number not in {n for shape in _shapes(batch) for n in shape} and len(rows) > len(set(rows))


def _graphs_in_each(batch: Any) -> int | None:
    """How many graphs each object in a list puts together; None where these are no such objects, or differ."""
    if not _is_list(batch) or not all(hasattr(g, "num_graphs") or hasattr(g, "batch_num_nodes") for g in batch):
        return None
    numbers = set(map(_declared_samples, batch))
    return numbers.pop() if len(numbers) == 1 else None


def by_columns(batch: Any) -> Any:
    """The batch with the length of its tensors' second dimension as its count; None where they have no one.

    So sequences may stand, the time first; at least one of several tensors has a third dimension.
    """
    tensors = [t for t in leaves_of(batch) if isinstance(t, torch.Tensor)]
    widths = {t.shape[1] if t.dim() > 1 else 0 for t in tensors}
    if len(tensors) < 2 or len(widths) > 1 or max(t.dim() for t in tensors) < 3 or is_counted_otherwise(batch):
        return None
    made = counted(batch, widths.pop())
    return made if told_count(made) else None


def have_columns(told: Sequence[Collated]) -> bool:
    """Whether the samples of a loader's batches stand along the second dimension of tensors."""
    return all(each.in_columns is not False for each in told) and any(each.in_columns for each in told)


@dataclass(frozen=True, eq=False)
class Collated:
    """A batch, and of how many samples a loader put it together.

    samples  None where that is not told
    lists    whether it is a list of its samples, and whether it is made of lists of their parts
    in_columns  whether samples stand along the second dimension of a tensor, and of every one along this or the first;
                None where both dimensions are as long
    left_out    how many were None, which a `collate_fn` leaves out
    """

    batch: Any
    samples: int | None = None
    lists: tuple[bool, bool] = (False, False)
    in_columns: bool | None = False
    left_out: int = 0


@dataclass(frozen=True, eq=False)
class CountedCollate:
    """A loader's `collate_fn` that says how many samples it was given."""

    collate: Callable[[Any], Any]

    def __call__(self, samples: Any) -> Collated:
        """The batch of these samples."""
        if not isinstance(samples, (tuple, list)):
            return Collated(self.collate(samples))
        kept = [sample for sample in samples if sample is not None] or samples  # None is a sample that is left out
        n, others = len(kept), in_own_containers(kept[:1])
        batch = self.collate(samples)
        lists = [number_of(batch) == n for number_of in _numbers_of()]
        by_columns = _may_be_in_columns(batch, n)
        if any(lists) or by_columns:  # by chance, as two samples that are batches end to end are a pair
            others = others * (2 if n != 2 else 3) if n == 1 or by_columns else others
            try:
                with preserved_random_state(devices=False):
                    other = self.collate(others)
            except Exception:  # what a user's function raises of samples that it is never given
                return Collated(batch, n, (n > 1 and lists[0], n > 1 and lists[1]), left_out=len(samples) - n)
            numbers = [number_of(other) for number_of in _numbers_of()]
            lists = [is_list and number == len(others) for is_list, number in zip(lists, numbers, strict=True)]
            by_columns = by_columns and _are_in_columns(batch, n, other, len(others))
        are_rows = {shape[0] for shape in _shapes(batch)} == {n}
        return Collated(batch, n, (lists[0], lists[1]), None if are_rows else by_columns, len(samples) - n)


def _may_be_in_columns(batch: Any, n: int) -> bool:
    """Whether tensors may have their n samples along the second dimension, and not along the first."""
    return any(shape[1:2] == (n,) and shape[0] != n for shape in _shapes(batch)) and not is_counted_otherwise(batch)


def _are_in_columns(batch: Any, n: int, other: Any, m: int) -> bool:
    """Whether a batch of n samples has them along the first or second dimension of all tensors, as one of m shows.

    A tensor that is the same for both has none of them.
    """
    ours, others = _shapes(batch), _shapes(other)
    if len(ours) != len(others):
        return False
    moved = [(tuple(zip(a[:2], b[:2], strict=False))) for a, b in zip(ours, others, strict=True) if a != b]
    return bool(moved) and all((n, m) in each for each in moved) and any(each[0] != (n, m) for each in moved)


def _shapes(batch: Any) -> list[tuple[int, ...]]:
    """The shapes of the tensors and arrays in a batch, but of single numbers."""
    return [
        tuple(leaf.shape) for leaf in leaves_of(batch) if isinstance(leaf, (torch.Tensor, np.ndarray)) and leaf.ndim
    ]


def _numbers_of() -> tuple[Callable[[Any], int | None], ...]:
    """How many samples a batch holds that is a list of them, and one that is made of lists of their parts."""
    return _length, _length_of_lists


def _length(batch: Any) -> int | None:
    """The length of a batch that is a list of anything but objects, such as graphs; None for any other.

    Tensors of several kinds, such as inputs beside targets, are no list of samples.
    """
    if not _is_list(batch) or any(map(_is_object, batch)):
        return None
    of_several_kinds = all(isinstance(entry, torch.Tensor) for entry in batch) and len(set(map(_kind, batch))) > 1
    return None if of_several_kinds else len(batch)


def _length_of_lists(batch: Any) -> int | None:
    """The one length of the lists that hold all tensors of a batch, but for single numbers; None for any other."""
    lengths = set()
    for part in pytree.tree_leaves(batch, is_leaf=partial(_is_list_in, batch)):
        if _is_list(part) and any(map(holds_tensors, pytree.tree_leaves(part))):
            lengths.add(len(part))
        elif isinstance(part, torch.Tensor) and part.dim():
            return None
    return lengths.pop() if len(lengths) == 1 else None


def _with_marked_lists(batch: Any) -> Any:
    number = _length_of_lists(batch)

    def marked(part: Any) -> Any:
        return entries(part) if _is_list(part) and len(part) == number else part

    return rebuilt(marked, batch, is_leaf=partial(_is_list_in, batch))


def _is_list_in(batch: Any, part: Any) -> bool:
    return part is not batch and _is_list(part)


def _is_list(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and not hasattr(value, "_fields")


def samples_in(batch: Any) -> int:
    """The samples of a batch: the length of its tensors' first dimension.

    Where its targets say it otherwise (`_targets_in`), as a label beside a graph or a list of labels does, it is their
    number. Where the tensors' lengths differ, it is an object's `batch_size`, or the length of the targets with a usual
    name, or of classes at the end of a tuple, or of any beside sequences with the time first, or an object's
    `num_graphs`, or the length of the tensors that stand directly in the batch; where these differ too, as the parts of
    a physics-informed loss do, the batch counts once. A list of objects, such as graphs, counts as they do together,
    but batches of as many graphs each, which pairs of graphs are put together to, as one of them; for lists of images
    and of their boxes, and lists of samples, see `_in_lists` and `with_entries`. What a loader tells (`counted`) comes
    before all that. A number or word by itself within an
    entry, such as a label, says that the entry's tensors are of one sample, whatever their length.
    """
    told = told_count(batch)
    if told is not None:
        return told
    if isinstance(batch, (tuple, list)) and batch and all(map(_is_object, batch)):
        graphs = set(map(_graphs_in, batch))  # None of a single graph
        counts = [samples_in(each) for each in batch]
        return counts[0] if graphs == {counts[0]} and not are_entries(batch) else sum(counts)
    listed = _listed_samples(batch)
    if listed is not None:
        return listed
    lengths = lengths_of(leaves_of(batch))
    if not lengths:
        raise ValueError(
            f"a batch must hold at least one tensor, its first dimension the samples; got {type(batch)}: give "
            "torch.tensor(...) of lists of numbers, of a table.to_numpy(), a matrix.toarray(), np.asarray(image)"
        )
    declared = _declared_samples(batch)
    if len(lengths) > 1 or declared is not None:
        if declared is not None and not hasattr(batch, "num_graphs"):  # the nodes whose neighbours were sampled
            return declared
        targets = batch[-1] if _ends_in_classes(batch) or _has_time_first(batch) else _named_targets(batch)
        if isinstance(targets, torch.Tensor):
            return len(targets)
        if declared is not None:
            return declared
        lengths = lengths_of(_parts_of(batch))
    in_lists = _in_lists(_parts_of(batch)) if len(lengths) != 1 else None
    if in_lists is None:
        return lengths.pop() if len(lengths) == 1 else 1
    return in_lists


def _listed_samples(batch: Any) -> int | None:
    """The samples of a batch whose targets are one number or a list of them, or that is made of lists; else None."""
    for part in pytree.tree_leaves(batch, is_leaf=are_entries):
        if are_entries(part):
            return len(part)
    targets = _targets_in(batch)
    return _in_lists(_parts_of(batch)) if targets is None and _holds_numbers(batch) else targets


def _targets_in(batch: Any) -> int | None:
    """The number of a batch's targets where they are one number or a list of numbers: an int, and None else.

    They have a usual name, or stand at the end of a tuple: a class in any, anything in a pair of inputs and targets.
    """
    if isinstance(batch, (tuple, list)):
        targets = batch[-1] if batch else None
        is_class = isinstance(targets, torch.Tensor) and not targets.is_floating_point()
        if len(batch) != 2 and not is_class:
            return None
    else:
        targets = _named_targets(batch)
    if _is_number(targets):
        return 1
    return len(targets) if targets is not None and _are_numbers(targets) else None


def _ends_in_classes(batch: Any) -> bool:
    """Whether the last entry of a tuple is a row of whole numbers, as classes are."""
    last = batch[-1] if isinstance(batch, (tuple, list)) and batch else None
    return isinstance(last, torch.Tensor) and last.dim() == 1 and last.dtype in (torch.int64, torch.int32)


def _has_time_first(batch: Any) -> bool:
    """Whether a batch is a pair of sequences of vectors, the time first, and as many targets as there are sequences."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(t, torch.Tensor) for t in batch):
        return False
    sequences, targets = batch
    return bool(sequences.dim() > 2 and targets.dim() and sequences.shape[1] == len(targets))


def _named_targets(batch: Any) -> Any:
    """The targets of a mapping or object, by a usual name: what holds numbers, and no words."""
    if isinstance(batch, (tuple, list)):
        return None
    held = {name: batch[name] for name in batch} if isinstance(batch, Mapping) else None
    values = (getattr(batch, name, None) if held is None else held.get(name) for name in TARGET_NAMES)
    return next((v for v in values if isinstance(v, torch.Tensor) or _is_number(v) or _are_numbers(v)), None)


def _declared_samples(batch: Any) -> int | None:
    """How many samples an object says that it holds, beside tensors of all their parts, as graphs in a batch do."""
    if isinstance(batch, (torch.Tensor, Mapping, tuple, list)):
        return None
    numbers = (getattr(batch, name, None) for name in ("num_graphs", "batch_size"))
    return next((number for number in numbers if isinstance(number, int) and number > 0), None)


def _graphs_in(value: Any) -> int | None:
    """How many graphs an object puts together, of torch_geometric or of DGL, where a single graph has 1 as well."""
    is_of_dgl = callable(getattr(value, "batch_num_nodes", None))
    number = getattr(value, "batch_size" if is_of_dgl else "num_graphs", None)
    return number if isinstance(number, int) and not (is_of_dgl and number == 1) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, PLAIN_NUMBERS) or (isinstance(value, torch.Tensor) and not value.dim())


def _are_numbers(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and bool(value) and all(map(_is_number, value))


def _holds_numbers(batch: Any) -> bool:
    """Whether a number or a word stands within an entry of the batch, and not directly in it.

    In a dict of dicts it is none of a sample, since keys name parts.
    """
    entries = _parts_of(batch)
    if isinstance(batch, (tuple, list)):
        entries = [entry for entry in entries if not isinstance(entry, (torch.Tensor, str, *PLAIN_NUMBERS))]
    else:
        entries = [entry for entry in entries if isinstance(entry, (tuple, list))]
    return any(_is_number(leaf) or isinstance(leaf, str) for leaf in pytree.tree_leaves(entries))


def _parts_of(batch: Any) -> list[Any]:
    """What stands directly in a batch: the entries of a mapping, tuple or list; the attributes of an object."""
    if isinstance(batch, Mapping):
        return list(batch.values())
    if isinstance(batch, (torch.Tensor, PackedSequence)):
        return [batch]
    return list(batch) if isinstance(batch, (tuple, list)) else list(attributes_of(batch).values())


def _in_lists(entries: Sequence[Any]) -> int | None:
    """The samples of a batch of lists: of images beside one of boxes, or one of samples; None where not evident.

    Lists of one kind each, and of one length, hold a sample an entry. Where each entry holds several kinds, the same
    in all (an image and its boxes, dicts), the entries are the samples.
    """
    if not entries:
        return None
    if all(isinstance(entry, Mapping) for entry in entries):
        return len(entries) if len({tuple(entry) for entry in entries}) == 1 else None
    if not all(isinstance(entry, (tuple, list)) and entry for entry in entries):
        return None
    rows = [tuple(map(_kind, entry)) for entry in entries]
    of_one_kind = all(len(set(row)) == 1 for row in rows)
    alike = len(set(rows)) == 1
    if of_one_kind and not alike and len({len(row) for row in rows}) == 1:
        return len(rows[0])
    return len(rows) if alike and not of_one_kind else None


def _kind(value: Any) -> Any:
    """What tells an image from a label, and a dict of boxes from both."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.dim()
    if isinstance(value, PLAIN_NUMBERS):
        return float
    return tuple(value) if isinstance(value, Mapping) else type(value)


def _is_object(value: Any) -> bool:
    """Whether a value is an object with tensors, and neither a tensor nor a container of some."""
    return not isinstance(value, (torch.Tensor, Mapping, tuple, list)) and holds_tensors(value)


def lengths_of(values: Sequence[Any]) -> set[int]:
    """The first dimensions of the tensors among some values, and the numbers of packed sequences."""
    packed = {int(s.batch_sizes[0]) for s in values if isinstance(s, PackedSequence)}
    return packed | {int(t.shape[0]) for t in values if isinstance(t, torch.Tensor) and t.dim() > 0}


def leaves_of(batch: Any) -> list[Any]:
    """The leaves of a batch; a packed sequence is one, since its tensors are of steps, and not of samples."""
    return pytree.tree_leaves(batch, is_leaf=lambda part: isinstance(part, PackedSequence))


def is_counted_otherwise(batch: Any) -> bool:
    """Whether a batch's samples are no rows of its tensors: numbers and words in lists, packed sequences, graphs."""
    if any(number is not None for number in (told_count(batch), _listed_samples(batch), _declared_samples(batch))):
        return True
    return any(isinstance(leaf, PackedSequence) for leaf in leaves_of(batch))
