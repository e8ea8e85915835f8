"""How the gradients of single samples scatter about their mean: covariance by its Gram matrix.

For samples i = 1..N with gradients g_i (n,) of their losses, mean g, in nats per unit of theta:

    K = (g_i . g_j)            (N, N), the Gram matrix, all that is needed of the g_i
    C = 1/N sum (g_i - g)(g_i - g)^T      (n, n); its nonzero eigenvalues are those of the centred K, over N
    concentration              share of tr C in the largest k eigenvalues, and the participation ratio
    noise scale                tr C' / |G|^2: samples in a batch at which noise and signal are alike. tr C' and |G|^2
                               are the unbiased estimates, tr C N / (N - 1) and the mean of g_i . g_j over i != j
    coherence                  mean cosine of two samples' gradients; the share of negative alignment to g

Error bars: jackknife over samples, from K alone. Price: one gradient per sample where all g_i fit into `memory`
(then N n numbers are held), else the gradients of a block again for each block before it. Sources: McCandlish et
al. (2018), arXiv:1812.06162, for the noise scale; Fort et al. (2019), arXiv:1901.09491, for coherence; Fieller
(1954), doi:10.1111/j.2517-6161.1954.tb00159.x, for ratios whose denominator may be 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from lossmap.curvature.formulas import PlainTables
from lossmap.curvature.linearize.stateless import call_with
from lossmap.curvature.operators import differentiated
from lossmap.curvature.rounding import problem_in
from lossmap.data.batches import Batch, FixedBatches
from lossmap.data.loss_check import check_loss
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.parameter_vector import Layout, selected
from lossmap.interrupt import Interrupted
from lossmap.linalg.subspaces import participation
from lossmap.stable.forms import stable_forms
from lossmap.sums import float64_device, in_float64

Array = np.ndarray
MEMORY = 1 << 30  # bytes that gradients may take
SHARE_AT_ONCE = 32  # the part of that, inverted, of gradients that are made at once, which take it some four times
MULTIPLIED_ENTRIES = 1 << 22  # of a block of gradients, whose products are summed up in the gradients' precision
MIN_WIDTH = 1 << 10  # columns of one
TIMED_SAMPLES = 16  # whose gradients are timed
GROUPS = 10  # of samples, over which the jackknife of a number that is no sum goes
MIN_SIGNAL_ERRORS = 2.0  # standard errors by which the signal must be above 0 for the noise scale to have an error


@dataclass(frozen=True, eq=False)
class GradientCovariance:
    """Per-sample gradients, by their scalar products.

    gram       (N, N) products g_i . g_j
    by_tensor  (tensors, N) the part of |g_i|^2 in each tensor
    names      of the tensors
    size       n, the entries of theta
    """

    gram: Array
    by_tensor: Array
    names: tuple[str, ...]
    size: int

    @property
    def samples(self) -> int:
        """N."""
        return len(self.gram)

    @cached_property
    def spectrum(self) -> Array:
        """(N,) the largest eigenvalues of the covariance C, descending; the others are zero."""
        return _spectrum(self.gram)

    @property
    def concentrated(self) -> tuple[float, float]:
        """The top eigenvalue's share of the trace, and its error: a jackknife over ten groups of samples."""
        return self.concentration(1), _group_spread(_first_share, self.gram)

    def concentration(self, k: int = 1) -> float:
        """The share of the covariance's trace in its k largest eigenvalues; NaN where there is none."""
        values = self.spectrum
        total = float(values.sum())
        return float(values[:k].sum()) / total if total > 0 else float("nan")

    @property
    def participation(self) -> float:
        """How many directions the scatter has: (tr C)^2 / tr C^2."""
        return participation(self.spectrum)

    @property
    def noise_scale(self) -> tuple[float, float]:
        """tr C' / |G|^2 in samples, and its standard error; inf where the signal is not above 0.

        The error is infinite, too, where the signal |G|^2 is within two of its own standard errors of 0: the ratio may
        then be of any size, and its spread over samples says nothing (Fieller 1954).
        """
        value, error = _estimated(_noise_scale, self.gram)
        signal, signal_error = _estimated(_signal, self.gram)
        if signal <= MIN_SIGNAL_ERRORS * signal_error:
            error = float("inf")
        return value, error

    @property
    def coherence(self) -> tuple[float, float]:
        """The mean cosine of two different samples' gradients, and its standard error."""
        return _estimated(_coherence, self.gram)

    @property
    def against(self) -> tuple[float, float]:
        """Negative alignment: the share of samples with g_i . (mean of the others) < 0, and its standard error.

        All samples are judged by nearly the same mean, whose error they share: the error is a jackknife over ten
        groups of samples, no less than that of a share of independent ones.
        """
        share, n = _opposed(self.gram), self.samples
        spread = _group_spread(_opposed, self.gram)
        return share, max(spread, float(np.sqrt(max(share * (1 - share), 1 / (n + 4)) / n)))

    @property
    def rms(self) -> Array:
        """(tensors,) root mean square over samples of each tensor's gradient norm."""
        root: Array = np.sqrt(self.by_tensor.mean(axis=1))
        return root


