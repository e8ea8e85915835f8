"""`lossmap train`: train any model on any data, leaving checkpoints behind; the same command goes on where it was.

The checkpoints, step_000120.pt and so on, lie in --folder, from before the first step to after the last; with
--final FILE alone, only the trained net is left.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lossmap.cli.setting_groups import DataSettings, ModelSettings, RunSettings
from lossmap.cli.settings import Settings, UsageError, guarded, launched_rank, parse, setting
from lossmap.parallel.shutdown import Stop, job_end
from lossmap.parallel.world import World

if TYPE_CHECKING:
    from lossmap.training import Recipe


@dataclass(frozen=True)
class TrainSettings:
    """The training."""

    folder: str | None = setting(None, "where the checkpoints go; 'run' where no --final is named", metavar="FOLDER")
    final: str | None = setting(None, "the trained net alone, as one checkpoint", metavar="FILE")
    every: int | None = setting(None, "steps between two checkpoints; by default one after each epoch", metavar="STEPS")
    resume: bool = setting(True, "go on with the run in --folder")
    epochs: int = setting(12, "passes over the data", metavar="EPOCHS")
    batch_size: int = setting(128, "samples in a batch", metavar="SAMPLES")
    optimizer: str = setting("sgd", "sgd or adam", choices=("sgd", "adam"))
    lr: float = setting(0.1, "learning rate at the start", metavar="RATE", names=("--rate",))
    momentum: float = setting(0.9, "of sgd", metavar="SHARE")
    nesterov: bool = setting(True, "look ahead, as Nesterov's momentum does")
    weight_decay: float = setting(5e-4, "pull towards zero", metavar="RATE")
    schedule: str = setting("cosine", "of the learning rate", choices=("constant", "cosine", "step"))
    milestones: tuple[float, ...] = setting((0.5, 0.75, 0.9), "shares of the run at which --schedule step cuts by 10")
    augment: str = setting("none", "images shifted, or mirrored too", choices=("none", "shift", "shift-flip"))
    seed: int = setting(0, "of the weights, of the order of the samples, of dropout", metavar="SEED")
    precision: str = setting("float32", "of all computing", choices=("float32", "float64"))
    device: str = setting("auto", "auto, cpu, cuda or cuda:1", metavar="DEVICE")
    threads: int | None = setting(None, "threads to use; by default this process's cores", metavar="COUNT")
    stop_after: float | None = setting(None, "stop in good order after so many seconds", metavar="SECONDS")
    dry_run: bool = setting(False, "say what would be done, and do nothing")


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Open this door: 0 complete, 2 makes no sense, 75 stopped in good order with more to do."""
    settings = parse((ModelSettings, DataSettings, TrainSettings), argv, prog="lossmap train", about=__doc__ or "")
    if settings.data.split == "both":
        raise UsageError("a net is trained on one split: --split train or --split test")
    if launched_rank() != 0:  # training is for one process; under mpirun the others have nothing to do
        return 0
    return run(settings)


def run(settings: Settings) -> int:
    """Build the problem, train it, say how well it does."""
    from lossmap.cli import device, load_problem
    from lossmap.training import Recipe, readings, save, train

    asked = settings.train
    folder = asked.folder or (None if asked.final else "run")
    recipe = Recipe(
        epochs=asked.epochs,
        batch_size=asked.batch_size,
        optimizer=asked.optimizer,
        rate=asked.lr,
        momentum=asked.momentum,
        nesterov=asked.nesterov,
        weight_decay=asked.weight_decay,
        schedule=asked.schedule,
        milestones=tuple(float(m) for m in asked.milestones),
        augment=asked.augment,
        seed=asked.seed,
    )
    here = RunSettings(device=asked.device, threads=asked.threads, precision=asked.precision)
    at = device.machine(here, World.start(mpi=False))
    split = settings.data.split
    problem = load_problem.problems_of(settings.model, settings.data, at, splits=(split,), seed=asked.seed)[split]
    model = problem.model
    where = f", checkpoints in {folder}" if folder else ""
    print(f"{problem}: {recipe.epochs} epochs of batches of {recipe.batch_size}{where}")
    if asked.dry_run:
        return 0
    with Stop(after=asked.stop_after, until=job_end(os.environ)) as stop:
        history = train(
            problem,
            recipe,
            folder=folder,
            every=asked.every,
            resume=asked.resume,
            observers=[_teller(recipe, problem.data.samples)],
            stop=lambda: stop() or stop.reason is not None,
        )
    if history.stopped:
        then = "the same command goes on" if folder else "nothing is kept without --folder"
        print(f"stopped after step {history.steps}; {then}")
        return 75
    results = {split: readings(problem)}
    other = load_problem.held_out(model, settings.changed("data", samples=None), at)
    if other is not None:
        results["test"] = readings(other)
    for name, values in results.items():
        acc = f", accuracy {values['acc']:.2f} %" if "acc" in values else ""
        print(f"{name}: loss {values['loss']:.6g} {problem.unit}{acc}")
    if asked.final:
        told = {"recipe": json.dumps(vars(recipe) | {"milestones": list(recipe.milestones)}), "readings": results}
        save({"state_dict": model.state_dict(), **told}, asked.final)
    print("the trained net is in " + (asked.final or str(history.checkpoints[-1])))
    return 0


def _teller(recipe: Recipe, samples: int) -> Callable[[int, Any, float], None]:
    """Prints a line for each epoch."""
    from lossmap.training import steps_per_epoch

    each, began = steps_per_epoch(samples, recipe.batch_size), time.monotonic()
    losses: list[float] = []

    def tell(step: int, model: Any, loss: float) -> None:
        losses.append(loss)
        if step % each == 0:
            count = f"{step // each:{len(str(recipe.epochs))}}/{recipe.epochs}"
            spent = time.monotonic() - began
            print(f"epoch {count}  loss {sum(losses) / len(losses):.4f}  {spent:.1f} s", flush=True)
            losses.clear()

    return tell
