"""`lossmap legacy SCRIPT`: the command lines of the original tool's drawing scripts (tomgoldstein/loss-landscape).

SCRIPT is plot_1D, plot_2D, plot_trajectory or h52vtp; its flags have the names and defaults that they have there, and
the pictures are written beside the file under the names that they have there. Files of the original tool and of lossmap
are both read. The drawing is lossmap's: missing points are shown as missing, and grids that are not square stand right.

  plot_1D          loss and accuracy along a line, the loss alone, the error alone; with --prefix several lines in one
  plot_2D          contours, filled contours, cells and 3-D of a plane; with --proj-file and --dir-file a training path
  plot_trajectory  the path of a run in --model-folder, PREFIX0SUFFIX and so on, in the plane of its principal axes
  h52vtp           polygons for ParaView
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.cli.command_line import Command
from lossmap.cli.draw import is_other_path, without_other_path
from lossmap.cli.entry_point import guarded
from lossmap.cli.settings import Settings, UsageError, flag_of, setting
from lossmap.geometry.grid import Field, Grid
from lossmap.io.read import read, training_path
from lossmap.io.surface import Surface
from lossmap.plotting.figures import draw, save
from lossmap.plotting.options_taken import used_options
from lossmap.plotting.quantities import is_line
from lossmap.plotting.save_next_to import show
from lossmap.plotting.vtk import vtk

ERRORS = {"train_err": "train_acc", "test_err": "test_acc"}  # of which they are 100 minus


@dataclass(frozen=True)
class FileSettings:
    """File options."""

    script: str = setting(MISSING, "plot_1D, plot_2D, plot_trajectory or h52vtp", metavar="SCRIPT", positional=True)
    surf_file: str = setting("", "result file", metavar="FILE", names=("--file", "-f"))
    prefix: str | None = setting(
        None, "plot_1D: beginning of several files, PREFIX_1.h5 and so on; plot_trajectory: of checkpoints (model_)",
        metavar="PREFIX",
    )  # fmt: skip
    idx_min: int = setting(1, "plot_1D: number of the first file of --prefix", metavar="N")
    idx_max: int = setting(10, "plot_1D: number of the last file of --prefix", metavar="N")
    dir_file: str = setting("", "file with the plane's directions", metavar="FILE")
    proj_file: str = setting("", "file with the projected training path", metavar="FILE")
    model: str = setting("resnet56", "plot_trajectory: network", metavar="NAME")
    dataset: str = setting(
        "cifar10", "plot_trajectory: data, for the loss along the path; of cifar10 the path alone", metavar="NAME"
    )
    model_folder: str = setting("", "plot_trajectory: folder of the run's checkpoints", metavar="FOLDER")
    suffix: str = setting(".t7", "plot_trajectory: end of the checkpoints' names", metavar="SUFFIX")
    start_epoch: int = setting(0, "plot_trajectory: first epoch", metavar="N")
    max_epoch: int = setting(300, "plot_trajectory: last epoch", metavar="N")
    save_epoch: int = setting(1, "plot_trajectory: epochs between two checkpoints", metavar="N", minimum=1)
    dir_type: str = setting("weights", "plot_trajectory: weights, or states with batch norm", metavar="TYPE")
    ignore: str = setting("", "plot_trajectory: biasbn leaves biases and batch norm out", metavar="WHICH")


@dataclass(frozen=True)
class PictureSettings:
    """Figure options."""

    surf_name: str = setting(
        "train_loss",
        "train_loss, test_loss, train_acc, test_acc, train_err, test_err, or another field",
        metavar="NAME",
    )
    xmin: float = setting(-1.0, "plot_1D: left end; -1 is that of the data", metavar="X")
    xmax: float = setting(1.0, "plot_1D: right end; 1 is that of the data", metavar="X")
    loss_max: float = setting(5.0, "plot_1D: upper end of the loss axis", metavar="LOSS")
    vmin: float = setting(0.1, "plot_2D: lowest level", metavar="LEVEL")
    vmax: float = setting(10.0, "plot_2D: highest level", metavar="LEVEL")
    vlevel: float = setting(0.5, "plot_2D: step of the levels", metavar="STEP", above=0)
    zlim: float = setting(10.0, "plot_2D: without effect, as in the original", metavar="LOSS")
    zmax: float = setting(-1.0, "h52vtp: heights above it are cut off; none where it is not positive", metavar="LOSS")
    interp: int = setting(-1, "h52vtp: points along an axis, by a cubic spline; none where not positive", metavar="N")
    log: bool = setting(False, "plot_1D, h52vtp: logarithmic loss")
    show: bool = setting(False, "figure on the screen")


COMMAND = Command(
    "legacy",
    __doc__ or "",
    (FileSettings, PictureSettings),
    (
        "lossmap legacy plot_1D --surf_file line.h5 --loss_max 5 --log",
        "lossmap legacy plot_2D --surf_file plane.h5 --surf_name train_loss --vmin 0.1 --vmax 10 --vlevel 0.5",
        "lossmap legacy h52vtp --surf_file plane.h5 --surf_name train_loss --zmax 10 --log",
    ),
)
# the flags of each script, beside the script itself
FLAGS = {
    "plot_1D": {"surf_file", "log", "xmin", "xmax", "loss_max", "show", "prefix", "idx_min", "idx_max"},
    "plot_2D": {"surf_file", "dir_file", "proj_file", "surf_name", "vmin", "vmax", "vlevel", "zlim", "show"},
    "plot_trajectory": {
        "dataset", "model", "model_folder", "dir_type", "ignore", "prefix", "suffix", "start_epoch", "max_epoch",
        "save_epoch", "dir_file",
    },
    "h52vtp": {"surf_file", "surf_name", "zmax", "interp", "log"},
}  # fmt: skip


NOW = {"plot_surface": "lossmap surface", "plot_hessian_eigen": "lossmap eigenmap"}


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run a script of the original tool: 0 done, 2 usage error."""
    if argv and not argv[0].startswith("-"):
        _check_script(argv[0])  # before its flags, which would be unknown
    settings = COMMAND.parse(argv)
    script = _check_script(settings.file.script)
    foreign = sorted(settings.explicit - FLAGS[script] - {"script"})
    if foreign:
        flags = ", ".join(flag_of(name).replace("-", "_").replace("__", "--", 1) for name in sorted(FLAGS[script]))
        raise UsageError(f"{script} has no {flag_of(foreign[0])}; it has {flags}")
    run = {"plot_1D": plot_1d, "plot_2D": plot_2d, "plot_trajectory": plot_trajectory, "h52vtp": h52vtp}[script]
    written = run(settings)
    for path in written:
        print(f"picture: {path}")
    if settings.picture.show and written and not show(written[0]):
        print(f"no viewer was found on this machine to show {written[0]}")
    return 0


