"""`lossmap health`: examine a network's weights, gradients, Hessian, features and signals for what may be wrong.

Each finding comes with its number and error bar, its threshold and source, what it may mean and what could be tried. A
healthy network gets a short report. Curvature, gradients, features and signals are those of one split, by default
of the training samples; accuracy and labels are judged on the test samples too. The exit code is 0 whatever was found,
or 3 for serious findings with --fail-on-serious.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lossmap.cli import output
from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import guarded, launched_rank
from lossmap.cli.setting_groups import DataSettings, ModelSettings, RunSettings, parameters_setting
from lossmap.cli.settings import Settings, UsageError, setting
from lossmap.parallel.world import World
from lossmap.results import value_groups

if TYPE_CHECKING:
    from lossmap.health.diagnosis import Diagnosis


@dataclass(frozen=True)
class HealthSettings:
    """Examination options."""

    examinations: tuple[str, ...] = setting(
        ("weights", "gradients", "hessian", "collapse", "signals"),
        "examinations to make, of these five",
        metavar="NAME",
    )
    hessian_samples: int = setting(512, "samples for gradients and Hessian, at most", metavar="SAMPLES")
    lr: float | None = setting(
        None, "learning rate, by which the edge of stability is judged", metavar="RATE", names=("--rate",)
    )
    momentum: float = setting(0.0, "momentum of the steps taken with it", metavar="SHARE")
    nesterov: bool = setting(False, "Nesterov's momentum, which `lossmap train` has by default")
    held_out: bool = setting(True, "accuracy and labels on the test split too, where there is one")
    layer: str | None = setting(
        None, "layer whose input are the features; by default the last linear one", metavar="NAME"
    )
    parameters: str = parameters_setting()
    density_error: float = setting(0.05, "error of the spectral density, as a share of its range", metavar="SHARE")
    seed: int = setting(0, "seed of probes and of the subset of samples", metavar="SEED")
    json: str | None = setting(None, "report as machine-readable JSON; - prints it instead", metavar="FILE")
    figure: str | None = setting(
        None, "report as a figure on one page: .pdf, .png, .svg", metavar="FILE", former=("--sheet",)
    )
    surf_file: str | None = setting(None, "result file that gets the report, in group health", metavar="FILE")
    fail_on_serious: bool = setting(False, "exit code 3 where a finding is serious")
    precision: str = setting(
        "float32", "floating-point format of all computing", choices=("float32", "tf32", "float64")
    )
    device: str = setting("auto", "auto, cpu, cuda or cuda:1", metavar="DEVICE")
    threads: int | None = setting(
        None, "number of threads; by default the cores of this process", metavar="COUNT", minimum=1
    )
    batch_size: int | None = setting(
        None, "number of samples per pass; by default chosen", metavar="SAMPLES", minimum=1
    )


COMMAND = Command(
    "health",
    __doc__ or "",
    (ModelSettings, DataSettings, HealthSettings),
    (
        "lossmap health --model resnet20-w8 --model-file net.pt --lr 0.1 --momentum 0.9",
        "lossmap health --model mlp --model-file net.pt --examinations weights signals --json report.json",
        "lossmap health --model resnet20-w8 --model-file net.pt --figure health.pdf --fail-on-serious",
    ),
)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 examined, 2 usage error, 3 a serious finding with --fail-on-serious."""
    settings = COMMAND.parse(argv)
    if settings.data.split == "both":
        raise UsageError(
            "a network is examined on one split, --split train or --split test; of training samples, accuracy and "
            "labels are judged on the test split too (--held-out)"
        )
    return run(settings)


def run(settings: Settings) -> int:
    """Examine, then print, draw and store the report; the exit code. Under mpirun rank 0 alone does."""
    from lossmap.cli import device, load_problem
    from lossmap.health.diagnose import diagnose
    from lossmap.health.finding import SERIOUS

    if launched_rank() != 0:
        return 0
    options, world = settings.health, World.start(mpi=False)
    execution = RunSettings(precision=options.precision, device=options.device, threads=options.threads)
    machine = device.prepare_machine(execution, world)
    settings = load_problem.with_default_problem(settings, lambda text: print(text, file=sys.stderr))
    problem = load_problem.problems_of(settings.model, settings.data, machine)[settings.data.split]
    if options.batch_size:
        problem = problem.rebatched(options.batch_size)
    test = None
    if options.held_out:
        test = load_problem.held_out_problem(problem.model, settings, machine)
    diagnosis = diagnose(
        problem,
        examinations=options.examinations,
        samples=options.hessian_samples,
        rate=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        held_out=test,
        layer=options.layer,
        parameters=options.parameters,
        density_error=options.density_error,
        seed=options.seed,
        label=label_of(settings),
    )
    say = output.rank_0_printer(world, settings.notes)
    say(diagnosis.to_json() if options.json == "-" else repr(diagnosis))
    store(diagnosis, settings, say)
    is_serious = any(finding.level == SERIOUS for finding in diagnosis.findings)
    if options.fail_on_serious and is_serious:
        return 3
    return 0


def label_of(settings: Settings) -> str:
    """The name of the network in the report."""
    if settings.model.model_file:
        return Path(settings.model.model_file).name
    return settings.data.problem or f"{settings.model.model}, untrained"


def store(diagnosis: Diagnosis, settings: Settings, say: output.Printer) -> None:
    """Write the JSON, the figure, and the group in a result file that the settings name."""
    options = settings.health
    if options.json not in (None, "-"):
        Path(options.json).write_text(diagnosis.to_json() + "\n")
        say(f"report: {options.json}")
    if options.figure:
        from lossmap.plotting.health import draw_health
        from lossmap.plotting.style import save

        say(f"figure: {save(draw_health(diagnosis.to_dict()), options.figure)}")
    if options.surf_file:
        from lossmap.geometry.grid import Grid
        from lossmap.io.eigenvector_store import put_group
        from lossmap.io.surface import Group, Surface

        def new_result() -> Surface:
            attributes: dict[str, Any] = {"long_name": "a single point", "command": "health"}
            return Surface(Grid(np.zeros(1)), {}, settings={"file": settings.resolved()}, attributes=attributes)

        put_group(options.surf_file, "health", Group(*diagnosis.stored()), new_result)
        for place, group in value_groups(diagnosis.without_vectors(), "health").items():
            put_group(options.surf_file, place, group, new_result)
        say(f"stored in: {options.surf_file}")
