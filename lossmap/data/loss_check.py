"""Whether a loss is a repeatable mean over samples, asked once for every command; and what is done where it is not.

    check_loss(problem) -> the problem as it is to be evaluated, with a sentence in `notes` for what is unusual

A survey cuts the data into whatever batches are fast. That is right only where the loss of a batch is the sum over its
samples (divided by them), and where it is the same at every look. Both are measured on a few samples at the model's own
weights and at others moved at random, in float64 where model and loss bear that: the same batch twice, and whether
random numbers are drawn; and all of them against random parts, against each alone, with the last samples of the data
among them; and a batch as large as the loader's against two parts.

    what is found                               what is done
    a sum over the batch in place of a mean     divided by the samples
    a batch is no sum over its samples          the loader's own batches, uncut (contrastive losses, weighted means,
                                                batch norm without running statistics, a regulariser in a sum)
    it differs where gradients are recorded     gradients are recorded everywhere
    the loss draws at random                    the same random numbers at every evaluation, own batches, uncut
    neither helps                               ValueError

The ranks of a team, each with its share of the samples, do the same: what the most cautious of them would do.

Price: some seventeen passes over at most 16 samples (of a loss that draws 8 to 64 times two more, of a sum four); and a
second set of weights, moved at random, but for a model whose origin is read again from its file
(`moved_weights.stored_origin`): that one is moved itself, anew for each pass, and put back. Nothing of the model
changes, nor any generator's state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import copysign, inf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lossmap import accelerators
from lossmap.data.aliases import refuse_aliases
from lossmap.data.batch_marks import marked
from lossmap.data.batch_parts import targets_of
from lossmap.data.batch_structure import open_batch
from lossmap.data.batch_writes import with_copied_batches
from lossmap.data.batches import Batch, Batches, FixedBatches, Resident, Streamed, is_even, listed_counts, map_tensors
from lossmap.data.borrow import borrowed_once, copy_of
from lossmap.data.broadcasts import broadcast_targets
from lossmap.data.carried_state import carried_state
from lossmap.data.checks import check_finite, uncut_where_parts_fail
from lossmap.data.counters import moving_counters
from lossmap.data.criteria import CorrectClasses, SupervisedLoss, is_of_pytorch, takes_class_labels
from lossmap.data.datasets import LabelsWithin, labels_within
from lossmap.data.first_batch import set_by_first_batch
from lossmap.data.gradient_mode import with_gradients_recorded
from lossmap.data.held_model import first_look
from lossmap.data.kept_graphs import with_nothing_kept
from lossmap.data.left_behind import loss_that_leaves_nothing, watch_what_is_far
from lossmap.data.memos import kept_outside, stale_cache, stale_memo
from lossmap.data.merged_layers import find_merged_layers
from lossmap.data.metric_check import with_metrics_told
from lossmap.data.missing_values import missing_values, unusual_rows
from lossmap.data.module_state import FAR
from lossmap.data.moved_weights import MovedWeights
from lossmap.data.noise import with_noise_seed
from lossmap.data.problem import CustomLoss, Problem, gives_weight, temporary_parameters
from lossmap.data.rare_samples import LOOKED_AT, all_alike, rare_rows
from lossmap.data.sample_count import (
    are_entries,
    by_columns,
    counted,
    is_counted_otherwise,
    lengths_of,
    samples_in,
    some_entries,
    told_count,
)
from lossmap.data.stored_tensors import ChangedModelError
from lossmap.data.told import told_of
from lossmap.data.underflow import underflow
from lossmap.data.weight_check import with_weight_checked
from lossmap.device_errors import loses_gpu, out_of_memory, raise_if_of_device
from lossmap.geometry.parameter_vector import movable_parameters
from lossmap.memory import return_freed_memory
from lossmap.seeding import generator, random_states, same_random_state
from lossmap.stable.forms import stable_forms
from lossmap.sums import for_float64
from lossmap.trees import rebuilt

logger = logging.getLogger("lossmap")
NO_MEAN = "the loss of a batch is not a mean over its samples"  # a note begins so where batches stay as they are given
MAX_SAMPLES = 16  # that are looked at
MANY_SAMPLES = 256  # of a batch in one, against its parts
SOME_SAMPLES = 64  # the same of costly models
CHEAP = 10_000_000  # parameters times numbers of a sample, up to which a model is none
OWN_TOLERANCE = 1e-4  # relative, of such a batch in the model's own precision, beyond which float64 decides
MAX_COPIED = 50_000_000  # parameters of a model that is copied into float64
ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-5}  # relative to the summed sizes of the parts
COARSE = 2e-2  # the same in other precisions
MAX_LOOKS = 3  # at batches of several sizes that stay uncut, until one shows what its parts give
MAX_LOSS_ROUNDING = 0.01  # relative difference of the loss in two precisions that is not mentioned
MAX_DRAWS = 64  # of a loss that draws, over which it is looked whether it is a sum
CLEAR_ERRORS = 6.0  # standard errors by which that has to be told
LIKELY_ERRORS = 4.0  # the same by which it may differ from the sum, or the mean, of its parts
REPEATS = 8  # evaluations of one batch that must agree where the loss is unusual, or its random numbers are fixed
MEAN, SUM, COUPLED, RANDOM = range(4)  # what a loss is, the more cautious the later


def rounding_of(model: nn.Module) -> float:
    """The relative difference of two losses of a model that rounding explains, by its coarsest precision."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max((ROUNDING.get(dtype, COARSE) for dtype in dtypes), default=ROUNDING[torch.float32])


@dataclass(frozen=True)
class PerSample:
    """A loss that is a sum over the batch and was taken for a mean: multiplied by what counts once too often."""

    function: Callable[..., Tensor]
    count: Callable[[Batch], float]

    def __call__(self, first: Any, batch: Batch) -> Tensor:
        """The function's value over the batch's samples or labels; 0 of a batch in which none counts."""
        return self.function(first, batch) / (self.count(batch) or 1.0)


def check_loss(
    problem: Problem, *, seed: int = 0, report: bool = True, total: Callable[[Tensor], Tensor] | None = None
) -> Problem:
    """The problem as it is to be evaluated, so that its value depends on no cut into batches and on no chance.

    seed    of the common random numbers of a loss that draws
    report  whether the notes go to the log; the commands print them
    total   adds a tensor up over the ranks of a team, each with its share of the samples: all of them call, evaluate
            alike, and raise as one; without it this rank decides alone

    Raises ValueError, with the measured values, where a loss is not repeatable even with fixed random numbers, where
    targets are no labels or probabilities, and where the model's labels are out of range; RuntimeError on the ranks of
    a team whose own share is not the reason.
    """
    if problem.checked:
        return problem
    told = [sentence for sentence in told_of(problem.data) if sentence not in problem.notes]
    problem = replace(problem, notes=(*problem.notes, *told))
    return _Agreement(total).checked(problem, seed, report)


