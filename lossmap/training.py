"""A small trainer that leaves checkpoints behind, and says what it did.

    theta <- theta - rate * step(gradient)      SGD with momentum, or Adam, over batches in a shuffled order

It trains any problem: the loss of a batch is its sum over samples divided by their number. The order of an epoch
comes from (seed, epoch), the rest of chance from a generator that is kept in the checkpoints; so a run that is
stopped and taken up again ends with the same bits. Checkpoints `step_000120.pt` hold the tensors under
`state_dict`, beside the optimiser, the step, the loss history and the recipe, and appear whole.

A `Recorder` leaves the same checkpoints from a loop of one's own, or curvature every so many steps:

    recorder = Recorder("run", every=50)
    for step, (x, y) in enumerate(loader):
        ...
        recorder(model, loss)
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lossmap.data.batches import Batch, Batches, Resident, Streamed
from lossmap.data.checkpoints import finite_or_named, sorted_as_people_count
from lossmap.data.datasets import digest
from lossmap.data.problem import Problem
from lossmap.seeding import generator

log = logging.getLogger(__name__)

Observer = Callable[[int, nn.Module, float], None]  # (step, model, its loss before the step)


@dataclass(frozen=True)
class Recipe:
    """How a net is trained.

    rate          the learning rate at the start
    schedule      `constant`; `cosine`, down to 0; `step`, a tenth from each of `milestones` on
    milestones    shares of the run
    augment       `none`; `shift`, by up to an eighth of the image, zeros coming in; `shift-flip`, mirrored too
    """

    epochs: int = 12
    batch_size: int = 128
    optimizer: str = "sgd"
    rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75, 0.9)
    augment: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("optimizer", ("sgd", "adam")),
            ("schedule", ("constant", "cosine", "step")),
            ("augment", ("none", "shift", "shift-flip")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"training wants an epoch and a sample at least; got {self.epochs} and {self.batch_size}")
        if not self.rate > 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ValueError("training wants a rate above 0, a momentum from 0 to below 1, a weight decay from 0")

    def rate_at(self, share: float) -> float:
        """The learning rate when this share of the run, 0 to 1, is done."""
        if self.schedule == "cosine":
            return self.rate * 0.5 * (1.0 + math.cos(math.pi * share))
        if self.schedule == "step":
            return self.rate * 0.1 ** sum(share >= milestone for milestone in self.milestones)
        return self.rate


@dataclass(frozen=True)
class History:
    """What a training run was.

    losses       of each step, before it, mean over its batch
    checkpoints  the files that it left, in their order
    stopped      whether it was asked to stop before its end
    """

    losses: tuple[float, ...]
    steps_per_epoch: int
    checkpoints: tuple[Path, ...]
    stopped: bool = False

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.losses)

    def epoch_losses(self) -> list[float]:
        """The mean of the losses of each whole epoch."""
        each = self.steps_per_epoch
        parts = [self.losses[i : i + each] for i in range(0, self.steps - each + 1, each)]
        return [sum(part) / each for part in parts]


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

    folder     where checkpoints go: before the first step, then every so many steps or, without `every`, after
               each epoch, and at the end; without a folder none are left
    resume     whether a run in that folder goes on; else its checkpoints are an error
    observers  called after each step with (step, model, loss); what they change is their affair
    stop       asked after each step; a run that stops leaves a checkpoint

    Raises ValueError for a folder that holds a run of another recipe, data or model, naming the differences, and
    FloatingPointError where the loss is not finite.
    """
    recipe = recipe or Recipe()
    if every is not None and every < 1:
        raise ValueError(f"checkpoints come every step at the most; got every={every}")
    cuts = _cuts(problem.data.samples, recipe.batch_size)
    last = recipe.epochs * len(cuts)
    parameters = [p for p in problem.model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no parameter to train")
    optimizer = _optimizer(recipe, parameters)
    run = _Run(Path(folder), recipe, digest(problem.data)) if folder is not None else None
    with _own_chance(recipe.seed, parameters[0].device):
        losses = run.taken_up(problem.model, optimizer, resume) if run else []
        if run and not losses:
            run.leave(problem.model, optimizer, losses)
        problem.model.train()
        try:
            for step in range(len(losses), last):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate_at(step / last)
                losses.append(_step(problem, recipe, optimizer, cuts, step))
                for observer in observers:
                    observer(step + 1, problem.model, losses[-1])
                asked = stop is not None and stop()
                due = (step + 1) % (every or len(cuts)) == 0
                if run and (due or asked or step + 1 == last):
                    run.leave(problem.model, optimizer, losses)
                if asked:
                    break
        finally:
            problem.model.eval()
            optimizer.zero_grad(set_to_none=True)
    left = tuple(run.checkpoints()) if run else ()
    return History(tuple(losses), len(cuts), left, stopped=len(losses) < last)


def readings(problem: Problem) -> dict[str, float]:
    """The mean loss and the metrics of a problem in evaluation mode: {"loss": nats, "acc": percent}."""
    modes = [(module, module.training) for module in problem.model.modules()]
    problem.model.eval()
    sums = dict.fromkeys(("loss", *problem.metrics), 0.0)
    samples = 0
    try:
        with nullcontext() if not problem.metrics else torch.no_grad():  # a loss may hold derivatives by its inputs
            for batch in problem.data:
                outputs = problem.forward(problem.model, batch)
                sums["loss"] += float(problem.loss(outputs, batch).detach())
                for name, metric in problem.metrics.items():
                    sums[name] += float(metric.total(outputs, batch))
                samples += problem.count(batch)
    finally:
        for module, training in modes:
            module.training = training
    return {name: total / samples for name, total in sums.items()}


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """The steps of one pass over so many samples."""
    return len(_cuts(samples, batch_size))


def _cuts(samples: int, size: int) -> list[tuple[int, int]]:
    """Where an epoch's order is cut; a last batch of one sample, of which batch norm has no variance, is joined."""
    starts = list(range(0, samples, size))
    if len(starts) > 1 and samples - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], samples], strict=True))


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
    epoch, place = divmod(step, len(cuts))
    order = torch.randperm(problem.data.samples, generator=generator("training order", recipe.seed, epoch))
    batch = _rows(problem.data, order[slice(*cuts[place])])
    if recipe.augment != "none":
        batch = _augmented(batch, recipe, step)
    loss = problem.total(batch) / problem.count(batch)
    value = float(loss.detach())
    if not math.isfinite(value):
        rate = optimizer.param_groups[0]["lr"]
        raise FloatingPointError(f"the loss is {value} at step {step}, at a rate of {rate:.3g}: try a smaller one")
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()
    return value