def _check_script(name: str) -> str:
    """The script's name without its ending. Raises UsageError with the command where it is one of the others."""
    script = name.removesuffix(".py")
    if script in NOW:
        raise UsageError(f"the command lines of {name} are those of {NOW[script]}, which takes its flags as they are")
    if script not in FLAGS:
        raise UsageError(f"the script must be one of {', '.join(FLAGS)}; got {name!r}")
    return script


def plot_1d(settings: Settings) -> list[Path]:
    """Pictures of a line, or of several lines in one."""
    files, picture = settings.file, settings.picture
    if files.prefix:
        return _repeated(settings)
    surface = _surface(files.surf_file, "plot_1D")
    if not is_line(surface):
        raise ValueError(f"{files.surf_file} holds a plane: lossmap legacy plot_2D draws it")
    log = "_log" if picture.log else ""
    figures = {f"_1d_loss_acc{log}": None, f"_1d_train_loss{log}": "train_loss", "_1d_train_err": "train_err"}
    written = []
    for end, name in figures.items():
        if name is not None and name not in surface:
            continue  # a file without accuracy has no error
        own = surface if name == "train_err" else _without_errors(surface)
        options = {"log": picture.log, "loss_max": picture.loss_max} if name != "train_err" else {"log": False}
        figure = draw(own, "line", name, **options)
        written.append(save(_between(figure, picture, [surface]), Path(f"{files.surf_file}{end}.pdf")))
    return written


