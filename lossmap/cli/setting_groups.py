"""The groups of settings that several commands share, each a frozen dataclass whose fields are flags."""

from __future__ import annotations

from dataclasses import dataclass

from lossmap.cli.settings import setting


@dataclass(frozen=True)
class ModelSettings:
    """The network."""

    model: str = setting(
        "resnet20-w8", "a name of the zoo, package.module:factory, or path/file.py:factory", metavar="NAME"
    )
    model_args: str | None = setting(None, "keywords for the factory, as JSON: '{\"depth\": 20}'", metavar="JSON")
    model_file: str | None = setting(
        None, "checkpoint of the model: .pt .pth .t7 .safetensors", metavar="FILE", names=("-m",)
    )
    model_file2: str | None = setting(None, "checkpoint that the x axis leads to", metavar="FILE")
    model_file3: str | None = setting(None, "checkpoint that the y axis leads to", metavar="FILE")
    model_folder: str | None = setting(None, "folder of a run's checkpoints, for --xdir pca:1", metavar="FOLDER")
    unsafe_load: bool = setting(False, "load pickled files that can run code of their own: only files you trust")


@dataclass(frozen=True)
class DataSettings:
    """The samples and the loss."""

    dataset: str = setting(
        "digits",
        "digits, digits32, cifar10, cifar100, one of them +fog:3, cifar10c:NAME:LEVEL, npz:FILE, or file.py:factory",
        metavar="NAME",
    )
    data_path: str | None = setting(None, "folder of the data set's files", metavar="FOLDER", names=("--datapath",))
    download: bool = setting(False, "fetch CIFAR-10-C into --data-path where it is not there, and check it")
    normalize: str | None = setting(None, "mean/std per channel, such as 0.5,0.5,0.5/0.2,0.2,0.2", metavar="M/S")
    raw_data: bool = setting(False, "do not normalise the data")
    split: str = setting("train", "samples to read", choices=("train", "test", "both"))
    samples: int | None = setting(None, "at most so many samples, a fixed random subset", metavar="N", least=1)
    data_seed: int = setting(0, "seed of that subset", metavar="SEED")
    data_split: int = setting(1, "cut the data into so many pieces and use one", metavar="PIECES", least=1)
    split_idx: int = setting(0, "which piece, counted from 0", metavar="PIECE", least=0)
    trainloader: str | None = setting(None, "pickled DataLoader (needs --unsafe-load)", metavar="FILE")
    testloader: str | None = setting(None, "pickled DataLoader (needs --unsafe-load)", metavar="FILE")
    loss: str = setting(
        "crossentropy",
        "crossentropy, mse, or file.py:function(outputs, targets)",
        metavar="NAME",
        names=("--loss-name", "-l"),
    )
    problem: str | None = setting(None, "file.py:factory that returns a whole problem", metavar="FACTORY")


@dataclass(frozen=True)
class PlaneSettings:
    """The line or plane, and the points on it."""

    x: str = setting("-1:1:51", "ticks along x", metavar="LOW:HIGH:COUNT")
    y: str | None = setting(None, "ticks along y; none for a line", metavar="LOW:HIGH:COUNT")
    dir_type: str = setting("weights", "move weights, or states with running statistics", choices=("weights", "states"))
    xdir: str | None = setting(
        None,
        "random, to:FILE, pca:1, hessian:max, hessian:min, gradient, file:FILE:name; by default random",
        metavar="DIRECTION",
    )
    ydir: str | None = setting(None, "the same for y", metavar="DIRECTION")
    xnorm: str | None = setting(
        None, "filter, layer, weight, dfilter, dlayer, none; by default filter if random, else none", metavar="NORM"
    )
    ynorm: str | None = setting(None, "the same for y", metavar="NORM")
    xignore: str | None = setting(None, "biasbn or none; by default biasbn if random, else none", metavar="WHAT")
    yignore: str | None = setting(None, "the same for y", metavar="WHAT")
    same_dir: bool = setting(False, "y is the same random direction as x")
    idx: int = setting(0, "number of a repeated experiment: other random directions", metavar="NUMBER")
    seed: int = setting(0, "of directions, probes and start vectors", metavar="SEED")
    dir_file: str | None = setting(
        None, "file of directions: taken from it if it is there, else written to it", metavar="FILE"
    )
    proj_file: str | None = setting(None, "a training path to draw on the plane", metavar="FILE")
    store_directions: bool = setting(True, "keep the directions in the result")


@dataclass(frozen=True)
class RunSettings:
    """Where and how it runs."""

    surf_file: str | None = setting(
        None, "the result, .h5; by default named after model, plane and grid", metavar="FILE"
    )
    overwrite: bool = setting(False, "start anew where the result is already there")
    precision: str = setting("float32", "of all computing", choices=("float32", "tf32", "float64", "bfloat16"))
    device: str = setting("auto", "auto, cpu, cuda or cuda:1", metavar="DEVICE")
    ranks_per_gpu: int = setting(1, "ranks that may share one GPU", metavar="RANKS", least=1)
    threads: int | None = setting(None, "threads of a rank; by default its own cores", metavar="COUNT", least=1)
    batch_size: int | None = setting(
        None, "images per pass; by default chosen by a short probe", metavar="SAMPLES", least=1
    )
    probe: bool = setting(True, "choose the fastest way by a short probe; without it, separate files have equal bits")
    team: int = setting(1, "ranks that share one point", metavar="RANKS", least=1)
    rank_0: str = setting("auto", "what rank 0 does beside dealing", choices=("auto", "computes", "deals"))
    shard: str | None = setting(None, "compute only shard I of N of the points, such as 1/3", metavar="I/N")
    retry_failed: bool = setting(False, "measure failed points again")
    stop_after: float | None = setting(None, "stop in good order after so many seconds", metavar="SECONDS")
    point_timeout: float | None = setting(None, "deal a point again after so many seconds", metavar="SECONDS")
    dry_run: bool = setting(False, "say what would be done, and do nothing")


@dataclass(frozen=True)
class DrawSettings:
    """Pictures after computing."""

    plot: bool = setting(False, "draw the result, PDF and PNG")
    page: bool = setting(False, "make an interactive page")
    vtk: bool = setting(False, "write a file for ParaView")
    show: bool = setting(False, "open the picture on the screen")
    log: bool = setting(False, "logarithmic levels")
    loss_max: float | None = setting(None, "cut the loss axis here, in 1-D", metavar="LOSS")
    vmax: float | None = setting(None, "largest level", metavar="LOSS")
    vmin: float | None = setting(None, "smallest level", metavar="LOSS")
    vlevel: float | None = setting(None, "step of the levels", metavar="LOSS")