def _group_spread(number: Callable[[Array], float], gram: Array) -> float:
    """The jackknife standard error of a function of K (N, N), over ten groups of samples, or as many as there are."""
    n = len(gram)
    groups = min(GROUPS, n)
    left = [np.arange(n) % groups != g for g in range(groups)]
    parts = np.array([number(gram[np.ix_(rest, rest)]) for rest in left])
    return float(np.sqrt((groups - 1) / groups * np.square(parts - parts.mean()).sum()))


def _first_share(gram: Array) -> float:
    """The largest eigenvalue's share of the trace of the covariance; NaN where there is none."""
    values = _spectrum(gram)
    total = float(values.sum())
    if not total > 0:
        return float("nan")
    return float(values[0]) / total


def _opposed(gram: Array) -> float:
    """The share of samples whose gradient opposes the mean of the others'."""
    return float((gram.sum(axis=1) - np.diag(gram) < 0).mean())


def _spectrum(gram: Array) -> Array:
    mean = gram.mean(axis=0)
    centred = gram - mean[None] - mean[:, None] + mean.mean()
    values: Array = np.linalg.eigvalsh((centred + centred.T) / 2)[::-1] / len(gram)
    values = np.maximum(values, 0.0)
    return values


def _signal(total: float, diagonal: float, n: int, cosines: float) -> float:
    return (total - diagonal) / (n * (n - 1))


def _noise_scale(total: float, diagonal: float, n: int, cosines: float) -> float:
    signal = _signal(total, diagonal, n, cosines)
    trace = (diagonal - total / n) / (n - 1)
    return trace / signal if signal > 0 else float("inf")


def _coherence(total: float, diagonal: float, n: int, cosines: float) -> float:
    return cosines / (n * (n - 1))


def _estimated(number: Callable[[float, float, int, float], float], gram: Array) -> tuple[float, float]:
    """A function of sums over K, with its jackknife error: the sums without a sample are K's without a row."""
    n, diagonal = len(gram), np.diag(gram)
    length = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    cosines = gram / np.outer(length, length)
    np.fill_diagonal(cosines, 0.0)
    total, trace, cosine = float(gram.sum()), float(diagonal.sum()), float(cosines.sum())
    value = number(total, trace, n, cosine)
    if n < 3:
        return value, float("nan")
    rows, pairs = gram.sum(axis=1), cosines.sum(axis=1)
    parts = np.array(
        [number(total - 2 * rows[i] + diagonal[i], trace - diagonal[i], n - 1, cosine - 2 * pairs[i]) for i in range(n)]
    )
    if not np.isfinite(parts).all():
        return value, float("inf")
    return value, float(np.sqrt((n - 1) / n * np.square(parts - parts.mean()).sum()))


class _BatchLoss(nn.Module):
    """Model and loss as one module of a batch, so that `call_with` reaches all of it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.model = problem.model
        self.problem = problem

    def forward(self, batch: Batch) -> Tensor:
        """The loss, summed over the batch."""
        return self.problem.loss(self.problem.forward(self.model, batch), batch)


class _KeptData(TorchFunctionMode):
    """Refuses to replace the data of a tensor, as `.to()` within a forward pass does.

    Under a transform of torch.func they would be replaced by what lives as long as the transform, and be read from
    freed memory afterwards.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "__set__" and getattr(func, "__self__", None) is torch.Tensor.data:
            raise NotImplementedError("the forward pass replaces the data of a tensor")
        return func(*args, **(kwargs or {}))