def _repeated(settings: Settings) -> list[Path]:
    """Several lines in one picture for each field that all of them have."""
    files, picture = settings.file, settings.picture
    numbers = range(files.idx_min, files.idx_max + 1)
    if not numbers:
        raise UsageError(f"--idx_max must be >= --idx_min; got {files.idx_max} and {files.idx_min}")
    surfaces = [_surface(f"{files.prefix}_{i}.h5", "plot_1D") for i in numbers]
    fields = {"train_loss": "loss_err_repeat", "test_loss": "test_loss_repeat"}
    fields |= {"train_err": "train_err_repeat", "test_err": "test_err_repeat"}
    written = []
    for name, end in fields.items():
        if all(name in surface for surface in surfaces):
            limit = picture.loss_max if name.endswith("loss") else 100.0
            figure = draw(surfaces, "line", name, titles=[str(i) for i in numbers], log=picture.log, loss_max=limit)
            written.append(save(_between(figure, picture, surfaces), Path(f"{files.prefix}_1d_{end}.pdf")))
    if not written:
        raise ValueError(f"the files {files.prefix}_{numbers[0]}.h5 and so on have no loss in common")
    return written


def plot_2d(settings: Settings) -> list[Path]:
    """Pictures of a plane, of a training path on it, or of the path alone."""
    files, picture = settings.file, settings.picture
    levels = {"vmin": picture.vmin, "vmax": picture.vmax, "vlevel": picture.vlevel}
    if not files.proj_file:
        surface = without_other_path(_plane(files.surf_file, "plot_2D"), files.surf_file)
        name = _field(surface, picture.surf_name)
        stem = f"{files.surf_file}_{name}"
        kinds = {"contour": "_2dcontour", "filled": "_2dcontourf", "map": "_2dheat", "3d": "_3dsurface"}
        taken = {kind: used_options([surface], kind, name, levels) for kind in kinds}
        taken["3d"] = {}  # the original's surfaces are not cut
        return [save(draw(surface, kind, name, **taken[kind]), Path(f"{stem}{end}.pdf")) for kind, end in kinds.items()]
    path = training_path(files.proj_file, files.dir_file or None)
    if not files.surf_file:
        alone = Surface(Grid(np.zeros(1)), {}, groups={"trajectory": path})
        return [save(draw(alone, "path"), Path(f"{files.proj_file}.pdf"))]
    surface = _plane(files.surf_file, "plot_2D")
    name = _field(surface, picture.surf_name)
    is_other = is_other_path(files.proj_file, surface, files.surf_file)
    figure = draw(surface, "contour", name, trajectory=False if is_other else path, **levels)
    return [save(figure, Path(f"{files.proj_file}_{name}_2dcontour_proj.pdf"))]


def h52vtp(settings: Settings) -> list[Path]:
    """Polygons for ParaView."""
    files, picture = settings.file, settings.picture
    surface = _plane(files.surf_file, "h52vtp")
    name = _field(surface, picture.surf_name)
    end, limit = "", None
    if picture.zmax > 0:
        end, limit = f"_zmax={picture.zmax}", picture.zmax
    if picture.log:
        end += "_log"
    if picture.interp > 0:
        from lossmap.landscape.refine import refined

        surface = refined(surface, name, picture.interp)
    return vtk(surface, Path(f"{files.surf_file}_{name}{end}.vtp"), name, log=picture.log, vmax=limit)


