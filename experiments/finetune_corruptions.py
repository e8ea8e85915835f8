"""Fine-tune a trained ResNet-20 on corrupted images, and follow the rotation of the leading Hessian eigenspace.

    python experiments/finetune_corruptions.py

By default it runs on the packaged digits: the network is trained on clean images first (a few seconds), then on images
with Gaussian noise of level 5; every few batches the r largest eigenvalues of the Hessian and their eigenvectors are
computed, always over the same samples, and compared with chance and with those of two halves of these samples at the
first and the last checkpoint (--null). The level has the strength of ImageNet-C, 0.38 of the range of the image: that
of CIFAR-10-C, 0.1, leaves a network of the digits nothing to adapt to (--strengths). Accuracy and loss before and after
are reported of the images that are trained on and, for the digits, of held-out ones, with noise and without.

If --cifar10c-path is a folder with the files of CIFAR-10-C, these are used, and the trained ResNet-20 must be given:

    python experiments/finetune_corruptions.py --cifar10c-path data --resume resnet20.pt

--resume FILE takes the trained network from FILE; --resume alone, or with the same FILE, goes on with a run in
--save-dir that was killed or interrupted. Output in --save-dir:

    models/             step_000000.pt, step_000010.pt, ...     the checkpoints
    eigen_vectors/      step_000010.npy                          (r, n) float32, rows of length one
    hessian_matrices/   step_000010.npz                          eigenvalues and residuals: of the (n, n) Hessian only
                                                                 its r leading terms are known, sum l_i v_i v_i^T
    pca_results/        pca.npz                                  explained and cumulative variance, projections
    plots/              pca_variance.png, pca_cumulative_variance.png, pca_projection.png, cosine_similarity.png, ...
    hessian_analysis.h5, hessian_analysis.log                    all numbers, all messages
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

import numpy as np
import torch

from lossmap import zoo
from lossmap.data import datasets
from lossmap.data.batches import Batches
from lossmap.data.checkpoints import load_into
from lossmap.data.problem import Problem
from lossmap.dynamics.run import RunDynamics, run_dynamics
from lossmap.images.corruptions import BENCHMARKS
from lossmap.io.eigenvector_store import read_vectors, results_of
from lossmap.plotting.dynamics import classic, draw_evolution
from lossmap.plotting.style import save
from lossmap.training import Recipe, readings, train

log = logging.getLogger("lossmap.finetune")


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=64, help="batch size of the fine-tuning")
    parser.add_argument(
        "--hessian-batch-size", type=int, default=256, help="number of samples of the Hessian, always the same"
    )
    parser.add_argument("--epochs", type=int, default=4, help="number of epochs of the fine-tuning")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate of the fine-tuning")
    parser.add_argument("--r", type=int, default=10, help="number of leading eigenpairs")
    parser.add_argument(
        "--null",
        default="halves",
        choices=("halves", "none"),
        help="what overlaps are compared with beside chance: two halves of the samples, at the price of 6 checkpoints",
    )
    parser.add_argument("--save-interval", type=int, default=6, help="number of batches between two checkpoints")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="FILE",
        help="start from the trained checkpoint FILE; resume the run in --save-dir where there is one",
    )
    parser.add_argument("--cifar10c-path", help="folder of the .npy files of CIFAR-10-C (default: the packaged digits)")
    parser.add_argument("--download", action="store_true", help="download them into --cifar10c-path and check them")
    parser.add_argument("--noise-type", default="gaussian_noise", help="kind of corruption")
    parser.add_argument("--corruption-level", type=int, default=5, choices=range(1, 6), help="its severity")
    parser.add_argument(
        "--strengths",
        choices=tuple(BENCHMARKS),
        help="whose strengths the severities of the digits have (default: imagenet-c for noises, else cifar-10-c)",
    )
    parser.add_argument("--save-dir", default="finetune_corruptions", help="output folder")
    parser.add_argument("--model-file", help="trained network, as --resume FILE (default for the digits: train one)")
    parser.add_argument("--threads", type=int, default=0, help="number of threads; 0 for PyTorch's default")
    args = parser.parse_args(argv)
    if isinstance(args.resume, str):
        if args.model_file not in (None, args.resume):
            parser.error(f"--resume {args.resume} and --model-file {args.model_file} both name the trained network")
        args.model_file = args.resume
    if args.cifar10c_path and args.strengths == "imagenet-c":
        parser.error("the files of CIFAR-10-C have strengths of their own; leave --strengths out")
    return args


def trained_net(args: argparse.Namespace) -> torch.nn.Module:
    """The network before its fine-tuning."""
    if args.download and not args.cifar10c_path:
        raise SystemExit("--download needs --cifar10c-path: the folder for CIFAR-10-C (2.9 GB)")
    model = zoo.build("resnet20" if args.cifar10c_path else "resnet20-w8", seed=0)
    first = Path(args.save_dir) / "models" / "step_000000.pt"
    if args.model_file:
        load_into(model, args.model_file)
        if args.resume and first.exists():
            refuse_other_start(model, first, args.model_file)
        return model
    if args.resume and first.exists():
        load_into(model, first)
        return model
    if args.cifar10c_path:
        raise SystemExit("--cifar10c-path needs --resume FILE (or --model-file): a ResNet-20 trained on CIFAR-10")
    file = Path(args.save_dir) / "trained.pt"
    if file.exists():
        load_into(model, file)
        return model
    clean = Problem.supervised(model, "crossentropy", datasets.load("digits", "train"))
    train(clean, Recipe(epochs=12))
    torch.save(model.state_dict(), file)
    log.info("trained on clean digits: %s", describe(clean))
    return model


def refuse_other_start(model: torch.nn.Module, first: Path, file: str) -> None:
    """Exits where the run in the folder began from another network than that of the file."""
    start = tensors_of(first)
    if not all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items()):
        raise SystemExit(f"the run in {first.parent} did not begin from {file}; name another --save-dir")


def tensors_of(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint of the trainer."""
    state: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    return state


