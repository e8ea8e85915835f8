"""`lossmap study`: the classic studies of loss landscapes, on small nets that it trains itself.

  flatness         small against large batches, with and without weight decay:
                   which statements about sharpness survive normalisation
  depth            residual nets with and without skip connections, and VGG-9:
                   convexity, minima, whether a bad start gets stuck
  generalisation   rank correlation of every number of sharpness with the gap
                   between test and training loss
  plane-curvature  what random planes show of the curvature, beside the extreme
                   eigenvalues and trace/n
  neurons          each layer's neurons along a run's checkpoints, projected

Every net is one member of a campaign in --folder, with report.txt, table.csv and picture.png beside. Under mpirun or
srun the ranks share the nets. Interrupted or killed, the same command resumes. `neurons` trains no net: it prints its
table, and writes a picture.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossmap.cli import output
from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import guarded
from lossmap.cli.setting_groups import ModelSettings, RunSettings
from lossmap.cli.settings import Settings, UsageError, setting
from lossmap.parallel.shutdown import Stop, job_end
from lossmap.parallel.world import World

if TYPE_CHECKING:
    from torch import nn

    from lossmap.studies.designs import Size

KINDS = ("flatness", "depth", "generalisation", "plane-curvature", "neurons")
OWN_FLAGS = {  # of some studies alone; the others would leave them aside
    "model": ("flatness", "generalisation", "plane-curvature", "neurons"),
    "depths": ("depth",),
    "ticks": ("depth",),
    "planes": ("plane-curvature",),
    **dict.fromkeys(("seeds", "epochs", "samples", "quick", "retry_failed"), KINDS[:-1]),
}


@dataclass(frozen=True)
class StudySettings:
    """Study options."""

    kind: str = setting("", "the study: " + ", ".join(KINDS), metavar="STUDY", positional=True)
    run: str | None = setting(
        None, "folder of a run's checkpoints, for neurons", metavar="FOLDER", names=("--model-folder",)
    )
    folder: str | None = setting(None, "folder of the study; by default study-STUDY", metavar="FOLDER")
    seeds: int | None = setting(None, "random seeds of each arm; by default 2 to 5", metavar="COUNT", minimum=1)
    epochs: int | None = setting(None, "epochs of each training; by default 8 or 20", metavar="COUNT", minimum=1)
    samples: int | None = setting(
        None, "training samples that curvature is measured over; by default 256", metavar="COUNT", minimum=1
    )
    model: str | None = setting(
        None,
        "net of the zoo that takes the digits, for all but depth; for neurons that of the run, which may be "
        "path/file.py:factory or hf:FOLDER, too; by default mlp",
        metavar="NAME",
    )
    depths: tuple[int, ...] = setting((), "depths of the residual nets; by default 8 14 20", metavar="DEPTH")
    ticks: int | None = setting(
        None, "ticks along each axis of a plane, for depth; by default 11", metavar="COUNT", minimum=5
    )
    planes: int | None = setting(
        None, "random planes of each kind, for plane-curvature; by default 20", metavar="COUNT", minimum=1
    )
    quick: bool = setting(False, "a small version that shows how it goes, of 2 seeds and 5 epochs")
    retry_failed: bool = setting(False, "new attempts at nets that failed")
    threads: int | None = setting(None, "threads of each rank; by default its cores", metavar="COUNT", minimum=1)
    stop_after: float | None = setting(None, "seconds after which it stops, resumable", metavar="SECONDS")
    plot: bool = setting(True, "the picture")
    dry_run: bool = setting(False, "the nets that would be trained, without training them")


COMMAND = Command(
    "study",
    __doc__ or "",
    (StudySettings,),
    (
        "lossmap study flatness --quick",
        "mpirun -n 4 lossmap study generalisation --seeds 4 --threads 1",
        "lossmap study neurons --model-folder run --model mlp",
    ),
)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 complete, 2 usage error, 3 completed with failed nets, 75 interrupted, resumable."""
    settings = COMMAND.parse(argv)
    world = World.start()
    return world.leave(run(settings, world))


