"""The settings of the commands that measure: a group of its own for each, and the groups of which each consists.

Apart from the commands themselves, so that a campaign can read and plan them without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from lossmap.cli.setting_groups import (
    DataSettings,
    DrawSettings,
    ModelSettings,
    NoiseSettings,
    PlaneSettings,
    RefineSettings,
    RunSettings,
    budget_setting,
    hvp_backend_setting,
    parameters_setting,
)
from lossmap.cli.settings import setting


@dataclass(frozen=True)
class EigenSettings:
    """Hessian options."""

    like: str | None = setting(
        None, "result whose model, plane, grid and data are taken, and which is written into", metavar="FILE"
    )
    trust: bool = setting(
        False, "code that the result of --like names (model, data, loss), whoever it belongs to; needed where it does "
        "not lie below the current folder",
    )  # fmt: skip
    which: str = setting(
        "ends",
        "eigenvalues: ends, top:k, bottom:k, abs:k (every copy counts), trace, or several with commas",
        metavar="WHICH",
    )
    tol: float = setting(1e-3, "accuracy of each end, relative to max(abs(eigenvalue))", metavar="TOL", above=0)
    solver: str = setting("auto", "eigenvalue solver", choices=("auto", "lanczos", "eigsh"))
    max_products: int | None = setting(
        None, "number of Hessian-vector products at a point at most; by default unlimited", metavar="COUNT"
    )
    certify: str = setting(
        "audit", "verification with independent cold-start solves and probabilistic limits: of a random 2 % of the "
        "points, or of each", choices=("audit", "each", "none"),
    )  # fmt: skip
    confidence: float = setting(0.99, "probability with which no eigenvalue lies beyond the limits", metavar="P")
    hvp_backend: str = hvp_backend_setting()


@dataclass(frozen=True)
class SpectrumSettings:
    """Hessian options."""

    matrix: str = setting(
        "hessian", "curvature matrix: Hessian, Gauss-Newton, the Fisher matrix of the data's own targets (fisher) or "
        "of targets drawn from the model (mc-fisher), or the Hessian as Adam's or RMSprop's step sees it "
        "(preconditioned); both: the first two",
        choices=("hessian", "gauss-newton", "fisher", "mc-fisher", "preconditioned", "both"),
    )  # fmt: skip
    fisher_draws: int = setting(
        1,
        "number of targets that mc-fisher draws for each sample",
        metavar="COUNT",
        minimum=1,
        needs=("matrix", "mc-fisher"),
    )
    optimizer_state: str | None = setting(
        None, "file with the state dict of the optimizer that preconditioned is of; by default the checkpoint itself",
        metavar="FILE[:KEY]",
    )  # fmt: skip
    parameters: str = parameters_setting()
    top: int = setting(5, "number of largest eigenvalues, up to 100", metavar="K")
    bottom: int = setting(1, "number of smallest eigenvalues", metavar="K")
    abs: int = setting(0, "number of eigenvalues largest by magnitude", metavar="K")
    tol: float = setting(1e-3, "accuracy of the ends, relative to max(abs(eigenvalue))", metavar="TOL", above=0)
    solver: str = setting("auto", "eigenvalue solver", choices=("auto", "lanczos", "eigsh"))
    max_products: int | None = setting(
        None, "number of Hessian-vector products at an end at most; by default unlimited", metavar="COUNT"
    )
    trace: str = setting("xtrace", "estimator of the trace", choices=("xtrace", "hutch++", "hutchinson", "none"))
    trace_products: int = setting(
        60, "number of products of the trace, to begin with", metavar="COUNT", needs=("trace",)
    )
    trace_error: float | None = setting(
        None, "relative standard error of the trace to reach", metavar="ERROR", needs=("trace",)
    )
    diagonal: bool = setting(False, "diagonal of the matrix, entry by entry with errors, in the result")
    density: bool = setting(True, "spectral density of all eigenvalues")
    density_error: float = setting(
        0.01, "error of the density to reach, as a share of the range", metavar="ERROR", needs=("density",)
    )
    density_steps: int | None = setting(
        None, "number of Lanczos steps of a probe; by default chosen", metavar="STEPS", needs=("density",)
    )
    density_probes: int | None = setting(
        None, "number of probe vectors; by default chosen", metavar="PROBES", needs=("density",)
    )
    tail_mass: tuple[str, ...] = setting(
        (),
        "thresholds T: shares of eigenvalues below -T and above T",
        metavar="T",
        former=("--mass-at",),
        needs=("density",),
    )
    dense_limit: int = setting(
        256, "size up to which matrices and blocks are computed entry by entry", metavar="SIZE", former=("--dense",)
    )
    layers: str = setting("none", "Hessian block of every layer", choices=("none", "tensor", "module"))
    groups: tuple[str, ...] = setting((), "Hessian blocks of groups of layers: label=regex ...", metavar="REGEX")
    layer_output_hessian: str = setting(
        "none", "Hessian of each layer's output, by its inputs or weights",
        choices=("none", "inputs", "weights", "both"),
        former=("--second-reading",),
    )  # fmt: skip
    singular_values: bool = setting(False, "singular values of each layer's weight", former=("--weights",))
    vectors: bool = setting(False, "eigenvectors in the result")
    compare: tuple[str, ...] = setting((), "further checkpoints: LABEL=FILE or LABEL=MODEL@FILE ...", metavar="MODEL")
    along: tuple[str, ...] = setting((), "checkpoints of a run: the command `lossmap dynamics` now", metavar="FILE")
    full_spectrum: bool = setting(False, "of --along", former=("--whole",), needs=("along",))
    l2: tuple[str, ...] = setting((), "strengths of an L2 path", metavar="STRENGTH")
    l2_retrain: int | None = setting(
        None, "epochs of retraining with each strength; by default none", metavar="EPOCHS", needs=("l2",)
    )
    seed: int = setting(0, "seed of probes, start vectors and drawn targets", metavar="SEED")
    hvp_backend: str = hvp_backend_setting()


@dataclass(frozen=True)
class SharpnessSettings:
    """Sharpness options."""

    parameters: str = parameters_setting()
    radius: tuple[str, ...] = setting(
        ("filter:0.5", "adaptive:0.5", "absolute:0.05"),
        "balls in which the rise of the loss is measured: filter:R (relative to each filter's norm), adaptive:R "
        "(relative to each weight), absolute:R, or R for all three",
        metavar="KIND:R",
    )
    draws: int = setting(
        20, "number of pairs of random points of each average; 0 for no averages", metavar="PAIRS", minimum=0
    )
    ascent_steps: int = setting(
        20, "number of steps of each ascent to the worst rise; 0 for none", metavar="STEPS", minimum=0
    )
    starts: int = setting(2, "number of ascents, the first from the middle (SAM's step)", metavar="COUNT", minimum=1)
    critical: bool = setting(True, "critical sharpness: 2 over the step along the negative gradient that rises")
    batch_sharpness: int = setting(
        0, "samples of each batch of batch sharpness, a batch's curvature along its own gradient; 0 for none",
        metavar="SAMPLES", minimum=0,
    )  # fmt: skip
    batches: int = setting(30, "number of these batches", metavar="COUNT", minimum=2)
    optimizer_state: str | None = setting(
        None, "file with the state dict of Adam, AdamW or RMSprop, often the checkpoint itself: the largest eigenvalue "
        "of the Hessian as its step sees it; of checkpoints of --compare the state in their own files",
        metavar="FILE[:KEY]",
    )  # fmt: skip
    tol: float = setting(1e-3, "accuracy of the largest eigenvalue, relative", metavar="TOL", above=0)
    trace_products: int = setting(60, "number of products of the trace; 0 for none", metavar="COUNT", minimum=0)
    compare: tuple[str, ...] = setting((), "further checkpoints: LABEL=FILE or LABEL=MODEL@FILE ...", metavar="MODEL")
    rescale: float | None = setting(
        None, "factor of the reparametrisation test: a copy with one layer times A and the next over A beside each "
        "checkpoint, and which numbers survive", metavar="A", above=0,
    )  # fmt: skip
    seed: int = setting(0, "seed of random points, starts and probes", metavar="SEED")


@dataclass(frozen=True)
class ConnectSettings:
    """Connection options."""

    ends: tuple[str, ...] = setting(
        (), "both checkpoints, A and B; B alone where A is the model's", metavar="FILE", positional=True
    )
    other: str | None = setting(None, "checkpoint B, at t = 1, where it is not named first", metavar="FILE")
    points: int = setting(25, "number of points on the line, both ends among them", metavar="COUNT", minimum=3)
    bn: str = setting(
        "recompute", "batch-norm statistics on the way: recomputed from fixed batches of the training samples, "
        "interpolated between both networks, or those of A", choices=("recompute", "interpolate", "keep"),
    )  # fmt: skip
    bn_samples: int | None = setting(
        None, "number of training samples of which they are recomputed, the first ones; by default all",
        metavar="N", minimum=2, needs=("bn", "recompute"),
    )  # fmt: skip
    align: str = setting(
        "none", "permutation of the units of B before the line, its function unchanged, so that its weights, or the "
        "outputs of its layers, lie near those of A; the line to B as it stood is measured too",
        choices=("none", "weights", "activations"),
    )  # fmt: skip
    save_aligned: str | None = setting(None, "checkpoint of B with its units permuted, to write", metavar="FILE")
    curve: str = setting(
        "none", "curve of low loss between both, measured beside the line: a Bezier curve, or two straight pieces "
        "(polygon), through one bend that is trained on the data", choices=("none", "bezier", "polygon"),
    )  # fmt: skip
    curve_steps: int = setting(
        1000,
        "steps of that training, by Adam over batches of 128",
        metavar="COUNT",
        minimum=1,
        needs=("curve", "bezier", "polygon"),
    )
    curve_rate: float = setting(
        1e-3,
        "its learning rate at the start; it falls to 0",
        metavar="RATE",
        above=0.0,
        needs=("curve", "bezier", "polygon"),
    )
    save_bend: str | None = setting(None, "checkpoint of the bend, to write", metavar="FILE")
    seed: int = setting(0, "seed of the curve's training", metavar="SEED")


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
    momentum: float = setting(0.0, "momentum of the steps taken with it", metavar="SHARE", needs=("lr",))
    nesterov: bool = setting(False, "Nesterov's momentum, which `lossmap train` has by default", needs=("lr",))
    held_out: bool = setting(True, "accuracy and labels on the test split too, where there is one")
    layer: str | None = setting(
        None, "layer whose input are the features; by default the last linear one", metavar="NAME"
    )
    parameters: str = parameters_setting()
    density_error: float = setting(0.05, "error of the spectral density, as a share of its range", metavar="SHARE")
    seed: int = setting(0, "seed of probes and of the subset of samples", metavar="SEED")
    budget: str | None = budget_setting()
    json: str | None = setting(None, "report as machine-readable JSON; - prints it instead", metavar="FILE")
    figure: str | None = setting(
        None, "report as a figure on one page: .pdf, .png, .svg", metavar="FILE", former=("--sheet",)
    )
    surf_file: str | None = setting(None, "result file that gets the report, in group health", metavar="FILE")
    fail_on_serious: bool = setting(False, "exit code 3 where a finding is serious")
    precision: str = setting(
        "float32", "floating-point format of all computing", choices=("float32", "tf32", "float64")
    )
    device: str = setting("auto", "auto, cpu, cuda, xpu, mps or cuda:1", metavar="DEVICE")
    dry_run: bool = setting(False, "a look at model and data, without an examination")
    threads: int | None = setting(
        None, "number of threads; by default the cores of this process", metavar="COUNT", minimum=1
    )
    batch_size: int | None = setting(
        None, "number of samples per pass; by default chosen", metavar="SAMPLES", minimum=1
    )


# command -> the groups of its settings
GROUPS: dict[str, tuple[type, ...]] = {
    "surface": (ModelSettings, DataSettings, PlaneSettings, NoiseSettings, RefineSettings, RunSettings, DrawSettings),
    "eigenmap": (ModelSettings, DataSettings, PlaneSettings, EigenSettings, NoiseSettings, RunSettings, DrawSettings),
    "spectrum": (ModelSettings, DataSettings, SpectrumSettings, RunSettings, DrawSettings),
    "sharpness": (ModelSettings, DataSettings, SharpnessSettings, RunSettings, DrawSettings),
    "connect": (ModelSettings, DataSettings, ConnectSettings, NoiseSettings, RunSettings, DrawSettings),
    "health": (ModelSettings, DataSettings, HealthSettings),
}
