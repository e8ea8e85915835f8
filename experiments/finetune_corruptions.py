"""Fine-tune a trained ResNet-20 on corrupted images, and follow the rotation of the leading Hessian eigenspace.

    python experiments/finetune_corruptions.py

By default it runs on the packaged digits: the network is trained on clean images first (a few seconds), then on images
with Gaussian noise; every few batches the r largest eigenvalues of the Hessian and their eigenvectors are computed,
always over the same samples. If --cifar10c-path is a folder with the files of CIFAR-10-C, these are used, and
--model-file must be the trained ResNet-20. A killed or interrupted run is resumed with --resume. Output in --save-dir:

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
from pathlib import Path

import numpy as np
import torch

from lossmap import zoo
from lossmap.data import datasets
from lossmap.data.checkpoints import load_into
from lossmap.data.problem import Problem
from lossmap.dynamics.run import RunDynamics, run_dynamics
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
    parser.add_argument("--save-interval", type=int, default=6, help="number of batches between two checkpoints")
    parser.add_argument("--resume", action="store_true", help="resume the run in --save-dir")
    parser.add_argument("--cifar10c-path", help="folder of the .npy files of CIFAR-10-C (default: the packaged digits)")
    parser.add_argument("--download", action="store_true", help="download them into --cifar10c-path and check them")
    parser.add_argument("--noise-type", default="gaussian_noise", help="kind of corruption")
    parser.add_argument("--corruption-level", type=int, default=3, choices=range(1, 6), help="its severity")
    parser.add_argument("--save-dir", default="finetune_corruptions", help="output folder")
    parser.add_argument("--model-file", help="trained network (default for the digits: train one)")
    parser.add_argument("--threads", type=int, default=0, help="number of threads; 0 for PyTorch's default")
    return parser.parse_args(argv)


def trained_net(args: argparse.Namespace) -> torch.nn.Module:
    """The network before its fine-tuning."""
    if args.download and not args.cifar10c_path:
        raise SystemExit("--download needs --cifar10c-path: the folder for CIFAR-10-C (2.9 GB)")
    if args.cifar10c_path and not args.model_file:
        raise SystemExit("--cifar10c-path needs --model-file: a ResNet-20 trained on CIFAR-10")
    model = zoo.build("resnet20" if args.cifar10c_path else "resnet20-w8", seed=0)
    if args.model_file:
        load_into(model, args.model_file)
        return model
    file = Path(args.save_dir) / "trained.pt"
    if file.exists():
        load_into(model, file)
        return model
    clean = Problem.supervised(model, "crossentropy", datasets.load("digits", "train"))
    train(clean, Recipe(epochs=12))
    torch.save(model.state_dict(), file)
    log.info("trained on clean digits: %s", describe(clean))
    return model


def describe(problem: Problem) -> str:
    """Loss and accuracy as text."""
    values = readings(problem)
    return f"loss {values['loss']:.4f} nats, accuracy {values['acc']:.1f} %"


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
        name, path = f"digits+{args.noise_type}:{args.corruption_level}", None
    split = "test" if args.cifar10c_path else "train"  # CIFAR-10-C corrupts the test images alone
    model = trained_net(args)
    data = datasets.load(name, split, data_path=path, download=args.download)
    problem = Problem.supervised(model, "crossentropy", data)
    log.info("before, on %s: %s", name, describe(problem))
    recipe = Recipe(epochs=args.epochs, batch_size=args.batch_size, rate=args.lr)
    train(problem, recipe, folder=folder / "models", every=args.save_interval, resume=args.resume)
    log.info("after: %s", describe(problem))
    fixed = datasets.load(name, split, data_path=path, samples=args.hessian_batch_size)
    result = folder / "hessian_analysis.h5"
    run = run_dynamics(
        [folder / "models"],
        Problem.supervised(model, "crossentropy", fixed),
        path=result,
        top=args.r,
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