def plot_trajectory(settings: Settings) -> list[Path]:
    """The path of a run projected onto its principal axes, or onto the directions of a file, and its picture."""
    from lossmap.cli.__main__ import main as run_command

    files = settings.file
    if not files.model_folder:
        raise UsageError("plot_trajectory needs --model_folder, the folder with the run's checkpoints")
    prefix = "model_" if files.prefix is None else files.prefix
    epochs = range(files.start_epoch, files.max_epoch + files.save_epoch, files.save_epoch)
    checkpoints = [Path(files.model_folder) / f"{prefix}{epoch}{files.suffix}" for epoch in epochs]
    for path in checkpoints:
        if not path.exists():
            raise UsageError(
                f"there is no {path}; --max_epoch, --save_epoch, --prefix and --suffix name the checkpoints"
            )
    result = Path(files.model_folder) / f"PCA_{files.dir_type}_save_epoch={files.save_epoch}_proj.h5"
    words = ["plane", "--model", files.model, "--dir-type", files.dir_type]
    # the original reads no data, whose name it takes
    words += ["--no-losses"] if files.dataset == "cifar10" else ["--dataset", files.dataset]
    words += ["--proj-file", str(result)]
    if files.dir_file:
        words += ["--dir-file", files.dir_file]
    else:
        ignore = files.ignore or "none"
        words += ["--xdir", "pca:1", "--ydir", "pca:2", "--xignore", ignore, "--yignore", ignore]
    if result.exists():  # as in the original
        print(f"{result} exists and is drawn; nothing is projected unless it is deleted")
    else:
        with _folder_of(checkpoints) as folder:
            if run_command([*words, "--model-folder", str(folder)]):
                raise ValueError("the path was not projected, for the reason above")
    return [save(draw(read(result), "path"), Path(f"{result}.pdf"))]


@contextmanager
def _folder_of(checkpoints: Sequence[Path]) -> Iterator[Path]:
    """A folder that holds these checkpoints alone: their own where it does, else one with links to them."""
    folder = checkpoints[0].parent
    if {p for p in folder.iterdir() if p.suffix in (".pt", ".pth", ".t7", ".pkl", ".safetensors")} == set(checkpoints):
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        for path in checkpoints:
            (Path(name) / path.name).symlink_to(path.absolute())
        yield Path(name)


def _surface(path: str, script: str) -> Surface:
    """The surface of a file, with errors beside accuracies."""
    if not path:
        raise UsageError(f"{script} needs --surf_file, a result file")
    surface = read(path)
    fields, about = dict(surface.fields), dict(surface.about)
    for name, accuracy in ERRORS.items():
        if accuracy in surface:
            fields[name] = 100.0 - surface[accuracy]
            about[name] = Field(name, "percent", f"{'training' if name.startswith('train') else 'test'} error")
    measures: Mapping[str, tuple[str, ...]] = {
        measure: (*names, *(e for e, a in ERRORS.items() if a in names)) for measure, names in surface.measures.items()
    }
    return replace(surface, fields=fields, about=about, measures=measures)


def _without_errors(surface: Surface) -> Surface:
    return replace(surface, fields={name: a for name, a in surface.fields.items() if name not in ERRORS})


def _plane(path: str, script: str) -> Surface:
    surface = _surface(path, script)
    if is_line(surface):
        raise ValueError(f"{path} holds a line, too little for contours: lossmap legacy plot_1D draws it")
    return surface


def _field(surface: Surface, name: str) -> str:
    """The name, where the surface has it. Raises ValueError with those that there are."""
    if name not in surface:
        raise ValueError(f"there is no {name} in this file; there are {', '.join(surface.fields)}")
    return name


def _between(figure: Any, picture: PictureSettings, surfaces: Sequence[Surface]) -> Any:
    """The figure with the ends of its x axis: those of the data where they are -1 and 1, as in the original."""
    every = np.concatenate([surface.grid.x for surface in surfaces])
    low = float(every.min()) if picture.xmin == -1.0 else picture.xmin
    high = float(every.max()) if picture.xmax == 1.0 else picture.xmax
    for axes in figure.axes:
        axes.set_xlim(low, high)
    return figure