def per_sample(problem: Problem, parameters: str = "weights") -> Iterator[Tensor]:
    """Batch by batch, the gradient of each sample's loss: (B, n), in the problem's batches.

    By `vmap` where the model allows it, else sample by sample. In evaluation mode, since batch norm would mix samples.
    """
    named = selected(problem.model, parameters)
    layout = Layout.of(named)
    with temporary_parameters(problem.model, {}):
        function = _BatchLoss(problem)
        constants = {name: p.detach() for name, p in function.named_parameters()}
        own = {f"model.{name}": p.detach() for name, p in named.items()}

        def loss(values: dict[str, Tensor], sample: Batch) -> Tensor:
            value: Tensor = call_with(function, constants | values, pytree.tree_map(_as_batch, sample))
            return value

        together = vmap(grad(loss), in_dims=(None, 0), randomness="different")
        by_vmap = True
        for batch in problem.data:
            if by_vmap:
                try:
                    # the fused attention has no rule for vmap: slow, and it warns
                    with (
                        sdpa_kernel(SDPBackend.MATH),
                        stable_forms("losses"),  # of a network that fits, 1 - p with p -> 1 cancels
                        PlainTables(),
                        _KeptData(),
                        warnings.catch_warnings(),
                    ):
                        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # recurrent nets
                        gradients = together(own, batch)
                except Interrupted:
                    raise
                except Exception:  # user code may raise anything under vmap: what is wrong without it is raised below
                    by_vmap = False
            if not by_vmap:
                each = [_gradient_by_backward(problem, sample, named) for sample in _samples(batch)]
                gradients = {name: torch.stack([row[name] for row in each]) for name in own}
            first = next(iter(gradients.values()))
            rows = [gradients[f"model.{name}"].reshape(len(first), -1) for name in layout.names]
            yield torch.cat(rows, dim=1).detach()  # a criterion may have parameters of its own, which keep a graph


