"""Problems with targets drawn from the model's own predictive distribution: what the Monte-Carlo Fisher matrix is of.

Which distribution a loss implies is read off its second derivative by the outputs, which for each entry e must be

    categorical   c_e (diag p - p p^T), p = softmax(f)      cross entropy of logits, of labels or probabilities
    Bernoulli     c_e p (1 - p), p = sigmoid(f)             binary cross entropy with logits
    Gaussian      c_e                                       squared errors; the variance is 1 / c_e

c_e holds what weighs an entry: class weights, targets that are ignored, the mean over pixels or tokens. It is measured
at the outputs 0, and the form compared with products of the second derivative there and elsewhere, in float64: so that
any other loss, and one that couples the samples of a batch, is refused, whatever it is called.

The numbers of a draw come from the seed, the draw and the sample's number in the data (Philox, Salmon et al. 2011,
doi:10.1145/2063384.2063405), so that they are the same whatever the batches and ranks. The probabilities are computed
in float64 where the model runs in it. Price: a forward pass over the data, five gradients of the loss at the outputs.
Sources: Martens (2020), arXiv:1412.1193, sections 5 and 9; Kunstner et al. (2019), arXiv:1905.12558.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lossmap.curvature.double_backward import twice_differentiable
from lossmap.curvature.operators import outputs_and_loss
from lossmap.curvature.vector_jacobian import vector_jacobian
from lossmap.data.batches import Batch, Batches, FixedBatches, Resident, Streamed, map_tensors, move_batch
from lossmap.data.borrow import copy_of, temporary_parameters
from lossmap.data.criteria import SupervisedLoss
from lossmap.data.drawn_loss import (
    BERNOULLI,
    CATEGORICAL,
    GAUSSIAN,
    Distribution,
    DrawnCount,
    DrawnForward,
    DrawnLoss,
    Draws,
)
from lossmap.data.huggingface import SummedLoss
from lossmap.data.problem import Problem
from lossmap.data.sample_count import samples_in
from lossmap.seeding import generator
from lossmap.sums import float64_device, in_float64

MAX_DOUBLED_ENTRIES = 1 << 23  # of a model that is copied in float64 to draw from
MAX_MISMATCH = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the second derivative and its form, relative
LossOf = Callable[[Tensor], Tensor]


def with_drawn_targets(problem: Problem, draws: Draws | None = None) -> Problem:
    """The problem at targets drawn from its model, whose Fisher matrix (`operators.fisher`) is the Monte-Carlo one.

    draws  by default the problem's own

    Raises ValueError, naming the loss, where it implies no distribution known here.
    """
    draws = problem.draws if draws is None else draws
    if draws.count < 1:
        raise ValueError(f"the draws of each sample must be >= 1; got {draws.count}")
    source = _finer(problem)
    distribution, parts = None, []
    for indices, batch in _numbered(source.data):
        outputs, loss_of = _single_output(source, batch)
        with twice_differentiable(source.model):
            if distribution is None:
                distribution = _distribution_of(problem, outputs, loss_of)
            weights = _weights(distribution, outputs, loss_of)
            _check_form(distribution, outputs, weights, loss_of, _name_of(problem))
        parts.append(_Part.of(distribution, outputs, weights, indices, draws))
    if distribution is None:
        raise ValueError("the data must hold at least one batch; got none")
    first = next(p for p in problem.model.parameters() if p.is_floating_point())
    own = [part.to(first.device, first.dtype) for part in parts]
    count = problem.count if problem.count is samples_in else DrawnCount(problem.count)
    return replace(
        problem,
        data=_with_parts(problem.data, own, draws.count),
        forward=DrawnForward(problem.forward),
        loss=DrawnLoss(distribution, the_floating_tensor),
        count=count,
        metrics={},
        checked=True,
        draws=draws,
    )


def the_floating_tensor(outputs: Any) -> Tensor:
    """The one floating-point tensor among a model's outputs."""
    floating = [t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()]
    if len(floating) != 1:
        raise ValueError(
            f"the Monte-Carlo Fisher matrix needs a model that returns one floating-point tensor; got {len(floating)}"
        )
    return floating[0]


