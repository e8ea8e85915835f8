"""`lossmap health`: examine a network's weights, gradients, Hessian, features and signals for what may be wrong.

Each finding comes with its number and error bar, its threshold and source, what it may mean and what could be tried. A
healthy network gets a short report. Curvature, gradients, features and signals are those of one split, by default
of the training samples; accuracy and labels are judged on the test samples too. The exit code is 0 whatever was found,
or 3 for serious findings with --fail-on-serious.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lossmap.cli import output
from lossmap.cli.announce import announce
from lossmap.cli.budget import left_of, time_sentence
from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import guarded, launched_rank
from lossmap.cli.measure_settings import GROUPS, HealthSettings
from lossmap.cli.setting_groups import RunSettings
from lossmap.cli.settings import Settings, UsageError
from lossmap.parallel.command_clock import command_began
from lossmap.parallel.world import World
from lossmap.results import value_groups

if TYPE_CHECKING:
    from lossmap.data.problem import Problem
    from lossmap.health.diagnosis import Diagnosis
    from lossmap.linalg.expected_products import SpectrumParts
    from lossmap.report.price import Price


COMMAND = Command(
    "health",
    __doc__ or "",
    GROUPS["health"],
    (
        "lossmap health --model resnet20-w8 --model-file net.pt --lr 0.1 --momentum 0.9",
        "lossmap health --model mlp --model-file net.pt --examinations weights signals --json report.json",
        "lossmap health --model resnet20-w8 --model-file net.pt --figure health.pdf --fail-on-serious",
    ),
    without=frozenset({"model_file2", "model_file3"}),
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


@dataclass(frozen=True, eq=False)
class Examination:
    """What is to be examined, before it is.

    problem   all samples of one split; few: those of gradients and Hessian; held_out: of no training
    parts     what is computed of the Hessian
    """

    settings: Settings
    problem: Problem
    few: Problem
    held_out: Problem | None
    parts: SpectrumParts

    def price(self) -> Price:
        """What it is expected to take, from a few timed products. Raises what these raise."""
        from lossmap.health.price import price_of_examination

        options = self.settings.health
        return price_of_examination(
            self.problem, self.few, self.parts, options.examinations, options.parameters, self.held_out
        )


def examined(settings: Settings, world: World) -> Examination:
    """Load what the settings name."""
    from lossmap.cli import device, load_problem
    from lossmap.geometry.parameter_vector import selected
    from lossmap.health.diagnose import subset
    from lossmap.health.price import parts_of_examination

    options = settings.health
    execution = RunSettings(precision=options.precision, device=options.device, threads=options.threads)
    machine = device.prepare_machine(execution, world)
    settings = load_problem.with_default_problem(settings, lambda text: print(text, file=sys.stderr))
    with beside_report(options):  # the notes on data and loss
        problem = load_problem.problem_and_files(settings, world, machine, (settings.data.split,))[settings.data.split]
    if options.batch_size:
        problem = problem.rebatched(options.batch_size)
    test = None
    if options.held_out:
        test = load_problem.held_out_problem(problem, settings, machine)
    n = sum(p.numel() for p in selected(problem.model, options.parameters).values())
    few = subset(problem, options.hessian_samples, options.seed)
    return Examination(settings, problem, few, test, parts_of_examination(n, options.density_error))


def beside_report(options: HealthSettings) -> AbstractContextManager[Any]:
    """A context in which what is printed stands beside the report: on stderr, where stdout is for its JSON alone."""
    return redirect_stdout(sys.stderr) if options.json == "-" else nullcontext()


def run(settings: Settings, world: World | None = None) -> int:
    """Examine, then print, draw and store the report; the exit code.

    world  of the rank that examines; None: under mpirun rank 0 alone does
    """
    from lossmap.health.diagnose import diagnose
    from lossmap.health.finding import SERIOUS

    if world is None:
        if launched_rank() != 0:
            return 0
        world = World.start(mpi=False)
    began, say = time.monotonic(), output.rank_0_printer(world)
    clock = command_began()
    with beside_report(settings.health):
        output.rank_0_printer(world, settings.notes)
    examination = examined(settings, world)
    settings, options = examination.settings, settings.health
    if options.dry_run:
        examinations = ", ".join(options.examinations) or "none"
        announce(world, "health", examination.price)
        print(f"would examine {label_of(settings)}: {examinations}")
        print(output.about_data({settings.data.split: examination.problem}))
        print("nothing was computed, and nothing was written (--dry-run)")
        return 0
    left = left_after_preparation(world, examination, options.budget, clock)
    diagnosis = diagnose(
        examination.problem,
        examinations=options.examinations,
        samples=options.hessian_samples,
        rate=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        held_out=examination.held_out,
        layer=options.layer,
        parameters=options.parameters,
        density_error=options.density_error,
        budget=left,
        seed=options.seed,
        label=label_of(settings),
    )
    say(diagnosis.to_json() if options.json == "-" else repr(diagnosis))
    with beside_report(options):
        store(diagnosis, settings, say, seconds=time.monotonic() - began)
    is_serious = any(finding.level == SERIOUS for finding in diagnosis.findings)
    if options.fail_on_serious and is_serious:
        return 3
    return 0


def left_after_preparation(world: World, examination: Examination, budget: str | None, began: float) -> float | None:
    """Print the price, and of --budget what is left; the seconds of it, None without one."""
    if budget is None:
        announce(world, "health", examination.price)
        return None
    announce(world, "health without --budget", examination.price)
    left = left_of(budget, began)
    print(f"--budget {budget}: {time_sentence(budget, left)}", file=sys.stderr, flush=True)
    return left


def label_of(settings: Settings) -> str:
    """The name of the network in the report."""
    if settings.model.model_file:
        return Path(settings.model.model_file).name
    name = str(settings.data.problem or settings.model.model)
    return name if ":" in name else f"{name}, untrained"  # a folder has its weights, and a factory may load some


def store(diagnosis: Diagnosis, settings: Settings, say: output.Printer, seconds: float) -> None:
    """Write the JSON, the figure, and the group in a result file that the settings name; `seconds` is what it took."""
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
            attributes: dict[str, Any] = {
                "long_name": "a single point",
                "command": "health",
                "file_id": secrets.token_hex(8),
            }
            return Surface(Grid(np.zeros(1)), {}, settings={"file": settings.resolved()}, attributes=attributes)

        arrays, attributes = diagnosis.stored()
        put_group(options.surf_file, "health", Group(arrays, attributes | {"seconds": seconds}), new_result)
        for place, group in value_groups(diagnosis.without_vectors(), "health").items():
            put_group(options.surf_file, place, group, new_result)
        say(f"stored in: {options.surf_file}")
