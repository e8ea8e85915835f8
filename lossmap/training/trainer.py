"""The trainer: SGD or Adam over batches in an order that depends on the seed and the epoch alone.

    theta <- theta - rate * step(gradient)      SGD with momentum, or Adam, over batches in a shuffled order

It trains any problem: the loss of a batch is its sum over samples divided by their number. The order of an epoch
comes from (seed, epoch), the rest of the random numbers from a generator that is kept in the checkpoints; so a run that
is stopped and resumed ends with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import nan
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossmap import accelerators
from lossmap.data.batch_writes import with_copied_batches
from lossmap.data.batches import Batch
from lossmap.data.borrow import temporary_parameters
from lossmap.data.datasets import digest
from lossmap.data.problem import Problem
from lossmap.data.random_batches import cuts_of, rows_of
from lossmap.seeding import generator
from lossmap.training.recipe import History, Recipe
from lossmap.training.run_folder import RunFolder

Observer = Callable[[int, nn.Module, float], None]  # (step, model, its loss before the step)


def train(
    problem: Problem,
    recipe: Recipe | None = None,
    *,
    folder: str | Path | None = None,
    every: int | None = None,
    resume: bool = True,
    observers: Sequence[Observer] = (),
    stop: Callable[[], bool] | None = None,
) -> History:
    """Train a problem's model where it stands, and leave it in evaluation mode.

    folder     where checkpoints go: before the first step, then every `every` steps or, without it, after
               each epoch, and at the end; without a folder none are written
    resume     whether a run in that folder goes on; else its checkpoints are an error
    observers  called after each step with (step, model, loss); what they change stays changed
    stop       called after each step; where it returns True the run writes a checkpoint and stops

    Raises ValueError for a folder that holds a run of another recipe, data or model, naming the differences, and
    FloatingPointError where the loss is not finite.
    """
    recipe = recipe or Recipe()
    if every is not None and every < 1:
        raise ValueError(f"every must be >= 1; got {every}")
    cuts = cuts_of(problem.data.samples, recipe.batch_size)
    last = recipe.epochs * len(cuts)
    parameters = [p for p in problem.model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no parameter to train")
    optimizer = _optimizer(recipe, parameters)
    run: RunFolder | None = None
    if folder is not None:
        run = RunFolder(Path(folder), recipe, digest(problem.data))
    with _own_chance(recipe.seed):
        losses: list[float] = []
        if run:
            losses = run.restore(problem.model, optimizer, resume)
            if not losses:
                run.write(problem.model, optimizer, losses)
        problem.model.train()
        try:
            for step in range(len(losses), last):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate_at(step / last)
                losses.append(_step(problem, recipe, optimizer, cuts, step))
                for observer in observers:
                    observer(step + 1, problem.model, losses[-1])
                is_stopped = stop is not None and stop()
                is_due = (step + 1) % (every or len(cuts)) == 0
                if run and (is_due or is_stopped or step + 1 == last):
                    run.write(problem.model, optimizer, losses)
                if is_stopped:
                    break
        finally:
            problem.model.eval()
            optimizer.zero_grad(set_to_none=True)
    checkpoints = run.checkpoints() if run else []
    return History(tuple(losses), len(cuts), tuple(checkpoints), stopped=len(losses) < last)


def readings(problem: Problem) -> dict[str, float]:
    """The mean loss and the metrics of a problem in evaluation mode: {"loss": nats, "acc": percent}."""
    # without metrics the loss is the user's own, and may hold derivatives by its inputs
    context = torch.no_grad() if problem.metrics else nullcontext()
    sums = dict.fromkeys(("loss", *problem.metrics), 0.0)
    samples = dict.fromkeys(sums, 0.0)
    problem = with_copied_batches(problem, next(iter(problem.data)))
    with temporary_parameters(problem.model, {}), context:
        for batch in problem.data:
            outputs = problem.forward(problem.model, batch)
            sums["loss"] += float(problem.loss(outputs, batch).detach())
            for name, metric in problem.metrics.items():
                sums[name] += float(metric.total(outputs, batch))
                samples[name] += float((metric.count or problem.count)(batch))
            samples["loss"] += problem.count(batch)
    return {name: total / samples[name] if samples[name] else nan for name, total in sums.items()}


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """The steps of one pass over `samples` samples."""
    return len(cuts_of(samples, batch_size))


def _optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=recipe.rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov and recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
    )


def _step(
    problem: Problem, recipe: Recipe, optimizer: torch.optim.Optimizer, cuts: list[tuple[int, int]], step: int
) -> float:
    epoch, index = divmod(step, len(cuts))
    order = torch.randperm(problem.data.samples, generator=generator("training order", recipe.seed, epoch))
    batch = rows_of(problem.data, order[slice(*cuts[index])])
    if recipe.augment != "none":
        batch = _augmented(batch, recipe, step)
    loss = problem.total(batch) / problem.count(batch)
    value = float(loss.detach())
    if not math.isfinite(value):
        rate = optimizer.param_groups[0]["lr"]
        raise FloatingPointError(f"the loss is {value} at step {step}, at a rate of {rate:.3g}: take a smaller one")
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()
    return value


def _augmented(batch: Batch, recipe: Recipe, step: int) -> Batch:
    """Images (B, C, H, W) shifted, and mirrored, each by random numbers of its own."""
    x = batch[0] if isinstance(batch, (tuple, list)) else None
    if not isinstance(x, Tensor) or x.dim() != 4:
        raise ValueError("augmentation needs batches (images, targets), the images (B, C, H, W)")
    chance = generator("augmentation", recipe.seed, step)
    reach = max(1, x.shape[-1] // 8)
    down, right = (torch.randint(0, 2 * reach + 1, (len(x), 1), generator=chance) for _ in range(2))
    rows = (down + torch.arange(x.shape[2])).to(x.device)
    columns = (right + torch.arange(x.shape[3])).to(x.device)
    if recipe.augment == "shift-flip":
        mirrored = (torch.rand(len(x), 1, generator=chance) < 0.5).to(x.device)
        columns = torch.where(mirrored, columns.flip(1), columns)
    which = torch.arange(len(x), device=x.device)[:, None, None]
    padded = F.pad(x, (reach, reach, reach, reach)).permute(0, 2, 3, 1)
    shifted = padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
    return (shifted, *batch[1:])


@contextmanager
def _own_chance(seed: int) -> Iterator[None]:
    """The global generator, of which dropout draws, seeded for a run and given back afterwards."""
    on_devices = accelerators.random_states()
    with torch.random.fork_rng(devices=()):
        try:
            torch.manual_seed(seed)
            yield
        finally:
            accelerators.set_random_states(on_devices)
