"""The folder of a training run: its checkpoints, written whole, from which it resumes with the same bits.

Each `step_000120.pt` holds the tensors under `state_dict`, beside the optimizer, the step, the losses, the state of the
random numbers, and the recipe and the digest of the data, which must be the same for a run to resume.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lossmap import accelerators
from lossmap.data.checkpoints import sorted_as_people_count
from lossmap.training.recipe import Recipe

log = logging.getLogger(__name__)


def save(content: Any, path: str | Path) -> None:
    """Save what torch.save takes: written beside, synchronised, renamed, so that the file appears whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@dataclass(frozen=True)
class RunFolder:
    """The checkpoints of a run in its folder.

    recipe  how the run is trained
    data    the digest of its samples
    """

    folder: Path
    recipe: Recipe
    data: str

    def checkpoints(self) -> list[Path]:
        """The checkpoints so far, in the order of their steps."""
        return sorted_as_people_count(self.folder.glob("step_*.pt"))

    def write(self, model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]) -> None:
        """Write a checkpoint after as many steps as there are losses."""
        device = next(model.parameters()).device
        content = {
            "state_dict": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": len(losses),
            "losses": torch.tensor(losses, dtype=torch.float64),
            "rng": torch.random.get_rng_state(),
            f"rng_{device.type}": accelerators.random_state_of(device),
            "recipe": json.dumps(asdict(self.recipe)),
            "data": self.data,
        }
        save(content, self.folder / f"step_{len(losses):06d}.pt")

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, resume: bool) -> list[float]:
        """Restore model, optimizer and random numbers from the last checkpoint.

        Returns the losses so far, [] without a checkpoint.

        Raises ValueError where there is one but `resume` is off, and where it is of other settings, data or model.
        """
        checkpoints = self.checkpoints()
        if not checkpoints:
            return []
        if not resume:
            raise ValueError(
                f"{self.folder} holds a run already, up to {checkpoints[-1].name}; resume it, or name another folder"
            )
        try:
            content = torch.load(checkpoints[-1], map_location="cpu", weights_only=True)
            recipe, data = json.loads(content["recipe"]), content["data"]
        except Exception as error:  # what torch, json and a foreign file raise
            raise ValueError(f"{checkpoints[-1]} is not a checkpoint of this trainer: {type(error).__name__}") from None
        current = json.loads(json.dumps(asdict(self.recipe)))
        differences = [f"{k}: {recipe.get(k)} there, {current[k]} here" for k in current if recipe.get(k) != current[k]]
        if data != self.data:
            differences.append("the data")
        if differences:
            raise ValueError(
                f"{self.folder} holds a run of other settings ({'; '.join(differences)}); name another folder"
            )
        try:
            model.load_state_dict(content["state_dict"])
        except RuntimeError:
            raise ValueError(f"{self.folder} holds a run of another model; name another folder") from None
        optimizer.load_state_dict(content["optimizer"])
        torch.random.set_rng_state(content["rng"])
        device = next(model.parameters()).device
        if content.get(f"rng_{device.type}") is not None:
            accelerators.set_random_state_of(device, content[f"rng_{device.type}"])
        log.info("resuming after step %d of %s", content["step"], checkpoints[-1])
        losses: list[float] = content["losses"].tolist()
        return losses
