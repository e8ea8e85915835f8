"""All that the commands of lossmap do, with public names alone: `python examples/everything.py`, or under mpirun -n 2.

Surface with resume, map of extreme eigenvalues, the plane through three nets, spectrum, layers, singular values,
curvature of a training run, health; every result saved, read back equal, given to xarray; figures.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lossmap

RANK = next(
    (os.environ[name] for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID") if name in os.environ), "0"
)


def net(seed: int) -> nn.Sequential:
    """A small network."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def main(folder: str = "everything", count: int = 5) -> dict[str, Any]:
    """Everything; the results by name. Under mpirun every rank has them, and keeps files of its own apart."""
    shared, own = Path(folder), Path(folder) / f"rank{RANK}"
    own.mkdir(parents=True, exist_ok=True)
    model, others = net(0), [net(1), net(2)]
    x, y = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    problem = lossmap.Problem.supervised(model, "crossentropy", (x, y))
    checkpoints = []
    for step in range(4):  # of a run that trains away from the model
        checkpoints.append(own / f"step{step}.pt")
        torch.save({name: tensor * (1 + step / 4) for name, tensor in model.state_dict().items()}, checkpoints[-1])

    grid, plane = lossmap.Grid.square(-1, 1, count), lossmap.random_plane(model, seed=0)
    measure = lossmap.losses({"train": problem}, plane)
    lossmap.survey(measure, grid, path=shared / "plane.h5", points=range(count))  # a part, as if it was interrupted
    surface = lossmap.survey(measure, grid, path=shared / "plane.h5")  # the same call goes on
    curvature = lossmap.EigenvalueMap(problem, plane, backend="double-backward")
    eigenmap = lossmap.survey(curvature, lossmap.Grid.square(-1, 1, 3), path=shared / "eigen.h5")
    through = lossmap.losses(problem, lossmap.plane_through(model, *others))
    between = lossmap.survey(through, grid, path=shared / "between.h5")

    hessian = lossmap.hessian(problem)
    run = lossmap.run_dynamics(checkpoints, problem, path=shared / "run.h5", top=2, backend="double-backward")
    results: dict[str, Any] = {
        "spectrum": lossmap.spectrum(problem, top=3),
        "layers": lossmap.layer_spectra(problem, "module"),
        "weights": lossmap.singular_values(model),
        "pairs": lossmap.eigenpairs(hessian, "top:2"),
        "trace": lossmap.trace(hessian),
        "density": lossmap.spectral_density(lossmap.gauss_newton(problem), steps=10, probes=2),
        "health": lossmap.diagnose(problem),
        "line": lossmap.line_between(model, others[0]),
        "path": lossmap.pca_plane(model, [torch.load(file) for file in checkpoints], axes=1),
        "surface": surface,
        "eigenmap": eigenmap,
    }
    for name, result in results.items():
        file = result.save(own / f"{name}.h5", overwrite=True)
        if not result.equals(lossmap.read(file)) or result.to_xarray() is None:
            raise RuntimeError(f"{name} has not come back as it was")
    lossmap.draw([surface, between], titles=["random", "through three nets"]).savefig(own / "planes.png")
    lossmap.draw(eigenmap).savefig(own / "eigenvalues.png")
    lossmap.draw(results["spectrum"]).savefig(own / "spectrum.png")
    return {**results, "between": between, "run": run}


if __name__ == "__main__":
    for name, result in main().items():
        print(f"{name}\n{result!r}\n")