@dataclass(frozen=True)
class _Agreement:
    """The check by all ranks of a team together, or by one rank alone, whose total is None."""

    total: Callable[[Tensor], Tensor] | None

    def checked(self, problem: Problem, seed: int, report: bool) -> Problem:
        """See `check_loss`."""
        looks: list[tuple[Problem, _Probe, int]] = []

        def look() -> int:
            looks.append(_look_within_memory(problem))
            return looks[0][2]

        kind = self.most_cautious(look)
        checked, probe, _ = looks[0]
        if kind == RANDOM:
            answers = (False, None, True)
            answer = answers[self.most_cautious(lambda: answers.index(probe.is_sum_on_average()))]
            checked = _as_sum(checked) if answer else _with_sums_told(checked, answer)
        treated: list[Problem] = []

        def treat() -> int:  # it raises where a random loss does not repeat
            treated.append(_treated(checked, probe, kind, seed))
            return kind

        self.most_cautious(treat)
        return_freed_memory(problem.model)
        if report:
            for note in treated[0].notes[len(problem.notes) :]:
                logger.warning("%s", note)
        return replace(treated[0], checked=True)

    def most_cautious(self, look: Callable[[], int]) -> int:
        """The largest kind that a rank sees; where one of them raises, all do."""
        if self.total is None:
            return look()
        failure: Exception | None = None
        message = torch.zeros(RANDOM + 2, dtype=torch.float64)
        try:
            message[look()] = 1.0
        except Exception as error:
            failure = error
            message[-1] = 1.0
        message = self.total(message)
        if failure is not None:
            raise failure
        if message[-1] > 0:
            raise RuntimeError(f"the check of the loss failed on {int(message[-1])} other rank(s), which say why")
        return int(message.nonzero().max())


