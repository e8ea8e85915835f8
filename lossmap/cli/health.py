"""`lossmap health`: examine a network's weights, gradients, Hessian, features and signals, and say what may be wrong.

Each finding comes with its number and error bar, its threshold and source, what it may mean and what could be tried. A
healthy net gets a short report. Curvature, gradients, features and signals are those of one split, by default of the
training samples; accuracy and labels are judged on the test samples too. Exit code 0 whatever was found;
--fail-on-serious makes serious findings 3.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lossmap.cli import output
from lossmap.cli.setting_groups import DataSettings, ModelSettings, RunSettings
from lossmap.cli.settings import Settings, UsageError, guarded, launched_rank, parse, setting
from lossmap.parallel.world import World

if TYPE_CHECKING:
    from lossmap.health.diagnosis import Diagnosis


@dataclass(frozen=True)
class HealthSettings:
    """The examination."""

    examinations: tuple[str, ...] = setting(
        ("weights", "gradients", "hessian", "collapse", "signals"), "which of the five are made"
    )
    hessian_samples: int = setting(512, "samples for gradients and Hessian, at most", metavar="SAMPLES")
    lr: float | None = setting(None, "learning rate: judge the edge of stability", metavar="RATE", names=("--rate",))
    momentum: float = setting(0.0, "of the steps taken with it", metavar="SHARE")
    nesterov: bool = setting(False, "the momentum is Nesterov's, as lossmap train's is by default")
    held_out: bool = setting(True, "judge accuracy and labels on the test split too, where there is one")
    layer: str | None = setting(None, "whose input are the features; by itself the last linear one", metavar="NAME")
    parameters: str = setting("weights", "weights (dimension > 1), all, or a regular expression", metavar="WHICH")
    density_error: float = setting(0.05, "error of the spectral density, as a share of its range", metavar="SHARE")
    seed: int = setting(0, "of probes and of the subset of samples", metavar="SEED")
    json: str | None = setting(None, "write the report as JSON here; - prints it instead", metavar="FILE")
    sheet: str | None = setting(None, "draw it on one sheet here: .pdf, .png, .svg", metavar="FILE")
    surf_file: str | None = setting(None, "keep it in this result file, group health", metavar="FILE")
    fail_on_serious: bool = setting(False, "exit with 3 where a finding is serious")
    precision: str = setting("float32", "of all computing", choices=("float32", "tf32", "float64"))
    device: str = setting("auto", "auto, cpu, cuda or cuda:1", metavar="DEVICE")
    threads: int | None = setting(None, "threads to use; by default this process's cores", metavar="COUNT")
    batch_size: int | None = setting(None, "samples per pass", metavar="SAMPLES")


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Open this door: 0 examined, 2 makes no sense, 3 a serious finding where that was asked for."""
    groups = (ModelSettings, DataSettings, HealthSettings)
    settings = parse(groups, argv, prog="lossmap health", about=__doc__ or "")
    if settings.data.split == "both":
        raise UsageError(
            "a network is examined on one split, --split train or --split test; of training samples, accuracy and "
            "labels are judged on the test split too (--held-out)"
        )
    return run(settings)


def run(settings: Settings) -> int:
    """Examine, then print, draw and keep what was asked for. Under mpirun rank 0 alone does."""
    from lossmap.cli import device, load_problem
    from lossmap.health.diagnose import diagnose
    from lossmap.health.finding import SERIOUS

    if launched_rank() != 0:
        return 0
    wanted, world = settings.health, World.start(mpi=False)
    here = RunSettings(precision=wanted.precision, device=wanted.device, threads=wanted.threads)
    at = device.machine(here, world)
    settings = load_problem.at_checkpoint(settings, lambda text: print(text, file=sys.stderr))
    problem = load_problem.problems_of(settings.model, settings.data, at)[settings.data.split]
    if wanted.batch_size:
        problem = problem.rebatched(wanted.batch_size)
    model = settings.model
    health = diagnose(
        problem,
        examinations=wanted.examinations,
        samples=wanted.hessian_samples,
        rate=wanted.lr,
        momentum=wanted.momentum,
        nesterov=wanted.nesterov,
        held_out=load_problem.held_out(problem.model, settings, at) if wanted.held_out else None,
        layer=wanted.layer,
        parameters=wanted.parameters,
        density_error=wanted.density_error,
        seed=wanted.seed,
        label=Path(model.model_file).name if model.model_file else settings.data.problem or f"{model.model}, untrained",
    )
    say = output.rank_0_printer(world, settings.notes)
    say(health.to_json() if wanted.json == "-" else repr(health))
    kept(health, settings, say)
    serious = any(finding.level == SERIOUS for finding in health.findings)
    return 3 if wanted.fail_on_serious and serious else 0


def kept(health: Diagnosis, settings: Settings, say: output.Say) -> None:
    """The JSON, the sheet, and the group in a result file."""
    wanted = settings.health
    if wanted.json not in (None, "-"):
        Path(wanted.json).write_text(health.to_json() + "\n")
        say(f"report: {wanted.json}")
    if wanted.sheet:
        from lossmap.plotting.health import draw_health
        from lossmap.plotting.style import save

        say(f"sheet: {save(draw_health(health.to_dict()), wanted.sheet)}")
    if wanted.surf_file:
        from lossmap.geometry.grid import Grid
        from lossmap.io.eigenvector_store import put_group
        from lossmap.io.surface import Group, Surface

        def fresh() -> Surface:
            attributes: dict[str, Any] = {"long_name": "one place alone", "command": "health"}
            return Surface(Grid(np.zeros(1)), {}, settings={"file": settings.resolved()}, attributes=attributes)

        put_group(wanted.surf_file, "health", Group(*health.stored()), fresh)
        say(f"kept in: {wanted.surf_file}")
