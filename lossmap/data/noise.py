"""Losses that draw at random (dropout in training mode, a variational autoencoder, diffusion): fixed realisations.

    L_r(theta) = L(theta; numbers drawn from seed s_r)         one realisation, an ordinary deterministic loss

Common random numbers: every evaluation of a batch starts from the same seed, made of s_r, the batch's mark and whether
the model or the loss draws: so losses at two points, and a loss and its derivatives, are those of one function, and the
numbers of different batches are independent. How far that function is from others is shown by several realisations:

    mean = 1/R sum_r L_r          standard error = sqrt(1/(R - 1) sum_r (L_r - mean)^2) / sqrt(R)

The seeds s_r are made from the stored seed of the noise alone, s_0 being that seed itself: the same at every point, on
any rank and on resuming. Price: R times that of one realisation.

PyTorch draws other normal and uniform numbers in float64 than in float32 from the same seed. Here all precisions get
those of float32, so that a copy of the model in float64, by which rounding is measured, is the same realisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lossmap.data.batch_marks import mark_of
from lossmap.data.batches import Batch
from lossmap.data.problem import Problem
from lossmap.data.sample_count import samples_in
from lossmap.seeding import generator, same_random_state

MIN_REPEATS = 2  # realisations of which there is a standard error


FACTORIES = ("rand", "randn")  # random functions whose numbers depend on the precision
LIKE = ("rand_like", "randn_like", "bernoulli")
IN_PLACE = ("normal_", "uniform_", "bernoulli_", "log_normal_", "cauchy_", "geometric_")


class InSinglePrecision(TorchFunctionMode):
    """Random numbers are drawn in float32 whatever the precision of the result."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch in the place of `func`, with the mode itself off."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in FACTORIES and kwargs.get("out") is None:
            return _drawn(func, args, kwargs, kwargs.get("dtype") or torch.get_default_dtype())
        if name in LIKE and kwargs.get("out") is None:
            like = args[0] if args else kwargs.pop("input")
            dtype = kwargs.get("dtype") or like.dtype
            if name == "bernoulli":
                return _drawn(func, (like.to(_single(dtype)), *args[1:]), kwargs, dtype, keyword=False)
            return _drawn(func, (like, *args[1:]), kwargs, dtype)
        # without arguments by position it is one of `nn.init`, within which the tensor's own comes by
        if name in IN_PLACE and args and _single(args[0].dtype) != args[0].dtype:
            return args[0].copy_(func(torch.empty_like(args[0], dtype=torch.float32), *args[1:], **kwargs))
        if name == "normal" and kwargs.get("out") is None:
            mean, std = (*args, *(kwargs[k] for k in ("mean", "std") if k in kwargs), 1.0)[:2]
            if not isinstance(mean, Tensor) and not isinstance(std, Tensor):
                return _drawn(func, args, kwargs, kwargs.get("dtype") or torch.get_default_dtype())
            with torch.no_grad():
                like = torch.as_tensor(mean + 0.0 * std)
                drawn = torch.empty_like(like, dtype=torch.float32).normal_(generator=kwargs.get("generator"))
                return mean + std * drawn.to(like.dtype)
        return func(*args, **kwargs)


def _drawn(func: Any, args: Any, kwargs: dict[str, Any], dtype: torch.dtype, keyword: bool = True) -> Any:
    """What a random function draws in float32, in the precision of its result; integers and complex numbers as ever."""
    single = _single(dtype)
    if single == dtype:
        return func(*args, **kwargs)
    required = kwargs.pop("requires_grad", False)
    if keyword:
        kwargs["dtype"] = single
    return func(*args, **kwargs).to(dtype).requires_grad_(required)


def _single(dtype: torch.dtype) -> torch.dtype:
    """The precision in which numbers are drawn."""
    return torch.float32 if dtype.is_floating_point else dtype


@contextmanager
def fixed_noise(seed: int) -> Iterator[None]:
    """Inside, random numbers start from a seed, the same in every precision; outside all generators are as before."""
    with same_random_state(seed), InSinglePrecision():
        yield