def _rows(data: Batches, rows: Tensor) -> Batch:
    """A batch of these samples."""
    if isinstance(data, Streamed):
        return next(iter(replace(data, indices=[data.indices[i] for i in rows.tolist()], batch_size=len(rows))))
    if not isinstance(data, Resident):
        raise TypeError(f"training wants Resident or Streamed data; got {type(data).__name__}")
    return pytree.tree_map(lambda t: t[rows.to(t.device)] if isinstance(t, Tensor) else t, data.tensors)


def _augmented(batch: Batch, recipe: Recipe, step: int) -> Batch:
    """Images (B, C, H, W) shifted, and mirrored, each by chance of its own."""
    x = batch[0] if isinstance(batch, tuple) else None
    if not isinstance(x, Tensor) or x.dim() != 4:
        raise ValueError("augmentation wants batches (images, targets), the images (B, C, H, W)")
    chance = generator("augmentation", recipe.seed, step)
    most = max(1, x.shape[-1] // 8)
    down, right = (torch.randint(0, 2 * most + 1, (len(x), 1), generator=chance) for _ in range(2))
    rows = (down + torch.arange(x.shape[2])).to(x.device)
    columns = (right + torch.arange(x.shape[3])).to(x.device)
    if recipe.augment == "shift-flip":
        mirrored = (torch.rand(len(x), 1, generator=chance) < 0.5).to(x.device)
        columns = torch.where(mirrored, columns.flip(1), columns)
    which = torch.arange(len(x), device=x.device)[:, None, None]
    padded = F.pad(x, (most, most, most, most)).permute(0, 2, 3, 1)
    shifted = padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
    return (shifted, *batch[1:])


@contextmanager
def _own_chance(seed: int, device: torch.device) -> Iterator[None]:
    """The global generator, of which dropout draws, seeded for a run and given back afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class _Run:
    """The checkpoints of a run in its folder."""

    folder: Path
    recipe: Recipe
    data: str

    def checkpoints(self) -> list[Path]:
        return sorted_as_people_count(self.folder.glob("step_*.pt"))

    def leave(self, model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]) -> None:
        """A checkpoint after so many steps as there are losses."""
        cuda = next(model.parameters()).device.type == "cuda"
        content = {
            "state_dict": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": len(losses),
            "losses": torch.tensor(losses, dtype=torch.float64),
            "rng": torch.random.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state() if cuda else None,
            "recipe": json.dumps(asdict(self.recipe)),
            "data": self.data,
        }
        save(content, self.folder / f"step_{len(losses):06d}.pt")

    def taken_up(self, model: nn.Module, optimizer: torch.optim.Optimizer, resume: bool) -> list[float]:
        """Everything as the last checkpoint left it; the losses so far."""
        there = self.checkpoints()
        if not there:
            return []
        if not resume:
            raise ValueError(
                f"{self.folder} holds a run already, up to {there[-1].name}; go on with it, or name another"
            )
        try:
            held = torch.load(there[-1], map_location="cpu", weights_only=True)
            told, data = json.loads(held["recipe"]), held["data"]
        except Exception as error:  # what torch, json and a foreign file raise
            raise ValueError(f"{there[-1]} is no checkpoint of this trainer: {type(error).__name__}") from None
        here = json.loads(json.dumps(asdict(self.recipe)))
        differ = [f"{k}: {told.get(k)} there, {here[k]} here" for k in here if told.get(k) != here[k]]
        if data != self.data:
            differ.append("the data")
        if differ:
            raise ValueError(f"{self.folder} holds a run of other settings ({'; '.join(differ)}); name another folder")
        try:
            model.load_state_dict(held["state_dict"])
        except RuntimeError:
            raise ValueError(f"{self.folder} holds a run of another model; name another folder") from None
        optimizer.load_state_dict(held["optimizer"])
        torch.random.set_rng_state(held["rng"])
        if held["rng_cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(held["rng_cuda"])
        log.info("going on after step %d of %s", held["step"], there[-1])
        losses: list[float] = held["losses"].tolist()
        return losses


def save(content: Any, path: str | Path) -> None:
    """Save what torch.save takes: written beside, synchronised, renamed, so that the file appears whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


class Recorder:
    """Checkpoints, or curvature, every so many steps of a loop of one's own; also an observer of `train`.

    folder     where `step_000050.pt` and `record.csv` go
    every      steps between two records
    curvature  model -> numbers by name, such as `ends(problem)`; they go into record.csv, a row a record, beside
               step and loss
    weights    whether checkpoints are left; by default where no curvature is asked for
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every: int = 100,
        curvature: Callable[[nn.Module], Mapping[str, float]] | None = None,
        weights: bool | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"a recorder records every step at the most; got every={every}")
        self.folder = Path(folder)
        self.every = every
        self.curvature = curvature
        self.weights = curvature is None if weights is None else weights
        self.step = 0
        self.records: list[dict[str, float]] = []

    def __call__(self, model: nn.Module, loss: Tensor | float) -> None:
        """Count a step, and record where one is due. The model is left in its mode, with its gradients."""
        self.step += 1
        if self.step % self.every:
            return
        record = {"step": float(self.step), "loss": float(loss.detach() if isinstance(loss, Tensor) else loss)}
        if self.curvature is not None:
            record |= _undisturbed(self.curvature, model)
        self.records.append(record)
        if self.weights:
            state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            finite_or_named(state, f"the model at step {self.step}")
            save({"state_dict": state, "step": self.step, "loss": record["loss"]}, self._named())
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "record.csv").open("w", newline="") as file:
            rows = csv.DictWriter(file, list(self.records[0]))
            rows.writeheader()
            rows.writerows({**row, "step": int(row["step"])} for row in self.records)

    def _named(self) -> Path:
        return self.folder / f"step_{self.step:06d}.pt"

    def observe(self, step: int, model: nn.Module, loss: float) -> None:
        """The same, as an observer of `train`: `observers=[recorder.observe]`."""
        self.step = step - 1
        self(model, loss)


def _undisturbed(read: Callable[[nn.Module], Mapping[str, float]], model: nn.Module) -> dict[str, float]:
    """A reading in evaluation mode, after which modes, gradients and chance are as before."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(p, p.grad) for p in model.parameters()]
    model.eval()
    try:
        with torch.random.fork_rng([]):
            return {name: float(value) for name, value in read(model).items()}
    finally:
        for module, training in modes:
            module.training = training
        for parameter, gradient in gradients:
            parameter.grad = gradient


def ends(problem: Problem, *, tol: float = 1e-3, seed: int = 0) -> Callable[[nn.Module], dict[str, float]]:
    """A curvature function for a `Recorder`: the Hessian's ends over a problem's own samples.

    It gives max_eig and min_eig, and condition = abs(max_eig / min_eig), the ratio of the two ends; where the
    lower end is negative, no condition number of a minimum.
    """
    from lossmap.curvature.operators import CurvatureOperator
    from lossmap.linalg.lanczos import extremes

    def read(model: nn.Module) -> dict[str, float]:
        pairs = extremes(CurvatureOperator(replace(problem, model=model)), tol=tol, seed=seed)
        high, low = float(pairs.values.max()), float(pairs.values.min())
        return {"max_eig": high, "min_eig": low, "condition": abs(high / low) if low else math.inf}

    return read