@dataclass(frozen=True)
class _Part:
    """What is drawn for a batch: (draws, samples, ...) targets, and sqrt(c) of each entry, (samples, ...)."""

    drawn: Tensor
    root: Tensor

    @classmethod
    def of(
        cls, distribution: Distribution, outputs: Tensor, weights: Tensor, indices: Sequence[int], draws: Draws
    ) -> _Part:
        shape = distribution.entries(outputs)
        each = [_uniform(draws.seed, d, indices, shape).to(float64_device(outputs.device)) for d in range(draws.count)]
        return cls(torch.stack([_drawn(distribution, outputs, u) for u in each]), weights.sqrt())

    def to(self, device: torch.device, dtype: torch.dtype) -> _Part:
        drawn = self.drawn.to(device, dtype if self.drawn.is_floating_point() else None)
        return _Part(drawn, self.root.to(device, dtype))


def _uniform(seed: int, draw: int, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Numbers in (0, 1), (samples, ...), each row by the sample's number alone."""
    key = np.frombuffer(hashlib.sha256(f"fisher targets {seed}".encode()).digest()[:16], dtype=np.uint64)
    entries = int(np.prod(shape[1:], dtype=np.int64))
    rows = np.empty((len(indices), entries))
    for row, index in zip(rows, indices, strict=True):
        bits = np.random.Philox(key=key, counter=np.array([0, 0, index, draw], dtype=np.uint64)).random_raw(entries)
        row[:] = (np.asarray(bits >> np.uint64(11), dtype=np.float64) + 0.5) * 2.0**-53
    return torch.from_numpy(rows.reshape(shape))


def _drawn(distribution: Distribution, outputs: Tensor, u: Tensor) -> Tensor:
    """Targets by inversion of the distribution function; of a Gaussian the deviates."""
    if distribution.kind == GAUSSIAN:
        from scipy.special import ndtri

        return torch.from_numpy(ndtri(u.cpu().numpy())).to(u.device)
    if distribution.kind == BERNOULLI:
        return (u < in_float64(outputs).sigmoid()).double()
    cumulated = in_float64(outputs).softmax(distribution.dimension).movedim(distribution.dimension, -1).cumsum(-1)
    places = torch.searchsorted(cumulated.contiguous(), (u[..., None] * cumulated[..., -1:]).contiguous(), right=True)
    return places[..., 0].clamp(max=cumulated.shape[-1] - 1)


def _finer(problem: Problem) -> Problem:
    """The problem over a copy of its model in float64, so that rounding turns no draw; as it is where that fails."""
    first = next((p for p in problem.model.parameters() if p.is_floating_point()), None)
    entries = sum(p.numel() for p in problem.model.parameters())
    if first is None or first.dtype == torch.float64 or entries > MAX_DOUBLED_ENTRIES:
        return problem
    try:
        data: Any = _InFloat64(problem.data)
        twin = replace(problem, model=copy_of(problem.model, torch.float64), data=data, checked=True)
        _single_output(twin, next(iter(twin.data)))
    except Exception:  # user code may raise any exception in float64; what is wrong without it is raised later
        return problem
    return twin


@dataclass(frozen=True)
class _InFloat64:
    """Batches moved to float64 as they are read."""

    data: Batches

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.data:
            yield move_batch(batch, None, torch.float64)


def _numbered(data: Any) -> Iterator[tuple[Sequence[int], Batch]]:
    """Each batch with the numbers of its samples in the data."""
    within = data.data if isinstance(data, _InFloat64) else data
    first, position = getattr(within, "first", 0), 0
    for batch in data:
        count = samples_in(batch)
        numbers: Sequence[int] = range(first + position, first + position + count)
        if isinstance(within, Streamed):
            numbers = within.indices[position : position + count]
        position += count
        yield numbers, batch


def _single_output(problem: Problem, batch: Batch) -> tuple[Tensor, LossOf]:
    """The outputs of a batch, and its summed loss as a function of them. Raises ValueError for several tensors."""
    with temporary_parameters(problem.model, {}), torch.enable_grad():
        outputs, loss_of = outputs_and_loss(problem, batch)
        values = the_floating_tensor(outputs).detach()
    if values.dim() == 0 or values.shape[0] != samples_in(batch):
        raise ValueError(
            f"the Fisher matrix needs outputs with one row for each sample; a batch of {samples_in(batch)} gives "
            f"{tuple(values.shape)}"
        )
    if values.dtype not in MAX_MISMATCH:
        raise ValueError(f"the Fisher matrix needs outputs in float32 or float64; got {values.dtype}")
    return values, lambda f: loss_of([f])


def _name_of(problem: Problem) -> str:
    """What a loss is called."""
    loss: Any = problem.loss
    if isinstance(loss, SupervisedLoss):
        loss = loss.loss
    if isinstance(loss, str):
        return loss
    return getattr(loss, "__name__", None) or type(loss).__name__


def _refusal(name: str) -> str:
    return (
        "the Monte-Carlo Fisher matrix needs a loss that is minus the logarithm of a categorical, Bernoulli or "
        "Gaussian density, sample by sample, as cross entropy and binary cross entropy of logits and squared errors "
        f"are; {name} is none. There are the empirical Fisher matrix (fisher) and Gauss-Newton (gauss-newton)"
    )


def _distribution_of(problem: Problem, outputs: Tensor, loss_of: LossOf) -> Distribution:
    """The distribution whose form the second derivative has. Raises ValueError where there is none."""
    dimensions = [1, outputs.dim() - 1]  # PyTorch's cross entropy, and that of models of Hugging Face
    if isinstance(problem.loss, SummedLoss):
        dimensions.reverse()
    classes = [d for d in dict.fromkeys(dimensions) if outputs.dim() > 1 and outputs.shape[d] > 1]
    candidates = [Distribution(CATEGORICAL, d) for d in classes]
    for distribution in (*candidates, Distribution(BERNOULLI), Distribution(GAUSSIAN)):
        weights = _weights(distribution, outputs, loss_of)
        if not bool((weights != 0).any()) and not _ignores(problem.loss):
            continue  # a loss without a second derivative
        if _mismatch(distribution, outputs, weights, loss_of) <= MAX_MISMATCH[outputs.dtype]:
            return distribution
    raise ValueError(_refusal(_name_of(problem)))


def _ignores(loss: Any) -> bool:
    """Whether a loss is a cross entropy that ignores targets, so that it may be 0 over a whole batch."""
    if isinstance(loss, SupervisedLoss):
        return loss.loss == "crossentropy" or isinstance(loss.loss, nn.CrossEntropyLoss)
    return isinstance(loss, SummedLoss)


def _weights(distribution: Distribution, outputs: Tensor, loss_of: LossOf) -> Tensor:
    """c of each entry, by one product of the second derivative at the outputs 0; rounding below 0 is 0."""
    origin, v = torch.zeros_like(outputs), torch.zeros_like(outputs)
    if distribution.kind != CATEGORICAL:
        scale = 4.0 if distribution.kind == BERNOULLI else 1.0  # p (1 - p) = 1/4
        weights = scale * _second(loss_of, origin, v.fill_(1.0))
    else:  # v = (1, -1, 0, ...) has the variance 2 / C where all classes are alike
        d, classes = distribution.dimension, outputs.shape[distribution.dimension]
        v.select(d, 0).fill_(1.0)
        v.select(d, 1).fill_(-1.0)
        weights = 0.5 * classes * (v * _second(loss_of, origin, v)).sum(d)
    return weights


def _second(loss_of: LossOf, outputs: Tensor, v: Tensor) -> Tensor:
    """The loss's second derivative by the outputs, times v."""
    with torch.enable_grad():
        f = outputs.detach().clone().requires_grad_(True)
        loss = loss_of(f)
        if not loss.requires_grad:
            return torch.zeros_like(v)
        (slope,) = torch.autograd.grad(loss, f, create_graph=True, materialize_grads=True)
        if not slope.requires_grad:
            return torch.zeros_like(v)
        (product,) = vector_jacobian([slope], [f], [v])
    return product.detach()


def _form(distribution: Distribution, outputs: Tensor, weights: Tensor, v: Tensor) -> Tensor:
    """What that product is for a distribution."""
    if distribution.kind == GAUSSIAN:
        return weights * v
    if distribution.kind == BERNOULLI:
        p = outputs.sigmoid()
        return weights * p * (1.0 - p) * v
    d = distribution.dimension
    p = outputs.softmax(d)
    return weights.unsqueeze(d) * (p * v - p * (p * v).sum(d, keepdim=True))


def _mismatch(distribution: Distribution, outputs: Tensor, weights: Tensor, loss_of: LossOf) -> float:
    """By how much the second derivative differs from its form, relative, here and at outputs of the order of one.

    Here first, and elsewhere only where it has the form: a loss of probabilities is an error there. A loss without a
    second derivative, or with a negative one, has none of the forms.
    """
    low = float(weights.min()) if weights.numel() else 0.0
    high = float(weights.abs().max()) if weights.numel() else 0.0
    if not np.isfinite(high) or low < -MAX_MISMATCH[outputs.dtype] * high:
        return np.inf
    worst = 0.0
    numbers = generator("form of a loss", *outputs.shape)
    for place in (outputs, None):
        if worst > MAX_MISMATCH[outputs.dtype]:
            break
        v, other = (torch.randn(outputs.shape, generator=numbers, dtype=torch.float64).to(outputs) for _ in range(2))
        at = 2.0 * other if place is None else place
        form = _form(distribution, at, weights, v)
        gap = float((_second(loss_of, at, v) - form).abs().max())
        # at outputs of certainty nothing is left of the second derivative but rounding, of the size of c
        worst = max(worst, gap / high if high > 0 else gap)
    return worst if high > 0 or worst > 0 else 0.0


def _check_form(distribution: Distribution, outputs: Tensor, weights: Tensor, loss_of: LossOf, name: str) -> None:
    """Raises ValueError where a batch's second derivative has another form than the first batch's."""
    if _mismatch(distribution, outputs, weights, loss_of) > MAX_MISMATCH[outputs.dtype]:
        raise ValueError(_refusal(name))


def _with_parts(data: Batches, parts: Sequence[_Part], draws: int) -> Batches:
    """The data with what was drawn beside each sample, once for each draw."""
    if isinstance(data, FixedBatches):
        own = zip(data.batches, parts, strict=True)
        return replace(
            data, batches=tuple((batch, part.drawn[d], part.root) for batch, part in own for d in range(draws))
        )
    if len({tuple(part.root.shape[1:]) for part in parts}) > 1:
        raise ValueError(
            "the Monte-Carlo Fisher matrix needs outputs of one shape for all samples; these differ from batch to "
            "batch: pad all samples to one length, or give the batches as a list"
        )
    drawn = torch.cat([part.drawn for part in parts], 1).flatten(0, 1)
    root = torch.cat([part.root for part in parts]).repeat(draws, *[1] * (parts[0].root.dim() - 1))
    if isinstance(data, Resident):
        tensors = data.tensors
        if draws > 1:
            tensors = map_tensors(lambda t: torch.cat([t] * draws), tensors)
        return replace(data, tensors=(tensors, drawn, root), loader_sizes=())
    if isinstance(data, Streamed):
        fetch = DrawnFetch(data.fetch, tuple(data.indices), drawn.cpu(), root.cpu())
        return replace(data, fetch=fetch, indices=range(draws * len(data.indices)))
    raise ValueError(f"the Monte-Carlo Fisher matrix is not made of {type(data).__name__}")


@dataclass(frozen=True, eq=False)
class DrawnFetch:
    """A `Streamed.fetch` of samples with their drawn targets: numbers count the samples of one draw after another.

    fetch    of the samples as they were
    indices  of these, in order
    drawn, root  a row for each number
    """

    fetch: Callable[[Sequence[int]], Batch]
    indices: Sequence[int]
    drawn: Tensor
    root: Tensor

    def __call__(self, numbers: Sequence[int]) -> Batch:
        """The batch of these numbers. Raises ValueError where its outputs have another shape than when drawn."""
        rows = list(numbers)
        batch = self.fetch([self.indices[k % len(self.indices)] for k in rows])
        return batch, self.drawn[rows], self.root[rows]
