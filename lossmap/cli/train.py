"""`lossmap train`: train any model on any data, with checkpoints along the run; the same command resumes.

The checkpoints, step_000120.pt and so on, lie in --folder, from before the first step to after the last; with
--final FILE alone, only the trained network is stored.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import guarded, launched_rank
from lossmap.cli.setting_groups import DataSettings, ModelSettings, RunSettings
from lossmap.cli.settings import Settings, UsageError, setting
from lossmap.parallel.shutdown import Stop, job_end
from lossmap.parallel.world import World

if TYPE_CHECKING:
    from lossmap.training import Recipe


@dataclass(frozen=True)
class TrainSettings:
    """Training options."""

    folder: str | None = setting(None, "folder of the checkpoints; by default run, without --final", metavar="FOLDER")
    final: str | None = setting(None, "the trained network alone, as one checkpoint", metavar="FILE")
    save_every: int | None = setting(
        None, "steps between two checkpoints; by default those of an epoch", metavar="STEPS", former=("--every",)
    )
    resume: bool = setting(True, "continuation of the run in --folder")
    epochs: int = setting(12, "passes over the data", metavar="EPOCHS")
    batch_size: int = setting(128, "samples in a batch", metavar="SAMPLES")
    optimizer: str = setting("sgd", "optimizer", choices=("sgd", "adam"))
    lr: float = setting(0.1, "learning rate at the start", metavar="RATE", names=("--rate",))
    momentum: float = setting(0.9, "momentum of sgd", metavar="SHARE", needs=("optimizer", "sgd"))
    nesterov: bool = setting(True, "Nesterov's momentum", needs=("optimizer", "sgd"))
    weight_decay: float = setting(5e-4, "weight decay", metavar="RATE")
    schedule: str = setting("cosine", "schedule of the learning rate", choices=("constant", "cosine", "step"))
    milestones: tuple[float, ...] = setting(
        (0.5, 0.75, 0.9),
        "shares of the run at which --schedule step divides the rate by 10",
        metavar="SHARE",
        needs=("schedule", "step"),
    )
    augment: str = setting("none", "augmentation of images", choices=("none", "shift", "shift-flip"))
    seed: int = setting(0, "seed of the weights, of the order of the samples, of dropout", metavar="SEED")
    precision: str = setting("float32", "floating-point format of all computing", choices=("float32", "float64"))
    device: str = setting("auto", "auto, cpu, cuda, xpu, mps or cuda:1", metavar="DEVICE")
    threads: int | None = setting(
        None, "number of threads; by default the cores of this process", metavar="COUNT", minimum=1
    )
    stop_after: float | None = setting(None, "seconds after which it stops, resumable", metavar="SECONDS")
    dry_run: bool = setting(False, "summary of what would be done, without doing it")


COMMAND = Command(
    "train",
    __doc__ or "",
    (ModelSettings, DataSettings, TrainSettings),
    (
        "lossmap train --model resnet20-w8 --epochs 12 --folder run",
        "lossmap train --model mlp --optimizer adam --lr 0.001 --final net.pt",
        "lossmap train --model resnet20 --dataset cifar10 --data-path cifar10 --augment shift-flip --folder run",
    ),
    without=frozenset({"model_file2", "model_file3", "model_folder"}),
)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 complete, 2 usage error, 75 interrupted, resumable."""
    settings = COMMAND.parse(argv)
    if settings.data.split == "both":
        raise UsageError("a network is trained on one split; use --split train or --split test")
    if launched_rank() != 0:  # training is for one process; the other ranks of mpirun have nothing to do
        return 0
    return run(settings)


def recipe_of(options: TrainSettings) -> Recipe:
    """The training recipe of the settings."""
    from lossmap.training import Recipe

    return Recipe(
        epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer=options.optimizer,
        rate=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        schedule=options.schedule,
        milestones=tuple(float(m) for m in options.milestones),
        augment=options.augment,
        seed=options.seed,
    )


def run(settings: Settings) -> int:
    """Build the problem, train it, report loss and accuracy; the exit code."""
    from lossmap.cli import device, load_problem
    from lossmap.training import readings, save, train

    options = settings.train
    for note in [*settings.notes, *(f"note: {note}" for note in load_problem.not_used(settings))]:
        print(note)
    folder = options.folder or (None if options.final else "run")
    recipe = recipe_of(options)
    execution = RunSettings(device=options.device, threads=options.threads, precision=options.precision)
    machine = device.prepare_machine(execution, World.start(mpi=False))
    split = settings.data.split
    problem = load_problem.problems_of(settings.model, settings.data, machine, splits=(split,), seed=options.seed)[
        split
    ]
    model = problem.model
    where = f", checkpoints in {folder}" if folder else ""
    print(f"{problem}: {recipe.epochs} epochs of batches of {recipe.batch_size}{where}")
    if options.dry_run:
        return 0
    with Stop(after=options.stop_after, until=job_end(os.environ)) as stop:
        history = train(
            problem,
            recipe,
            folder=folder,
            every=options.save_every,
            resume=options.resume,
            observers=[epoch_printer(recipe, problem.data.samples)],
            stop=lambda: stop() or stop.reason is not None,
        )
    if history.stopped:
        advice = "run the same command again to resume" if folder else "nothing is stored without --folder"
        print(f"interrupted after step {history.steps}; {advice}")
        return 75
    results = {split: readings(problem)}
    test = load_problem.held_out_problem(problem, settings.changed("data", samples=None), machine)
    if test is not None:
        results["test"] = readings(test)
    for name, values in results.items():
        accuracy = f", accuracy {values['acc']:.2f} %" if "acc" in values else ""
        print(f"{name}: loss {values['loss']:.6g} {problem.unit}{accuracy}")
    if options.final:
        details = {"recipe": json.dumps(vars(recipe) | {"milestones": list(recipe.milestones)}), "readings": results}
        save({"state_dict": model.state_dict(), **details}, options.final)
    print("the trained net is in " + (options.final or str(history.checkpoints[-1])))
    return 0


def epoch_printer(recipe: Recipe, samples: int) -> Callable[[int, Any, float], None]:
    """An observer of the training that prints a line for each epoch."""
    from lossmap.training import steps_per_epoch

    steps, start = steps_per_epoch(samples, recipe.batch_size), time.monotonic()
    losses: list[float] = []

    def observe(step: int, model: Any, loss: float) -> None:
        losses.append(loss)
        if step % steps == 0:
            count = f"{step // steps:{len(str(recipe.epochs))}}/{recipe.epochs}"
            elapsed = time.monotonic() - start
            print(f"epoch {count}  loss {sum(losses) / len(losses):.4f}  {elapsed:.1f} s", flush=True)
            losses.clear()

    return observe