def _gradient_by_backward(problem: Problem, sample: Batch, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The gradient of one sample's loss by a backward pass: also where the loss differentiates by its inputs."""
    one = pytree.tree_map(_as_batch, sample)
    with differentiated(problem.model, list(named.values())):
        value = problem.loss(problem.forward(problem.model, one), one)
        if not value.requires_grad:  # that of a sample without weight, such as one of ignored labels, is a plain 0
            return {f"model.{name}": torch.zeros_like(p, requires_grad=False) for name, p in named.items()}
        parts = torch.autograd.grad(value, list(named.values()), materialize_grads=True)
    return {f"model.{name}": part for name, part in zip(named, parts, strict=True)}


def _as_batch(leaf: object) -> object:
    return leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf


def _samples(batch: Batch) -> Iterator[Batch]:
    leaves, spec = pytree.tree_flatten(batch)
    count = next(len(leaf) for leaf in leaves if isinstance(leaf, Tensor))
    for i in range(count):
        yield pytree.tree_unflatten([leaf[i] if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)


@dataclass(frozen=True)
class _Cut:
    """How the gradients of so many samples are made within some memory.

    blocks  of samples, two of which are in memory at a time
    rows    of gradients that are made at once, a share of it
    """

    blocks: int
    rows: int

    @classmethod
    def of(cls, count: int, row_bytes: int, memory: int) -> _Cut:
        block = min(count, max(1, memory // (2 * row_bytes)))
        return cls(-(-count // block), min(count, max(1, memory // (SHARE_AT_ONCE * row_bytes))))


def cost_of_covariance(
    problem: Problem, parameters: str, clock: Callable[[], float], memory: int = MEMORY
) -> tuple[float, int]:
    """(seconds, bytes) of `gradient_covariance`, from the second of two batches of a few samples."""
    row_bytes = sum(p.numel() * p.element_size() for p in selected(problem.model, parameters).values())
    count = problem.data.samples
    cut = _Cut.of(count, row_bytes, memory)
    few = problem.rebatched(min(cut.rows, TIMED_SAMPLES))
    next(iter(per_sample(few, parameters)))  # loads what vmap needs
    start = clock()
    rows = next(iter(per_sample(few, parameters)))
    _products(rows, rows)
    seconds = (clock() - start) / len(rows) * count * (cut.blocks + 1) / 2
    return seconds, min(count * row_bytes, memory) + 4 * cut.rows * row_bytes


def gradient_covariance(problem: Problem, parameters: str = "weights", *, memory: int = MEMORY) -> GradientCovariance:
    """The Gram matrix of all samples' gradients.

    memory  bytes that gradients may take; more blocks of samples are made where they would take more

    Raises ValueError for one sample alone; FloatingPointError where a gradient is not finite.
    """
    problem = check_loss(problem)
    if isinstance(problem.data, FixedBatches):
        reasons = [note.partition(":")[0] for note in problem.notes] or ["its batches are read whole"]
        raise ValueError("a sample's gradient is not defined here: " + "; ".join(reasons))
    if problem.data.samples < 2:
        raise ValueError(f"the covariance of gradients needs at least 2 samples; got {problem.data.samples}")
    named = selected(problem.model, parameters)
    layout = Layout.of(named)
    item = next(iter(named.values())).element_size()
    n, count = layout.size, problem.data.samples
    cut = _Cut.of(count, n * item, memory)
    blocks, problem = cut.blocks, problem.rebatched(cut.rows)
    gram, by_tensor = np.zeros((count, count)), np.zeros((len(layout.names), count))
    for a in range(blocks):
        left = _gradients(problem, parameters, a, blocks)
        start = count * a // blocks
        rows = slice(start, start + len(left))
        gram[rows, rows] = _products(left, left)
        squares = [_squares_by_tensor(left[i : i + cut.rows], layout) for i in range(0, len(left), cut.rows)]
        by_tensor[:, rows] = torch.cat(squares, dim=1).cpu().numpy()
        for b in range(a + 1, blocks):
            right = _gradients(problem, parameters, b, blocks)
            columns = slice(count * b // blocks, count * b // blocks + len(right))
            gram[rows, columns] = _products(left, right)
            gram[columns, rows] = gram[rows, columns].T
            del right  # before the next one is made
        del left
    if not np.isfinite(gram).all():
        raise FloatingPointError("a sample's gradient is not finite: look at the loss here first")
    return GradientCovariance(gram, by_tensor, layout.names, n)


def _squares_by_tensor(rows: Tensor, layout: Layout) -> Tensor:
    """(tensors, N) the part of each row's square in each tensor."""
    return torch.stack([in_float64(p).square().sum(1) for p in torch.split(rows, list(layout.sizes), dim=1)])


def _gradients(problem: Problem, parameters: str, part: int, parts: int) -> Tensor:
    mine = problem.share(part, parts)
    rows = torch.empty(0)
    filled = 0
    for gradients in per_sample(mine, parameters):
        if not filled:
            rows = gradients.new_empty(mine.data.samples, gradients.shape[1])
        rows[filled : filled + len(gradients)] = gradients
        filled += len(gradients)
    return rows


def _largest_entries(rows: Tensor) -> Tensor:
    """(N, 1) the largest absolute entry of each row; 1 of rows of zeros."""
    low, high = torch.aminmax(rows, dim=1, keepdim=True)
    sizes = torch.maximum(high, -low)
    return torch.where(sizes > 0, sizes, torch.ones_like(sizes))


def _products(a: Tensor, b: Tensor) -> Array:
    """a b^T, summed up in float64 over blocks of columns; each row by its largest entry, whose square may underflow."""
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=float64_device(a.device))
    sizes_a, sizes_b = _largest_entries(a), _largest_entries(b)
    width = max(MIN_WIDTH, MULTIPLIED_ENTRIES // len(a))
    for start in range(0, a.shape[1], width):
        columns = slice(start, start + width)
        total += in_float64((a[:, columns] / sizes_a) @ (b[:, columns] / sizes_b).T)
    total *= in_float64(sizes_a) * in_float64(sizes_b).T
    products: Array = total.cpu().numpy()
    return products


def rounded_gradients(problem: Problem, parameters: str = "weights") -> tuple[str, ...]:
    """The tensors whose per-sample gradients are nothing but rounding: in float64 half of their size or more is gone.

    None where the model runs in no other precision. Price: two covariances of the problem's samples; give few.
    """
    if next(iter(selected(problem.model, parameters).values())).dtype != torch.float32:
        return ()
    try:
        here, there = (gradient_covariance(p, parameters) for p in (problem, problem_in(problem, torch.float64)))
    except Exception:  # somebody's own forward may raise anything in another precision
        return ()
    sizes = zip(here.names, here.rms, there.rms, strict=True)
    return tuple(name for name, a, b in sizes if a > 0 and abs(a - b) >= 0.5 * a)