def size_of(settings: Settings) -> Size:
    """How large the study is: its defaults, changed by flags. Raises UsageError for a size that cannot be."""
    from lossmap.studies.designs import DEFAULTS, QUICK

    options = settings.study
    start = QUICK if options.quick else DEFAULTS[options.kind]
    given: dict[str, Any] = {
        name: getattr(options, name) for name in ("seeds", "epochs", "samples", "model", "ticks", "planes")
    }
    given["depths"] = options.depths or None
    try:
        return replace(start, **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise UsageError(f"--{error}") from None


def run(settings: Settings, world: World) -> int:
    """Compute the study, print and draw it; the exit code."""
    options = settings.study
    if options.kind not in KINDS:
        raise UsageError(f"the study must be one of {', '.join(KINDS)}; got {options.kind or 'none'}")
    if (options.run is not None) != (options.kind == "neurons"):
        raise UsageError("neurons needs --model-folder, the checkpoints of a run; the other studies train their own")
    for name, kinds in OWN_FLAGS.items():
        if getattr(options, name) and options.kind not in kinds:
            raise UsageError(
                f"--{name.replace('_', '-')} is of {', '.join(kinds)}, not of {options.kind}: leave it out"
            )
    say = output.rank_0_printer(world, settings.notes)
    folder = Path(options.folder or f"study-{options.kind}")
    if options.kind == "neurons":
        return neurons(settings, folder, world, say)
    return campaign(settings, folder, world, say)


def campaign(settings: Settings, folder: Path, world: World, say: output.Printer) -> int:
    """A study of nets that are trained as members of a campaign."""
    from lossmap import zoo
    from lossmap.cli import device
    from lossmap.studies.designs import DESIGNS
    from lossmap.studies.study import run_study

    options, size = settings.study, size_of(settings)
    if ":" in size.model:
        raise UsageError(
            f"--model of {options.kind} must be a net of the zoo, such as mlp, which lossmap.zoo.names() lists; got "
            f"{size.model}"
        )
    try:
        zoo.known(size.model)
        refuse_unfit(zoo.build(size.model, seed=0))
    except ValueError as error:
        raise UsageError(f"--model: {error}") from None
    members = DESIGNS[options.kind](size)
    if options.dry_run:
        for member in members:
            say(f"would train and measure {member.name}")
        say(f"  folder  {folder}\nnothing was computed, and nothing was written (--dry-run)")
        return 0
    device.prepare_machine(RunSettings(device="cpu", threads=options.threads), world)
    with Stop(after=options.stop_after, until=job_end(os.environ)) as stop:
        study = run_study(
            options.kind, size, folder, world=world, stop=stop, retry_failed=options.retry_failed, progress=None
        )
    if study.left:
        say(f"interrupted with {study.left} of {len(members)} nets left; run the same command again to resume")
        return output.EXIT_CODES["unfinished"]
    say(study.report)
    if world.rank == 0 and options.plot and study.nets:
        from lossmap.plotting.studies import draw_study
        from lossmap.plotting.style import save

        say(f"picture: {save(draw_study(study.kind, study.nets), folder / 'picture.png', dpi=200)}")
    say(f"report and table: {folder}")
    return output.EXIT_CODES[study.outcome]


def refuse_unfit(model: nn.Module) -> None:
    """Raises ValueError for a net that does not take a digit, before every net of the study fails by that."""
    import torch

    from lossmap.data.borrow import temporary_parameters

    shape = (2, 1, 8, 8)  # samples, channels, rows, columns
    try:
        with temporary_parameters(model, {}), torch.no_grad():
            outputs = model(torch.zeros(shape))
    except Exception as error:
        raise ValueError(f"this net does not take the digits, of 1 channel and 8x8 pixels: {error}") from None
    if outputs.shape != (2, 10):
        raise ValueError(f"this net has outputs {tuple(outputs.shape)} for two digits, not (2, 10)")


def neurons(settings: Settings, folder: Path, world: World, say: output.Printer) -> int:
    """Each layer's neurons along a run, projected and drawn. Rank 0 alone does it."""
    from lossmap.cli.load_model import model_of
    from lossmap.studies.neurons import neuron_paths

    options = settings.study
    model = model_of(ModelSettings(model=options.model or "mlp"))
    if options.dry_run:
        say(f"would project the neurons of {options.run}; nothing was written (--dry-run)")
        return 0
    layers = world.once(lambda: neuron_paths([options.run], model))
    for layer in layers:
        say(str(layer))
    if world.rank == 0:
        from lossmap.plotting.studies import draw_neurons
        from lossmap.plotting.style import save

        folder.mkdir(parents=True, exist_ok=True)
        say(f"picture: {save(draw_neurons(layers), folder / 'picture.png', dpi=200)}")
    return 0