def _look_within_memory(problem: Problem) -> tuple[Problem, _Probe, int]:
    """As `_look`, over as many samples as memory has room for, two at least."""
    most = MAX_SAMPLES
    while True:
        try:
            return _look(problem, most)
        except Exception as error:
            samples, can_be_cut = problem.data.samples, not isinstance(problem.data, FixedBatches)
            if not (out_of_memory(error) and min(most, samples) > 2 and can_be_cut) or loses_gpu(error):
                raise
            most = max(2, min(most, samples) // 2)
            reason = str(error).partition("\n")[0]
        _make_room(f"the loss is checked over {most} samples", reason)


def _make_room(what: str, reason: str) -> None:
    """After memory ran out, outside of the handler, whose error holds what was computed; and say what follows."""
    accelerators.release_cache()
    logger.warning("memory ran out (%s); %s", reason, what)


def _look(problem: Problem, most: int) -> tuple[Problem, _Probe, int]:
    """(the problem with the metrics that fit, its probe, what its loss is), by so many samples."""
    movable_parameters(problem.model)  # refuses a lazy module that has no parameters yet
    if any(p.is_meta for p in problem.model.parameters()):
        check_finite(problem.model, "the model")
    problem = _with_far_objects_watched(problem, few_samples(problem, most))
    problem = uncut_where_parts_fail(problem)
    problem = with_copied_batches(problem, few_samples(problem, most))
    find_merged_layers(problem, few_samples(problem, most))
    problem = with_gradients_recorded(problem, few_samples(problem, most), 5 * rounding_of(problem.model))
    problem = with_weight_checked(problem, few_samples(problem, most))
    probe = _Probe(problem, most)
    _refuse_stale_memo(problem, probe)
    refuse_aliases(problem, probe.own_batch, rounding_of(problem.model))
    if isinstance(problem.loss, SupervisedLoss) and takes_class_labels(problem.loss.loss):
        outputs = probe.outputs
        if isinstance(outputs, Tensor) and outputs.dim() > 1:
            ignored = getattr(problem.loss.loss, "ignore_index", -100)
            problem.loss.refuse(outputs, targets_of(probe.own_batch))
            notes = problem.loss.note_on(outputs, targets_of(probe.own_batch))
            data = labels_within(problem.data, outputs.shape[1], ignored)
            problem = replace(problem, data=data, notes=(*problem.notes, *notes))
            LabelsWithin(outputs.shape[1], ignored)(probe.own_batch)  # streamed ones are asked as they are read
    problem = _with_data_told(problem, probe)
    probe.own_loss = loss_that_leaves_nothing(problem, probe.own_batch)
    if probe.own_loss is None:
        problem, probe = _with_what_passes_leave(problem, probe)
    problem, probe, kind = _with_columns_of_a_sum(problem, probe, probe.kind())
    problem = _with_underflow_told(problem, probe)
    problem = _with_doubts_told(_with_means_told(problem, probe, kind))
    fitting = with_metrics_told(_with_metrics_that_fit(problem, probe), probe.own_batch)
    reported = _with_rounding_told(fitting, probe, kind)
    if (kind == COUPLED or reported.notes != fitting.notes) and not probe.is_repeatable(REPEATS):
        return fitting, probe, RANDOM  # neither batches nor rounding are the reason
    return reported, probe, kind


def _with_far_objects_watched(problem: Problem, batch: Batch) -> Problem:
    """The problem, what its passes change far from its loss looked after; with a note where there is more than that."""
    if not watch_what_is_far(problem, batch):
        return problem
    note = (
        f"the loss leads to more than {FAR.objects} objects, or more than {FAR.copied >> 20} MiB of tensors beside the "
        "model: what its passes change in the others stays changed; give it only what it needs"
    )
    return replace(problem, notes=(*problem.notes, note))


def _with_what_passes_leave(problem: Problem, probe: _Probe) -> tuple[Problem, _Probe]:
    """The problem whose passes do not read what others have left, or read it alike, and its probe."""
    carried = carried_state(probe.problem, probe.batch, probe.tolerance)
    if carried is not None:
        problem = _as_one_batch(problem, carried)
        return problem, _Probe(problem, probe.most)
    anew = with_nothing_kept(problem, probe.own_batch)
    if anew is not problem:
        problem, probe = anew, _Probe(anew, probe.most)
    problem = _with_counters_told(problem, probe)
    _refuse_first_batch(probe)
    return problem, probe


def _with_columns_of_a_sum(problem: Problem, probe: _Probe, kind: int) -> tuple[Problem, _Probe, int]:
    """The problem, its probe and kind; those of its batches by columns where parts of these alone show a sum.

    So do sequences and targets of each of their steps, with the time first, which is no number of samples.
    """
    is_whole = kind == COUPLED or (kind == MEAN and isinstance(problem.data, FixedBatches))
    columns = [by_columns(batch) for batch in _own_batches(problem).batches] if is_whole else [None]
    if any(batch is None for batch in columns) or _gives_weight(problem):
        return problem, probe, kind
    other = problem.with_data(FixedBatches(tuple(columns)))
    look = _Probe(other, probe.most)
    return (other, look, SUM) if look.kind() == SUM else (problem, probe, kind)


def _with_data_told(problem: Problem, probe: _Probe) -> Problem:
    """With notes on targets that are broadcast and on samples of NaN; a loss of outputs and such targets is refused."""
    notes, broadcast = [], None
    if not (isinstance(problem.loss, SupervisedLoss) and takes_class_labels(problem.loss.loss)):
        with same_random_state(20):
            broadcast = broadcast_targets(probe.total)
    if broadcast is not None and isinstance(problem.loss, SupervisedLoss):
        raise ValueError(f"{broadcast}; reshape the targets to the outputs' shape, such as y[:, None]")
    if broadcast is not None:
        notes.append(f"{broadcast}; where that is not meant, reshape them, such as y[:, None]")
    missing = missing_values(problem)
    if missing is not None:
        notes.append(missing)
    return replace(problem, notes=(*problem.notes, *notes))


def _refuse_stale_memo(problem: Problem, probe: _Probe) -> None:
    """Raises ValueError where an earlier pass has left something that is made of the weights, and is not made anew."""
    batch = probe.own_batch
    # of the model itself: nothing is kept yet for a copy in another precision
    tolerance = rounding_of(problem.model)
    name = stale_memo(problem, batch, tolerance)
    if name is not None:
        raise ValueError(
            f"the model keeps {name}, which an earlier pass made of its weights: it would be the same at all other "
            "points; delete it before the survey, or compute it in every pass; if it is meant to stay, make it a buffer"
        )
    name = stale_cache(problem, batch, tolerance) or kept_outside(
        problem, batch, tolerance, None if probe.problem is problem else probe.fresh_loss
    )
    if name is not None:
        raise ValueError(
            f"at other weights the loss is not that of a copy of the model with these weights: {name} keeps what an "
            "earlier pass made of the weights, which would be the same at all other points; compute it in every pass"
        )


def _refuse_first_batch(probe: _Probe) -> None:
    """Raises ValueError where the model sets something from the first batch, and the loss of others depends on it."""
    names = set_by_first_batch(probe.problem, probe.batch, probe.tolerance)
    if names is not None:
        raise ValueError(
            f"the model sets {names} from the first batch that it is given, as layers with a data-dependent "
            "initialisation do (ActNorm): at every point of a survey that would be done anew, from whatever batch "
            "comes first, over the weights that are to be read; give it a batch before the survey, in the mode in "
            "which it initialises (model.train(); model(x)), or load a checkpoint that has been initialised"
        )


def _with_counters_told(problem: Problem, probe: _Probe) -> Problem:
    """With a note on numbers that every call changes; as one batch, or refused, where the loss follows them."""
    batch = probe.batch
    if not isinstance(problem.data, FixedBatches):
        batch = map_tensors(lambda t: t[:2] if t.dim() else t, batch)  # what counts calls counts these too
    try:
        counters = moving_counters(probe.problem, batch, probe.tolerance)
    except (ValueError, RuntimeError, IndexError) as error:  # it does not bear so few samples
        raise_if_of_device(error)
        counters = moving_counters(probe.problem, probe.batch, probe.tolerance)
    if counters is None:
        return problem
    if counters.changes and counters.is_put_back:
        return _as_one_batch(problem, str(counters))
    if counters.changes:
        raise ValueError(
            f"the loss is not repeatable: one batch gave {counters.low:.8g}, then {counters.high:.8g}, as it changes "
            f"with {counters}, which every call changes; count no calls, or fix what they change before the survey"
        )
    note = (
        f"every call changes {counters}; the loss of a few samples was the same {counters.calls} times and is taken "
        "for one that does not depend on it"
    )
    return replace(problem, notes=(*problem.notes, note))


def _treated(problem: Problem, probe: _Probe, kind: int, seed: int) -> Problem:
    """The problem as a loss of this kind is evaluated."""
    if kind == RANDOM:
        return _with_common_random_numbers(problem, seed, min(5 * probe.tolerance, 1e-3), probe.moved is not None)
    if kind == COUPLED:
        return _with_own_batches(problem, probe)
    return _as_sum(problem) if kind == SUM else problem


def _with_means_told(problem: Problem, probe: _Probe, kind: int) -> Problem:
    """With a note where batches stay uncut, and the loss of one is no mean over what they count by.

    So it is with a mean over tokens or nodes, that gives no weight: it is another number than the mean over all tokens.
    """
    if kind != MEAN or not isinstance(problem.data, FixedBatches):
        return problem
    if len(problem.data.batches) == 1 and not _if_declared(problem):
        return problem
    whole, cuts = probe.within_a_batch()
    for parts in cuts:
        weights = sum(weight for _, weight in parts)
        mean = sum(value * weight for value, weight in parts) / (weights or 1.0)
        if abs(whole - mean) > 10 * probe.tolerance * max(abs(value) for value, _ in parts):
            note = (
                f"the loss of a batch is not a mean over its samples or weights ({whole:.6g} together, {mean:.6g} in "
                "two parts): the mean over the batches weighs each by these; a mean over tokens or nodes is right "
                "where the loss returns (mean, weight), with their number as its weight"
            )
            note += _if_declared(problem)
            return replace(problem, notes=(*problem.notes, note))
    return problem if cuts else _with_counts_told(problem)


def _with_doubts_told(problem: Problem) -> Problem:
    """With a note where batches may count otherwise than they should, and the loss gives no weight."""
    doubt = problem.data.doubt if isinstance(problem.data, FixedBatches) else ""
    if not doubt or not isinstance(problem.forward, CustomLoss) or _gives_weight(problem):
        return problem
    return replace(problem, notes=(*problem.notes, doubt))


def _with_counts_told(problem: Problem) -> Problem:
    """With a note on the weights of batches of which no part can be evaluated, if their structure alone shows them."""
    batches = list(problem.data)
    counts = {samples_in(batch) for batch in batches}
    if _is_known(problem) or len(counts) == 1 or all(map(is_counted_otherwise, batches)) or _gives_weight(problem):
        return problem
    note = (
        f"each batch counts by its samples as its structure shows them ({listed_counts(batches)}), and the loss is "
        "taken for their mean: it gives no weight, and no part of a batch can be evaluated, which would tell; where it "
        "is a mean over anything else, return (mean, weight), and where it is a sum, take reduction='sum'"
    )
    return replace(problem, notes=(*problem.notes, note))


def _with_sums_told(problem: Problem, is_sum: bool | None) -> Problem:
    """With a note where parts of a batch do not tell whether a loss that draws at random is a mean or a sum."""
    declared = _if_declared(problem)
    if is_sum is False or _gives_weight(problem) or (_is_known(problem) and not declared):
        return problem
    note = "parts of a batch do not show whether the loss, which draws at random, is the mean over its samples or a sum"
    taken = (
        f"; it is taken for a mean, and each batch counts by its {_counted(problem)[0]}: where it is a sum, take "
        "reduction='sum'"
    )
    return replace(problem, notes=(*problem.notes, note + (declared or taken)))


def _if_declared(problem: Problem) -> str:
    """What a note adds where a loss of somebody's own is said to be a sum, and is taken for one; else nothing."""
    function: Any = problem.loss.loss if isinstance(problem.loss, SupervisedLoss) else _custom(problem)
    if function is None or is_of_pytorch(function) or getattr(function, "reduction", None) != "sum":
        return ""
    return (
        "; it is taken for a sum, as reduction='sum' says: where it is a mean, leave that out, or give a function that "
        "calls it"
    )


def _custom(problem: Problem) -> CustomLoss | None:
    """The loss of `Problem.custom`, also within what lets it be evaluated anew; None of another problem."""
    function: Any = problem.forward
    while not isinstance(function, CustomLoss) and hasattr(function, "function"):
        function = function.function
    return function if isinstance(function, CustomLoss) else None


def _is_known(problem: Problem) -> bool:
    """Whether a loss is one by name or of PyTorch's, or said to be a sum."""
    custom = _custom(problem)
    if custom is not None:
        return custom.reduction == "sum"
    return isinstance(problem.loss, SupervisedLoss) and is_of_pytorch(problem.loss.loss)


def _with_underflow_told(problem: Problem, probe: _Probe) -> Problem:
    """With a note where the loss of a few samples is 0 since its terms are below the smallest number."""
    if probe.whole != 0:
        return problem
    with same_random_state(20):
        note = underflow(probe.total)
    return problem if note is None else replace(problem, notes=(*problem.notes, note))


def _with_rounding_told(problem: Problem, probe: _Probe, kind: int) -> Problem:
    """With a note where the model's precision gives another loss of a few samples than float64."""
    if kind == RANDOM or probe.problem is probe.original or probe.is_alike_in_float64:
        return problem
    value, exact = probe.mean_in_both()
    if not np.isfinite(exact) or abs(value - exact) <= MAX_LOSS_ROUNDING * abs(exact):
        return problem
    note = (
        f"the loss of {probe.samples} samples is {value:.6g} in the model's precision and {exact:.6g} in float64: "
        "either rounding shows in it, and --precision float64 reads it right, or the model is another function there, "
        "since it asks for its precision (x.dtype) or compares inputs with rounded numbers (x == -9.9), "
        "or since its copies leave something out"
    )
    return replace(problem, notes=(*problem.notes, note))


class _Probe:
    """A few samples, and the loss summed over any of them."""

    def __init__(self, problem: Problem, most: int = MAX_SAMPLES) -> None:
        self.original, self.most = problem, most
        self.batch = self.own_batch = few_samples(problem, most)
        self.samples = samples_in(self.batch)
        with temporary_parameters(problem.model, {}), torch.enable_grad(), same_random_state(20):
            self.weight = problem.count(self.batch)  # over which its loss is a mean
        self.problem = problem
        self.known: dict[bool, float] = {}  # losses that were read before, by whether at weights moved at random
        self.own_loss: float | None = None  # in the model's own precision, where it is known
        twin = _in_float64(problem, self.batch)
        if twin is not None:
            self.problem, self.batch, self.known[False] = twin
        self.tolerance = rounding_of(self.problem.model)
        self.moved: MovedWeights | None = None  # weights at which the loss is looked at; else the model's own

    def total(self, indices: list[int] | None = None) -> float:
        """The summed loss of these samples, or of all; NaN where it fails on them, as batch norm does on one."""
        batch = self.batch
        if indices is not None:
            batch = map_tensors(lambda t: t[indices] if t.dim() else t, self.batch)
        with self._borrowed(), torch.enable_grad():  # it may differentiate by its inputs
            return float(self.problem.total(batch).detach())

    @cached_property
    def moved_weights(self) -> MovedWeights:
        """The model at other weights."""
        return MovedWeights(self.problem.model)

    def fresh_loss(self) -> float:
        """The loss at other weights; by the copy, where there is one, which has seen no pass of the model itself."""
        with self.moved_weights.borrowed(), same_random_state(20):
            self.known[True] = float(self.problem.total(self.batch).detach())
        return self.known[True]

    @property
    def is_alike_in_float64(self) -> bool:
        """Whether the losses that are known in both precisions differ by far less than is mentioned."""
        own, exact = self.own_loss, self.known.get(False)
        return own is not None and exact is not None and abs(own - exact) <= 0.1 * MAX_LOSS_ROUNDING * abs(exact)

    @property
    def is_smallest(self) -> bool:
        """Whether fewer samples cannot be looked at."""
        return self.samples <= 2 or isinstance(self.original.data, FixedBatches)

    def _borrowed(self) -> AbstractContextManager[Any]:
        """The model at its own weights, or at those moved at random."""
        return temporary_parameters(self.problem.model, {}) if self.moved is None else self.moved.borrowed()

    def _kept(self) -> AbstractContextManager[None]:
        """Passes over the copy are cheaper inside, and the same; those of the model itself are as they are outside."""
        return nullcontext() if self.problem is self.original else borrowed_once(self.problem.model)

    def mean_in_both(self) -> tuple[float, float]:
        """The mean loss of these samples by the model as it is, and by its float64 copy, as surveys compute them."""
        means = []
        for problem, batch in ((self.original, self.own_batch), (self.problem, self.batch)):
            with temporary_parameters(problem.model, {}), torch.enable_grad(), stable_forms(), same_random_state(20):
                means.append(float(problem.total(batch).detach()) / (self.weight or 1.0))
        return means[0], means[1]

    @cached_property
    def outputs(self) -> Any:
        """What the model gives for the samples."""
        with temporary_parameters(self.problem.model, {}), torch.no_grad(), same_random_state(0):
            return self.problem.forward(self.problem.model, self.batch)

    def is_repeatable(self, evaluations: int = 2) -> bool:
        """Whether evaluations of one batch agree, and the last of them drew no random number.

        One that draws may agree all the same, as where a layer is left out once in a hundred times.
        """
        # what they draw leaves the user's generators alone, and differs from one evaluation to the next
        former = self.known.get(self.moved is not None)
        values = [] if former is None else [former]
        with same_random_state(20):
            values += [self.total() for _ in range(evaluations - 1 - len(values))]
            before = random_states()
            values.append(self.total())
            draws = before != random_states()
        self.whole = values[-1]
        finite = [v for v in values if np.isfinite(v)]
        if len(finite) < len(values):
            return True  # a loss that is not finite is a result, and says nothing of chance
        return not draws and max(values) - min(values) <= self.tolerance * max(abs(v) for v in values)

    def kind(self) -> int:
        """What the loss is, as far as these samples show it at the model's own weights and at others.

        Where it shows at the others alone, what is evaluated later is evaluated there.
        """
        with self._kept():
            kind = self._kind_here()
            if kind in (COUPLED, RANDOM):
                return kind
            own = self.whole
            try:
                self.moved = self.moved_weights
                elsewhere = self._kind_here(cuts=1)
            except ChangedModelError:
                raise
            except Exception as error:  # such weights may be none for this model: nothing is known there
                if loses_gpu(error) or (out_of_memory(error) and not self.is_smallest):
                    raise
                elsewhere = MEAN
            self.whole = own
        if elsewhere <= kind:
            self.moved = None
        vars(self).pop("moved_weights", None)  # of a large model they are as much as it
        kind = max(kind, elsewhere)
        return COUPLED if kind in (MEAN, SUM) and not self._is_additive_in_large(kind) else kind

    def _is_additive_in_large(self, kind: int) -> bool:
        """Whether a batch as large as the loader's is the sum of its parts, too.

        A loss may couple large batches alone: the mean over the 20 worst samples is that over all of 16. In the model's
        own precision first, and where that disagrees in float64; then what is evaluated later is this batch.
        """
        data = self.original.data
        parameters = sum(p.numel() for p in self.original.model.parameters())
        inputs = sum(t.numel() for t in pytree.tree_leaves(self.batch) if isinstance(t, Tensor)) / self.samples
        most = MANY_SAMPLES if parameters * inputs <= CHEAP else SOME_SAMPLES
        size = min(data.samples, data.batch_size, most)
        while size > self.samples and not isinstance(data, FixedBatches):
            try:
                return self._is_additive_over(size, kind)
            except Exception as error:
                if not out_of_memory(error) or loses_gpu(error):
                    raise
                reason = str(error).partition("\n")[0]
            size //= 2
            _make_room(f"whether the loss is a sum over samples is looked at over {max(size, self.samples)}", reason)
        return True

    def _is_additive_over(self, size: int, kind: int) -> bool:
        """Whether a batch of this size is the sum of its two parts, of a loss that is a mean or, by kind, a sum."""
        batch = next(iter(self.original.data.rebatched(size)))
        own = batch
        for problem, tolerance in ((self.original, OWN_TOLERANCE), (self.problem, self.tolerance)):
            if problem is not self.original:
                batch = map_tensors(for_float64, batch)
            taken = _as_sum(problem) if kind == SUM else problem
            try:
                whole, *parts = [_total_of(taken, batch, rows) for rows in (slice(size), *_thirds(size))]
            except (ValueError, RuntimeError, IndexError) as error:
                raise_if_of_device(error)
                return True  # it bears no such batch, and none larger than it is given
            if _agree(whole, sum(parts), parts, tolerance):
                return True
        self.batch, self.own_batch, self.samples, self.known = batch, own, size, {}
        with temporary_parameters(self.original.model, {}), torch.enable_grad(), same_random_state(20):
            self.weight = self.original.count(own)  # which counts by that model
        return False

    def _kind_here(self, cuts: int = 2) -> int:
        if not self.is_repeatable():
            return RANDOM
        if isinstance(self.original.data, FixedBatches):
            return SUM if self.is_sum_within_a_batch() else MEAN
        if not np.isfinite(self.whole):
            return COUPLED if self.moved is None and self._is_finite_as_given() else MEAN
        if self.samples < 2 or self.is_additive(cuts):
            return MEAN
        return SUM if self.is_sum() else COUPLED

    def _is_finite_as_given(self) -> bool:
        """Whether the loader's own batches have a finite loss, though a few samples of several of them have none."""
        problem, data = self.original, self.original.data
        if not isinstance(data, Resident):
            return False
        with temporary_parameters(problem.model, {}), torch.enable_grad(), same_random_state(20):
            return all(bool(problem.total(batch).detach().isfinite()) for batch in data.uncut())

    def is_sum_within_a_batch(self) -> bool:
        """Whether the function gives a sum of parts of the largest batch that stays uncut, as far as it has parts."""
        whole, cuts = self.within_a_batch()
        values = [[value for value, _ in parts] for parts in cuts]
        return bool(cuts and whole) and all(self._agree(whole, sum(parts), parts) for parts in values)

    def within_a_batch(self) -> tuple[float, list[list[tuple[float, float]]]]:
        """The function's value for the largest batch that stays uncut, and (value, weight) of its parts for two cuts.

        Of a smaller one where the parts of that have no value; no cut where it has none, or none with a value.
        """
        batches = {samples_in(batch): batch for batch in self.original.data}
        largest = sorted(batches, reverse=True)[:MAX_LOOKS]
        looks = (self._within(batches[size], dim) for size in largest for dim in _dims_of_samples(batches[size], size))
        return next((look for look in looks if look[1]), (0.0, []))

    def _within(self, batch: Batch, dim: int) -> tuple[float, list[list[tuple[float, float]]]]:
        if self.problem is not self.original:
            batch = map_tensors(for_float64, batch)
        n = min(samples_in(batch), self.most)
        if n < 2:
            return 0.0, []
        try:
            whole, _ = self._value(rows_within(batch, 0, n, dim))
            ends = [((0, k), (k, n)) for k in (n // 2, (n + 2) // 3)]
            cuts = [[self._value(rows_within(batch, *part, dim)) for part in parts] for parts in ends]
        except Exception as error:  # somebody's own loss may raise anything of a part of a batch
            raise_if_of_device(error)
            return 0.0, []
        return (
            (whole, cuts) if np.isfinite([whole, *(value for parts in cuts for value, _ in parts)]).all() else (0.0, [])
        )

    def _value(self, batch: Batch) -> tuple[float, float]:
        """What the user's function gives for a batch, a mean or a sum, and the weight; 0 of one without weight."""
        problem = self.problem.over(self.problem.model)  # which counts by that model, in its precision, too
        with self._borrowed(), torch.enable_grad(), same_random_state(20):
            weight = problem.count(batch)
            return float(self.problem.total(batch).detach()) / (weight or 1.0), weight

    def parts(self, cuts: int) -> list[tuple[float, list[float]]]:
        """The whole, and the values of its parts, for so many cuts, one or two."""
        n = self.samples
        order = torch.randperm(n, generator=generator("loss check", n)).tolist()
        alone = [[i] for i in sorted({0, n // 2, n - 1})]  # the last sample among them
        rest = [i for i in range(n) if [i] not in alone]
        ways = [[order[: n // 3], order[n // 3 :]], [*alone, rest]]
        return [(self.whole, [self.total(part) for part in way if part]) for way in ways[:cuts]]

    def is_additive(self, cuts: int = 2) -> bool:
        """Whether the sum over a batch is the sum over its parts."""
        try:
            return all(self._agree(whole, sum(parts), parts) for whole, parts in self.parts(cuts))
        except (ValueError, RuntimeError, IndexError) as error:  # it does not bear a batch of one
            raise_if_of_device(error)
            return False

    def is_sum(self) -> bool:
        """Whether the function behind is itself a sum: taken for a mean, it was multiplied by the batch's weight."""
        n = self.samples
        try:
            singles = [self._value(_rows(self.batch, [i]))[0] for i in range(n)]
            half = [self._value(_rows(self.batch, list(range(*part))))[0] for part in ((0, n // 2), (n // 2, n))]
        except (ValueError, RuntimeError, IndexError) as error:
            raise_if_of_device(error)
            return False
        whole, _ = self._value(self.batch)
        return self._agree(whole, sum(singles), singles) and self._agree(whole, sum(half), half)

    def is_sum_on_average(self) -> bool | None:
        """Whether the function behind, which draws at random, is the sum of a batch's parts; None where none tell it.

        It is not where it is, over draws, the mean of the batch's quarters; and it is where it is the sum of these and
        of the batch's samples: a contrastive loss grows with a batch as well.
        """
        batch = self.batch
        if isinstance(self.original.data, FixedBatches):
            batch = max(self.original.data, key=samples_in)
            batch = batch if self.problem is self.original else map_tensors(for_float64, batch)
        n = min(samples_in(batch), self.most)
        for dim in _dims_of_samples(batch, samples_in(batch)) if n > 1 else ():
            try:
                is_sum = self._is_sum_of_parts(batch, sorted({k * n // 4 for k in range(5)}), dim)
                return is_sum and self._is_sum_of_parts(batch, list(range(n + 1)), dim)
            except Exception as error:  # somebody's own loss may raise anything of a part of a batch
                raise_if_of_device(error)
        return None if n > 1 else False

    def _is_sum_of_parts(self, batch: Batch, ends: list[int], dim: int) -> bool | None:
        """The same of the parts that end there, by as many draws as tell, if `MAX_DRAWS` do."""
        parts = [rows_within(batch, *part, dim) for part in ((0, ends[-1]), *pairwise(ends))]
        rows: list[list[float]] = []
        while len(rows) < MAX_DRAWS:
            rows += [[self._drawn(part, seed) for part in parts] for seed in range(len(rows), max(8, 2 * len(rows)))]
            whole, *values = np.array(rows).T
            total, mean = np.sum(values, axis=0), np.dot(np.diff(ends), values) / ends[-1]
            above, apart = _in_errors(whole - (total + mean) / 2.0), _in_errors(total - mean)
            if min(abs(above), abs(apart)) <= CLEAR_ERRORS:
                continue
            near = mean if above * apart < 0.0 else total
            if abs(_in_errors(whole - near)) < LIKELY_ERRORS or self._agree(whole.mean(), near.mean(), []):
                return near is total
        return None

    def _drawn(self, batch: Batch, seed: int) -> float:
        """What the user's function gives for a batch with the random numbers of a seed."""
        problem = self.problem.over(self.problem.model)
        with self._borrowed(), torch.enable_grad(), same_random_state(seed):
            return float(self.problem.total(batch).detach()) / (problem.count(batch) or 1.0)

    def _agree(self, whole: float, total: float, parts: list[float]) -> bool:
        return _agree(whole, total, parts, self.tolerance)


def _in_errors(values: NDArray[Any]) -> float:
    """A mean in its standard errors; infinite where all are alike, and 0 where one is not finite."""
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    if not np.isfinite([mean, error]).all() or mean == 0.0:
        return 0.0
    return mean / error if error > 0.0 else copysign(inf, mean)


def _agree(whole: float, total: float, parts: list[float], tolerance: float) -> bool:
    """Whether a whole is the total of its parts but for rounding; one that is not finite says nothing."""
    gap = abs(whole - total)
    return not np.isfinite(whole) or gap <= tolerance * max(abs(whole), sum(abs(p) for p in parts))


def _thirds(size: int) -> tuple[slice, slice]:
    """The rows of a batch of this size in two parts, of a third and two."""
    return slice(size // 3), slice(size // 3, size)


def _total_of(problem: Problem, batch: Batch, rows: slice) -> float:
    """The summed loss of some rows of a batch, as surveys compute it."""
    part = map_tensors(lambda t: t[rows] if t.dim() else t, batch)
    mode = torch.no_grad() if problem.separable else torch.enable_grad()
    with temporary_parameters(problem.model, {}), mode, stable_forms("losses"), same_random_state(20):
        return float(problem.total(part).detach())


def few_samples(problem: Problem, most: int = MAX_SAMPLES) -> Batch:
    """The first and the last samples of the data in one batch, and some that differ from them among them.

    Those have ignored targets or NaN, or a class, or another number of their own, that the others do not have:
    `most` at most.
    """
    data = problem.data
    if isinstance(data, FixedBatches):
        return problem.first_that_counts(data)
    if data.samples <= most:
        return next(iter(data.rebatched(data.samples)))
    half, last = most // 2, data.samples
    if isinstance(data, Resident):
        unusual = unusual_rows(data, most // 4)
        ends = [*range(half), *range(last - half, last)]
        unusual += rare_rows(data.tensors, last, ends, most // 4)
        side = (most - len(unusual)) // 2
        rows = sorted({*range(side), *unusual, *range(last - side, last)})
        return _rows(data.tensors, rows)
    batch = _both_ends(data, half)
    if isinstance(data, Streamed) and all_alike(batch, most):
        spread = torch.linspace(0, last - 1, min(last, LOOKED_AT)).round().long().tolist()
        more = replace(data, indices=[data.indices[i] for i in spread]).rebatched(len(spread))
        seen = next(iter(more))
        rows = rare_rows(seen, len(spread), [0, len(spread) - 1], half)
        if rows:
            return _joined(_rows(batch, list(range(most - len(rows)))), _rows(seen, rows))
    return batch


def rows_within(batch: Batch, first: int, last: int, dim: int = 0) -> Batch:
    """Some samples of a batch that is not to be cut for good: of its tensors with a row for each, or of its graphs.

    dim  along which they stand where two dimensions of a tensor are as long: 1 where the time is the first
    """
    n = samples_in(batch)

    def is_graphs(part: Any) -> bool:  # of torch_geometric
        return hasattr(part, "to_data_list") and samples_in(part) == n

    if are_entries(batch):
        return some_entries(batch, first, last)

    def is_list_of_samples(part: Any) -> bool:
        if are_entries(part) or is_graphs(part):
            return True
        is_as_long = part is not batch and isinstance(part, (tuple, list)) and len(part) == n
        return is_as_long and n not in lengths_of(part)  # else each tensor in it has a row for each sample

    def cut(part: Any) -> Any:
        if is_graphs(part):
            return open_batch(type(part).from_data_list(part.to_data_list()[first:last]))
        if isinstance(part, (tuple, list)):
            return some_entries(part, first, last) if are_entries(part) else part[first:last]
        dims = [i for i, size in enumerate(part.shape[:2]) if size == n] if isinstance(part, Tensor) else []
        return part.narrow(dim if dim in dims else dims[0], first, last - first) if dims else part

    is_list = isinstance(batch, (tuple, list)) and len(batch) == n and told_count(batch) is None
    if is_list and not any(isinstance(part, Tensor) or are_entries(part) or is_graphs(part) for part in batch):
        return batch[first:last]
    part = rebuilt(cut, batch, is_leaf=is_list_of_samples)
    return part if told_count(batch) is None else counted(part, last - first)


def _dims_of_samples(batch: Batch, n: int) -> tuple[int, ...]:
    """The dimensions along which the n samples of a batch may stand, of a tensor that is as long in both."""
    tensors = (t for t in pytree.tree_leaves(batch) if isinstance(t, Tensor))
    if not any(t.shape[:2] == (n, n) for t in tensors):
        return (0,)
    return (0, 1) if told_count(batch) is None else (1, 0)


def _rows(batch: Batch, rows: list[int]) -> Batch:
    """These samples of a batch."""
    return map_tensors(lambda t: t[rows] if t.dim() else t, batch)


def _both_ends(data: Batches, half: int) -> Batch:
    """The first and the last samples; the first alone where they do not join, as padded to another width."""
    parts = data.samples // half
    ends = [next(iter(data.share(part, parts).rebatched(half))) for part in (0, parts - 1)]
    try:
        return _joined(*ends) if all(map(is_even, ends)) else ends[0]
    except (RuntimeError, ValueError):
        return ends[0]


def _joined(first: Batch, other: Batch) -> Batch:
    """The samples of two batches in one."""
    return rebuilt(lambda a, b: torch.cat([a, b]) if isinstance(a, Tensor) and a.dim() else a, first, other)


def _in_float64(problem: Problem, batch: Batch) -> tuple[Problem, Batch, float] | None:
    """The problem over a copy of its model in float64, the batch and its loss; None where they do not bear that."""
    parameters = list(problem.model.parameters())
    if sum(p.numel() for p in parameters) > MAX_COPIED or any(p.dtype == torch.float64 for p in parameters):
        return None
    try:
        twin = replace(problem, model=copy_of(problem.model, torch.float64))
        wide = map_tensors(for_float64, batch)
        look = first_look(twin, problem.model, wide)
    except Exception:  # somebody's own forward may raise anything
        return None
    return None if look.value.dtype != torch.float64 or look.is_held else (twin, wide, float(look.value))


def _with_common_random_numbers(problem: Problem, seed: int, tolerance: float, is_moved: bool = False) -> Problem:
    """The same random numbers at every evaluation, the loader's own batches uncut: one fixed realisation.

    Raises ValueError where evaluations of a batch differ by more than the tolerance, relative to the largest, for all
    that: they are more than two, since two of a loss that varies little may agree by chance.
    """
    own = _own_batches(problem)
    data = replace(own, batches=marked(own.batches))
    note = (
        f"the loss draws at random: each batch has random numbers of its own, made from seed {seed} and the same at "
        "every evaluation, so that surface and curvature are those of one fixed realisation, or, of surface, eigenmap "
        "and connect with --noise-repeats R, the mean of R with its standard error"
    )
    fixed = replace(with_noise_seed(problem, seed), data=data, notes=(*problem.notes, note))
    batch = next(iter(data))
    model = problem.model
    with MovedWeights(model).borrowed() if is_moved else temporary_parameters(model, {}), torch.enable_grad():
        values = [float(fixed.total(batch).detach()) for _ in range(REPEATS)]
    low, high = min(values), max(values)
    if np.isfinite(values).all() and high - low > tolerance * max(abs(low), abs(high)):
        raise ValueError(
            f"the loss is not repeatable: one batch gave {low:.8g}, then {high:.8g}, also from the same state of the "
            "generators of torch, NumPy and Python; draw from these in place of a generator of its own, count no "
            "calls, or make it deterministic in evaluation mode"
        )
    return fixed


def _gives_weight(problem: Problem) -> bool:
    """Whether the loss gives a batch's weight beside its value."""
    if not isinstance(problem.forward, CustomLoss):
        return False
    with temporary_parameters(problem.model, {}), torch.enable_grad(), same_random_state(20):
        return gives_weight(problem.forward.loss, problem.model, next(iter(_own_batches(problem))))


def _as_sum(problem: Problem) -> Problem:
    """The loss divided by the batch's samples or labels, or by the weight that it gives, since it is their sum."""
    by = "weights that it gives" if _gives_weight(problem) else _counted(problem)[0]
    note = f"the loss function returns the sum over the batch (reduction='sum'); it is divided by the {by}"
    name = "loss" if problem.separable else "forward"
    function = getattr(problem, name)
    if isinstance(function, CustomLoss):
        return replace(problem, notes=(*problem.notes, note), forward=replace(function, reduction="sum"))
    changed: dict[str, Any] = {name: PerSample(function, problem.count)}
    return replace(problem, notes=(*problem.notes, note), **changed)


def _counted(problem: Problem) -> tuple[str, Callable[[Batch], float]]:
    """What the batches of a problem count by that gives no weight, in a word, and its number in a batch."""
    if problem.count is samples_in or _custom(problem) is not None:
        return "samples", samples_in
    return "labels", problem.count


def _with_own_batches(problem: Problem, probe: _Probe) -> Problem:
    """The loader's own batches, uncut, since the loss of a batch is no mean over its samples."""
    data = _own_batches(problem)
    word, count = _counted(problem)
    by = f"its {word} ({listed_counts(data.batches, count)})"
    if _gives_weight(problem):
        by = "the weight that the loss gives"
    taken = " where it is taken for their sum" if _if_declared(problem) else ""
    note = (
        f"{NO_MEAN}{taken} (" + _measured(probe) + "): it is evaluated on the "
        f"{len(data.batches)} batches as given, of {data.batch_size} samples at most, uncut; each counts by {by}"
        + _advice(problem, probe)
    )
    fixed = replace(problem, data=data, notes=(*problem.notes, note))
    _evaluate_smallest(fixed)
    return fixed


def _as_one_batch(problem: Problem, carried: str) -> Problem:
    """The samples as the one batch that they are given in. Raises ValueError where they are several."""
    data = _own_batches(problem)
    number = len(data.batches)
    if number > 1:
        raise ValueError(
            f"the model, or what its loss uses, carries a state from batch to batch ({carried}): over {number} batches "
            "its loss depends on how they are cut and on their order; set it anew at the beginning of the forward "
            "pass, change it where `model.training` alone, or give all samples as one batch"
        )
    note = (
        f"the model, or what its loss uses, carries a state from batch to batch ({carried}): it is evaluated on the "
        "one batch given, uncut"
    )
    return replace(problem, data=data, notes=(*problem.notes, note))


def _evaluate_smallest(problem: Problem) -> None:
    """Raises ValueError where the smallest of several batches fails: a last one that is too small for the model."""
    batches = list(problem.data)
    smallest = min(batches, key=samples_in)
    if samples_in(smallest) == samples_in(batches[0]):
        return
    try:
        with temporary_parameters(problem.model, {}), torch.enable_grad(), same_random_state(0):
            problem.total(smallest)
    except (ValueError, RuntimeError, IndexError, MemoryError) as error:
        advice = (
            "give smaller batches" if out_of_memory(error) else "give batches of equal size, or take drop_last=True"
        )
        raise ValueError(
            f"the loss needs its batches uncut, and fails on the smallest of them, of {samples_in(smallest)} of "
            f"{problem.data.samples} samples: {str(error).partition(chr(10))[0]}; {advice}"
        ) from error


def _advice(problem: Problem, probe: _Probe) -> str:
    """What would let the batches be cut: no declared sum, or classes and ignored targets that are known."""
    if declared := _if_declared(problem):
        return declared
    if grows := _if_like_a_sum(probe):
        return grows
    function = problem.loss.loss if isinstance(problem.loss, SupervisedLoss) else None
    if function is None or isinstance(function, (str, torch.nn.Module)):
        return ""
    targets = targets_of(probe.own_batch)
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return ""
    return "; class weights and ignored targets may be cut where they are given by nn.CrossEntropyLoss"


def _if_like_a_sum(probe: _Probe) -> str:
    """What is said of a function whose value grows with the batch nearly as a sum does, as one with a penalty."""
    n = probe.samples
    try:
        whole, *halves = (
            probe.total(rows) / len(rows) for rows in map(list, (range(n), range(n // 2), range(n // 2, n)))
        )
        alone = sum(probe.total([i]) for i in range(n)) / n
    except (ValueError, RuntimeError, IndexError) as error:
        raise_if_of_device(error)
        return ""
    grows = 0.8 * sum(halves) <= whole <= 1.2 * sum(halves) and 0.5 * n * alone <= whole <= 2.0 * n * alone
    if not (n >= 8 and whole > 0.0 and grows):
        return ""
    return (
        "; it grows with the batch as a sum does: where it is one, with a penalty beside, say so by reduction='sum', "
        "of Problem.custom or as an attribute of the loss (the penalty then counts once for each batch)"
    )


def _measured(probe: _Probe) -> str:
    n = probe.samples
    whole = probe.total() / (probe.weight or 1.0)
    try:
        mean = sum(probe.total([i]) for i in range(n)) / (probe.weight or 1.0)
    except (ValueError, RuntimeError, IndexError) as error:
        return f"{n} samples give {whole:.6g}, one alone fails: {str(error).splitlines()[0]}"
    where = ", at weights moved at random" if probe.moved else ""
    digits = next((d for d in (6, 9, 12) if f"{whole:.{d}g}" != f"{mean:.{d}g}"), 17)
    return f"{n} samples together {whole:.{digits}g}, one by one {mean:.{digits}g}{where}"


def _own_batches(problem: Problem) -> FixedBatches:
    data = problem.data
    if isinstance(data, FixedBatches):
        return data
    if isinstance(data, Resident):
        return data.uncut()
    return FixedBatches(tuple(data))


def _with_metrics_that_fit(problem: Problem, probe: _Probe) -> Problem:
    """Without the accuracy where it is none: outputs that are not (N, C > 1), or targets that are no class indices."""
    others = {name: m for name, m in problem.metrics.items() if not isinstance(m.total, CorrectClasses)}
    if len(others) == len(problem.metrics):
        return problem
    outputs = probe.outputs
    if isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] > 1:
        known = isinstance(problem.loss, SupervisedLoss) and takes_class_labels(problem.loss.loss)  # its labels fit
        if known or int(targets_of(probe.batch).max()) < outputs.shape[1]:
            return problem
    return replace(problem, metrics=others)