@dataclass(frozen=True)
class WithFixedNoise:
    """A function whose last argument is a batch, and which draws the same random numbers for it at every call.

    function  what draws
    seed      of the realisation
    stream    what the numbers are for: `forward` or `loss`, which draw independently
    """

    function: Callable[..., Any]
    seed: int
    stream: str = "forward"

    def __call__(self, *args: Any) -> Any:
        """Call the function from the batch's seed on."""
        with fixed_noise(batch_seed(self.seed, args[-1], self.stream)):
            return self.function(*args)


def batch_seed(seed: int, batch: Batch, stream: str = "forward") -> int:
    """The seed from which the random numbers of one batch start, in the realisation with this seed."""
    return generator("noise of a batch", seed, mark_of(batch), stream).initial_seed()


def with_noise_seed(problem: Problem, seed: int) -> Problem:
    """The problem whose random numbers start, at every evaluation of a batch, from a seed made of this one and it."""

    def fixed(function: Callable[..., Any], stream: str = "forward") -> Callable[..., Any]:
        if isinstance(function, WithFixedNoise):
            return replace(function, seed=seed)
        return WithFixedNoise(function, seed, stream)

    # what merely counts the samples of a batch draws nothing
    count = problem.count
    if count is not samples_in:  # it may run the loss
        count = fixed(count)
    loss = fixed(problem.loss, "loss")
    return replace(problem, forward=fixed(problem.forward), loss=loss, count=count, noise_seed=seed)


def realizations(problem: Problem, repeats: int) -> tuple[Problem, ...]:
    """The problem in as many fixed realisations; the first is the problem itself.

    problem  as `check_loss` returns it
    repeats  R, the number of realisations

    Raises ValueError where the loss draws nothing at random, and for fewer than two.
    """
    if repeats < MIN_REPEATS:
        raise ValueError(f"--noise-repeats must be >= {MIN_REPEATS}, or there is no standard error; got {repeats}")
    if problem.noise_seed is None:
        raise ValueError(
            "--noise-repeats is for a loss that draws at random; this one gave the same value twice, so that its "
            "realisations are all alike: leave the flag out"
        )
    seeds = [noise_seed(problem.noise_seed, r) for r in range(repeats)]
    return tuple(with_noise_seed(problem, seed) for seed in seeds)


def noise_seed(seed: int, number: int) -> int:
    """The seed of a realisation by its number; the 0th has the stored seed itself."""
    if number == 0:
        return seed
    return generator("noise", seed, number).initial_seed() >> 1


@dataclass(frozen=True)
class EachForward:
    """(model, batch) -> the outputs of every realisation, a list."""

    functions: tuple[Callable[..., Any], ...]

    def __call__(self, model: Any, batch: Batch) -> list[Any]:
        """Evaluate one realisation after the other."""
        return [function(model, batch) for function in self.functions]


@dataclass(frozen=True)
class MeanLoss:
    """(the outputs of every realisation, batch) -> the mean of their losses, each summed over the batch."""

    functions: tuple[Callable[..., Tensor], ...]

    def __call__(self, outputs: Sequence[Any], batch: Batch) -> Tensor:
        """Evaluate one realisation after the other."""
        losses = [function(each, batch) for function, each in zip(self.functions, outputs, strict=True)]
        return torch.stack(losses).mean()


def mean_over(problems: Sequence[Problem]) -> Problem:
    """One problem whose loss is the mean over realisations: that of which an eigenmap takes the Hessian.

    problems  as `realizations` returns them
    """
    first = problems[0]
    return replace(
        first,
        forward=EachForward(tuple(p.forward for p in problems)),
        loss=MeanLoss(tuple(p.loss for p in problems)),
        metrics={},
    )


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the first axis and its standard error, both (...), of values (R, ...)."""
    with np.errstate(invalid="ignore"):  # infinite losses have a mean and no error
        return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))


__all__ = ["fixed_noise", "mean_and_error", "mean_over", "realizations"]
