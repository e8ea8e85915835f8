"""The groups of settings that several commands share, each a frozen dataclass whose fields are flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lossmap.cli.settings import setting
from lossmap.curvature.hvp_plan import BACKENDS
from lossmap.io.surface import Surface

# What version 0.1 called the backends of products, on the command line.
FORMER_BACKENDS = {"linear": "linearized", "graph": "retained-graph", "double": "double-backward"}


def hvp_backend_setting() -> Any:
    """The flag --hvp-backend, which version 0.1 called --way."""
    return setting(
        "auto",
        "backend of Hessian-vector products; auto: the fastest of a short probe",
        choices=("auto", *BACKENDS),
        former=("--way",),
        former_values=FORMER_BACKENDS,
    )


def budget_setting() -> Any:
    """The flag --budget of the commands that measure."""
    return setting(
        None,
        "time that the command may take, such as 90s, 10m or 2h: probes, Lanczos steps, layers, random points, steps "
        "of ascents and of a curve's training are fitted into it; a grid that takes longer is refused without --yes",
        metavar="TIME",
    )


def parameters_setting() -> Any:
    """The flag --parameters of the commands that measure a Hessian."""
    return setting(
        "weights",
        "parameters of the Hessian: weights (dimension > 1), all, trainable (requires_grad), or a regular expression",
        metavar="WHICH",
    )


ALL_BY_NAME = "all by --parameters"  # of a result whose directions are recorded as of all: not those by default


def moving_parameters(stored: Mapping[str, Any], surface: Surface) -> str:
    """The parameters that move along the plane of a result, for --plane-parameters.

    stored   the settings of its command; in one made before planes had --parameters those are the Hessian's
    surface  the result, with the recipe of its directions; one that was killed before its first write has it in what
             the survey belongs to alone
    """
    group = surface.groups.get("directions/x")
    recipe = group.attributes if group else surface.settings.get("file", {}).get("direction", {}).get("x", {})
    if "parameters" not in recipe:
        return "all"
    if recipe["parameters"] == "all" and not stored.get("plane_parameters"):
        return ALL_BY_NAME
    return str(stored.get("plane_parameters") or stored.get("parameters") or recipe["parameters"])


@dataclass(frozen=True)
class ModelSettings:
    """Model options.

    A factory is a function or class of yours: package.module:factory, or
    path/file.py:factory. That of --model is called with the keywords of
    --model-args and returns an nn.Module.
    """

    model: str = setting(
        "resnet20-w8",
        "name in the zoo, package.module:factory, path/file.py:factory, or hf:FOLDER, a local Hugging Face folder",
        metavar="NAME",
    )
    model_args: str | None = setting(None, "keywords of the factory, as JSON: '{\"depth\": 20}'", metavar="JSON")
    model_file: str | None = setting(
        None, "checkpoint of the model: .pt .pth .t7 .safetensors", metavar="FILE", names=("-m",)
    )
    model_file2: str | None = setting(None, "checkpoint that the x axis leads to", metavar="FILE")
    model_file3: str | None = setting(None, "checkpoint that the y axis leads to", metavar="FILE")
    model_folder: str | None = setting(None, "folder of a run's checkpoints, for --xdir pca:1", metavar="FOLDER")
    state_key: str | None = setting(
        None, "entry of the checkpoints that holds the weights, such as model_ema; by default the one that fits",
        metavar="KEY",
    )  # fmt: skip
    strip_prefix: str | None = setting(
        None, "prefix of the weights' names there, such as generator.; by default the one that fits", metavar="PREFIX"
    )
    allow_unexpected: bool = setting(False, "checkpoints with more tensors than the model has, which are left out")
    unsafe_load: bool = setting(False, "loading of pickled files, which can run code of their own: trusted files only")


@dataclass(frozen=True)
class DataSettings:
    """Data options.

    Functions of yours are named as --model is:
      --dataset  called with split="train" or "test"; returns (x, y), tensors or
                 arrays; a Dataset; a DataLoader; a list of batches or samples.
                 The last entry of a batch is the target (of a dict: labels,
                 targets, target, label or y), the rest goes to the model,
                 but for what it does not take, which is reported.
                 Batches that cannot be cut stay whole
      --loss     called with (outputs, targets) of a batch, as is --metric;
                 returns the mean over its samples, one number; or name a module,
                 such as loss = nn.CrossEntropyLoss(ignore_index=255)
      --problem  called with split= where it has that parameter; returns
                 (model, batches, loss), a dict of the keywords of
                 lossmap.Problem.custom, or a lossmap.Problem; loss(model, batch)
                 returns the mean over the batch, or (mean, weight), the weight
                 being its samples, its tokens, or whatever the mean is over
    """

    dataset: str = setting(
        "digits",
        "digits, digits32, cifar10, cifar100, one of them +fog:3, cifar10c:NAME:LEVEL, npz:FILE, file.py:factory, or "
        "hf:PATH, a folder of a saved Hugging Face data set or a text",
        metavar="NAME",
    )
    block_length: int | None = setting(
        None, "number of tokens in a sample of a text (hf:PATH); by default the model's positions, 1024 at most",
        metavar="TOKENS", minimum=2,
    )  # fmt: skip
    data_path: str | None = setting(None, "folder of the data set's files", metavar="FOLDER", names=("--datapath",))
    download: bool = setting(False, "download of CIFAR-10-C into --data-path where it is missing, with its check sum")
    normalize: str | None = setting(None, "mean/std per channel, such as 0.5,0.5,0.5/0.2,0.2,0.2", metavar="M/S")
    raw_data: bool = setting(False, "data without normalization")
    split: str = setting("train", "split of the samples", choices=("train", "test", "both"))
    samples: int | None = setting(
        None, "number of samples at most, a fixed random subset; by default all", metavar="N", minimum=1
    )
    data_seed: int = setting(0, "seed of that subset, and of those of --loss-error", metavar="SEED")
    data_split: int = setting(
        1, "number of pieces that the data are cut into; one is used", metavar="PIECES", minimum=1
    )
    split_idx: int = setting(0, "index of the piece, from 0", metavar="PIECE", minimum=0)
    trainloader: str | None = setting(None, "pickled DataLoader (needs --unsafe-load)", metavar="FILE")
    testloader: str | None = setting(None, "pickled DataLoader (needs --unsafe-load)", metavar="FILE")
    loss: str = setting(
        "crossentropy",
        "crossentropy (of Hugging Face's models their own loss), mse, or file.py:function(outputs, targets)",
        metavar="NAME",
        names=("--loss-name", "-l"),
    )
    metric: tuple[str, ...] = setting(
        (), "further metrics, each file.py:function(outputs, targets), mean over the batch", metavar="FUNCTION"
    )
    problem: str | None = setting(None, "file.py:factory that returns a whole problem", metavar="FACTORY")


@dataclass(frozen=True)
class PlaneSettings:
    """Plane options."""

    x: str = setting(
        "-1:1:51", "ticks along x; auto or auto:COUNT holds the path of --proj-file", metavar="LOW:HIGH:COUNT"
    )
    y: str | None = setting(None, "ticks along y, as x; by default none, which makes a line", metavar="LOW:HIGH:COUNT")
    parameters: str | None = setting(
        None, "parameters that move, and that a Hessian is of: all, weights (dimension > 1), trainable "
        "(requires_grad), or a regular expression; by default all move, and a Hessian is of the weights",
        metavar="WHICH",
    )  # fmt: skip
    plane_parameters: str | None = setting(
        None, "parameters that move, where they are other than those of --parameters", metavar="WHICH"
    )
    dir_type: str = setting(
        "weights", "weights alone, or states with running statistics", choices=("weights", "states")
    )
    xdir: str | None = setting(
        None,
        "random, to:FILE, pca:1, hessian:max, hessian:min:2 (the second smallest), gradient, sam:filter, sam:adaptive, "
        "preconditioned:max, preconditioned:gradient, file:FILE:name; by default random",
        metavar="DIRECTION",
    )
    ydir: str | None = setting(None, "the same for y", metavar="DIRECTION")
    optimizer_state: str | None = setting(
        None, "file with the state dict of the optimizer that preconditioned directions are of; by default the "
        "checkpoint itself", metavar="FILE[:KEY]",
    )  # fmt: skip
    xnorm: str | None = setting(
        None, "filter, layer, weight, dfilter, dlayer, none; by default filter if random, else none", metavar="NORM"
    )
    ynorm: str | None = setting(None, "the same for y", metavar="NORM")
    xignore: str | None = setting(None, "biasbn or none; by default biasbn if random, else none", metavar="WHICH")
    yignore: str | None = setting(None, "the same for y", metavar="WHICH")
    yes: bool = setting(False, "a grid of more than a million points, which is refused otherwise")
    same_dir: bool = setting(False, "the same random direction for y as for x")
    idx: int = setting(0, "number of a repeated experiment, with other random directions", metavar="NUMBER")
    seed: int = setting(0, "seed of directions, probes and start vectors", metavar="SEED")
    dir_file: str | None = setting(
        None, "file of directions, which are read; lossmap plane without --proj-file writes it", metavar="FILE"
    )
    proj_file: str | None = setting(None, "training path to draw on the plane", metavar="FILE")
    store_directions: bool = setting(
        True, "storage of the directions in the result; on the CPU, random ones of more than 8,388,608 weights are "
        "never stored, but drawn again from their seed",
    )  # fmt: skip

    @property
    def moving(self) -> str:
        """The parameters that move."""
        named = self.plane_parameters or self.parameters or "all"
        return "all" if named == ALL_BY_NAME else named

    @property
    def parameters_of_directions(self) -> str | None:
        """The parameters that a gradient or an eigenvector as an axis is by; None for those of default."""
        if self.plane_parameters == "all":  # a result made before a plane could be told what moves
            return None
        return self.moving if self.plane_parameters or self.parameters else None

    @property
    def hessian_parameters(self) -> str:
        """The parameters that a Hessian is of."""
        return self.parameters or "weights"


@dataclass(frozen=True)
class RunSettings:
    """Execution options."""

    surf_file: str | None = setting(
        None, "result file, .h5; by default named after model, plane and grid", metavar="FILE"
    )
    overwrite: bool = setting(False, "new start where the result exists")
    precision: str = setting(
        "float32", "floating-point format of all computing", choices=("float32", "tf32", "float64", "bfloat16")
    )
    device: str = setting("auto", "auto, cpu, cuda, xpu, mps or cuda:1", metavar="DEVICE")
    ranks_per_gpu: int = setting(1, "number of ranks that may share one GPU", metavar="RANKS", minimum=1)
    threads: int | None = setting(
        None, "number of threads of a rank; by default its own cores", metavar="COUNT", minimum=1
    )
    batch_size: int | None = setting(
        None, "number of samples per pass; by default chosen by a short probe", metavar="SAMPLES", minimum=1
    )
    probe: bool = setting(
        True, "short probe that chooses the fastest method; without it, separate files agree bit for bit"
    )
    team: int = setting(1, "number of ranks that share one point", metavar="RANKS", minimum=1)
    rank_0: str = setting(
        "auto", "whether rank 0 computes beside dispatching; auto: with up to 32 ranks",
        choices=("auto", "computes", "deals"),
    )  # fmt: skip
    shard: str | None = setting(None, "shard I of N of the points, such as 1/3; by default all", metavar="I/N")
    retry_failed: bool = setting(False, "another attempt at failed points")
    stop_after: float | None = setting(None, "seconds after which it stops, resumable", metavar="SECONDS")
    budget: str | None = budget_setting()
    point_timeout: float | None = setting(
        None, "seconds after which a point is dispatched again, or has failed in a process alone (exit code 75); inf "
        "for never; by default, with several ranks, 20 times the slowest point so far, a minute at least",
        metavar="SECONDS", above=0,
    )  # fmt: skip
    dry_run: bool = setting(False, "summary of what would be done, without doing it")
    accept_change: bool = setting(
        False, "continuation by code that measures something else than the code that began; noted in the history"
    )


@dataclass(frozen=True)
class NoiseSettings:
    """Noise options."""

    noise_repeats: int | None = setting(
        None, "number of fixed realisations of a loss that draws at random, such as a variational autoencoder's, at "
        "each point: mean and standard error; by default one realisation", metavar="R", minimum=2,
    )  # fmt: skip


@dataclass(frozen=True)
class RefineSettings:
    """Refinement options."""

    refine: float | None = setting(
        None, "fewer points: a coarse grid first, then points where the picture between them is known worst, until its "
        "estimated error is at most this share of the loss's range: 0.01 is one percent", metavar="TOL",
    )  # fmt: skip
    loss_error: float | None = setting(
        None, "fewer samples: a random part of them, the same at every point, grown until the standard error of the "
        "differences from the point nearest the network is at most this share of the loss's range: 0.01 is one percent",
        metavar="REL",
    )  # fmt: skip


@dataclass(frozen=True)
class DrawSettings:
    """Plot options."""

    plot: bool = setting(False, "figure of the result, PDF and PNG")
    page: bool = setting(False, "interactive HTML page, which opens offline")
    vtk: bool = setting(False, "file for ParaView")
    show: bool = setting(False, "figure on the screen")
    log: bool = setting(False, "logarithmic scale; by default where values >= 0 span more than a factor of 20")
    linear: bool = setting(False, "linear scale, whatever the values span")
    loss_max: float | None = setting(None, "upper end of the loss axis, in 1-D", metavar="LOSS")
    vmax: float | None = setting(None, "largest level", metavar="LOSS")
    vmin: float | None = setting(None, "smallest level", metavar="LOSS")
    vlevel: float | None = setting(None, "step of the levels", metavar="LOSS")
