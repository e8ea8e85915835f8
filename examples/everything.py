"""All that the commands of lossmap do, with public names alone: `python examples/everything.py`, or under mpirun.

Surface with resume, map of extreme eigenvalues, spectrum, layers, singular values, curvature of a training run, health,
the plane through three nets, and every result saved, read, drawn and given to xarray.
"""

from pathlib import Path

import torch
from torch import nn

import lossmap


def net(seed: int) -> nn.Sequential:
    """A small network."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def trained(model: nn.Module, x: torch.Tensor, y: torch.Tensor, folder: Path, steps: int = 4) -> list[Path]:
    """The checkpoints of a short training run."""
    optimizer, files = torch.optim.SGD(model.parameters(), lr=0.5), []
    for step in range(steps):
        files.append(folder / f"step{step}.pt")
        torch.save(model.state_dict(), files[-1])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return files


def main(folder: str = "everything", count: int = 5, rank: int = 0) -> dict[str, object]:
    """Do everything; the results by name. Under mpirun every rank does; `rank` keeps their own files apart."""
    out, own = Path(folder), Path(folder) / f"rank{rank}"
    own.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    x, y = torch.randn(60, 6), torch.randint(3, (60,))
    model, second, third = net(0), net(1), net(2)
    run = trained(model, x, y, own)
    problem = lossmap.Problem.supervised(model, "crossentropy", (x, y))

    plane, grid = lossmap.random_plane(model, seed=0), lossmap.Grid.square(-1, 1, count)
    losses = lossmap.losses(problem, plane)
    some = lossmap.survey(losses, grid, path=out / "plane.h5", points=range(count))  # a part, as if interrupted
    assert some.outcome != "complete" or count == 1
    surface = lossmap.survey(losses, grid, path=out / "plane.h5")  # the same call resumes
    eigenmap = lossmap.EigenvalueMap(problem, plane, backend="double-backward")
    curved = lossmap.survey(eigenmap, lossmap.Grid.square(-1, 1, 3), path=out / "eigen.h5")
    between = lossmap.survey(
        lossmap.losses(problem, lossmap.plane_through(model, second, third)), grid, path=out / "between.h5"
    )

    hessian = lossmap.hessian(problem)
    results = {
        "spectrum": lossmap.spectrum(problem, top=3),
        "layers": lossmap.layer_spectra(problem, "module"),
        "weights": lossmap.singular_values(model),
        "pairs": lossmap.eigenpairs(hessian, "top:2"),
        "trace": lossmap.trace(hessian),
        "density": lossmap.spectral_density(lossmap.gauss_newton(problem), steps=10, probes=2),
        "health": lossmap.diagnose(problem),
        "pca": lossmap.pca_plane(model, [torch.load(file) for file in run]),
        "line": lossmap.line_between(model, second),
        "run": lossmap.run_dynamics(run, problem, path=out / "run.h5", top=2, backend="double-backward"),
    }
    for name, result in results.items():
        if name == "run" and rank:  # rank 0's answer is the whole one
            continue
        file = result.save(own / f"{name}.h5", overwrite=True)
        assert result.equals(lossmap.read(file)) and result.to_xarray() is not None
    lossmap.draw([surface, between], titles=["random", "between nets"]).savefig(own / "planes.png")
    lossmap.draw(curved).savefig(own / "eigen.png")
    lossmap.draw(results["spectrum"]).savefig(own / "spectrum.png")
    return {"surface": surface, "eigenmap": curved, "between": between, **results}


if __name__ == "__main__":
    import os

    ranks = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
    for name, result in main(rank=int(next((os.environ[r] for r in ranks if r in os.environ), "0"))).items():
        print(f"{name}\n{result!r}\n")