def corrupted_digits(args: argparse.Namespace) -> str:
    """The name of the corrupted digits: ImageNet-C's strengths by default, where it has them here."""
    noise = args.noise_type.strip().lower().replace("-", "_")
    strengths = args.strengths or ("imagenet-c" if noise in BENCHMARKS["imagenet-c"] else "cifar-10-c")
    return f"digits+{args.noise_type}:{args.corruption_level}:{strengths}"


def describe_all(model: torch.nn.Module, when: str, data: dict[str, Batches]) -> None:
    """Loss and accuracy on several sets, a line each, with the standard error of the accuracy."""
    for name, batches in data.items():
        line = f"{when}, on {name}: {describe(Problem.supervised(model, 'crossentropy', batches))}"
        log.info(line)
        print(line, flush=True)


def describe(problem: Problem) -> str:
    """Loss and accuracy as text."""
    values = readings(problem)
    share, samples = values["acc"] / 100, problem.data.samples
    error = 100 * math.sqrt(share * (1 - share) / samples)
    return f"loss {values['loss']:.4f} nats, accuracy {values['acc']:.1f} +- {error:.1f} % of {samples:,} images"


def layout(folder: Path, result: Path) -> None:
    """The folders of the classic experiment, from the result file."""
    eigenvectors, results = read_vectors(result), results_of(result)
    for name in ("eigen_vectors", "hessian_matrices", "pca_results", "plots"):
        (folder / name).mkdir(exist_ok=True)
    owner = results["owner"]
    files = {int(step): folder / "eigen_vectors" / f"step_{int(step):06d}.npy" for step in eigenvectors.steps}
    rows = [
        np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(int((owner == t).sum()), eigenvectors.size))
        for t, file in enumerate(files.values())
    ]
    start = 0
    for block in eigenvectors.blocks():  # some columns at a time, so that memory does not grow with the run
        for t, vectors in enumerate(rows):
            vectors[:, start : start + block.shape[1]] = block[owner == t]
        start += block.shape[1]
    for t, step in enumerate(files):
        np.savez(
            folder / "hessian_matrices" / f"step_{step:06d}.npz",
            eigenvalues=eigenvectors.values[t],
            residuals=eigenvectors.residuals[t],
        )
    explained = results["explained"]
    np.savez(
        folder / "pca_results" / "pca.npz",
        explained=explained,
        cumulative=np.cumsum(explained),
        projection=results["projection"],
        step=eigenvectors.steps[owner],
    )
    classic(result, folder / "plots")
    save(draw_evolution(result), folder / "plots" / "evolution.png", dpi=200)


def main(argv: list[str] | None = None) -> RunDynamics:
    """Fine-tune, measure, compare, draw."""
    args = options(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    folder = Path(args.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "hessian_analysis.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("lossmap")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        return experiment(args, folder)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()


def experiment(args: argparse.Namespace, folder: Path) -> RunDynamics:
    """All steps, logged."""
    log.info("settings: %s", vars(args))
    if args.cifar10c_path:
        name, path = f"cifar10c:{args.noise_type}:{args.corruption_level}", args.cifar10c_path
    else:
        name, path = corrupted_digits(args), None
    split = "test" if args.cifar10c_path else "train"  # CIFAR-10-C corrupts the test images alone
    model = trained_net(args)
    data = datasets.load(name, split, data_path=path, download=args.download)
    problem = Problem.supervised(model, "crossentropy", data)
    sets: dict[str, Batches] = {name: data}
    if not args.cifar10c_path:  # of CIFAR-10-C all images are trained on
        sets[f"{name}, held out"] = datasets.load(name, "test")
        sets["digits, held out, without it"] = datasets.load("digits", "test")
    began = Path(folder / "models" / "step_000000.pt").exists()
    if not began:
        describe_all(model, "before", sets)
    recipe = Recipe(epochs=args.epochs, batch_size=args.batch_size, rate=args.lr)
    train(problem, recipe, folder=folder / "models", every=args.save_interval, resume=bool(args.resume))
    describe_all(model, "after", sets)
    fixed = datasets.load(name, split, data_path=path, samples=args.hessian_batch_size)
    result = folder / "hessian_analysis.h5"
    run = run_dynamics(
        [folder / "models"],
        Problem.supervised(model, "crossentropy", fixed),
        path=result,
        top=args.r,
        null=args.null,
        overwrite=not args.resume,
        command="finetune_corruptions",
    )
    for failure in run.failures:
        log.info("failed: %s", failure)
    for line in run.summary.splitlines():
        log.info(line)
    if run.summary:
        layout(folder, result)
        print(run.summary)
        print(f"figures in {folder / 'plots'}, all numbers in {result}")
    return run


if __name__ == "__main__":
    main()
