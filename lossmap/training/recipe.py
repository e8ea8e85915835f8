"""How a net is trained: the recipe, with its learning rates, and the history of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Recipe:
    """How a net is trained.

    rate          the learning rate at the start
    schedule      `constant`; `cosine`, down to 0; `step`, a tenth from each of `milestones` on
    milestones    shares of the run, 0 to 1
    seed          of the order of the samples, and of dropout and augmentation
    augment       `none`; `shift`, by up to an eighth of the image, zeros coming in; `shift-flip`, mirrored too
    """

    epochs: int = 12
    batch_size: int = 128
    optimizer: str = "sgd"
    rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75, 0.9)
    augment: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("optimizer", ("sgd", "adam")),
            ("schedule", ("constant", "cosine", "step")),
            ("augment", ("none", "shift", "shift-flip")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be >= 1; got {self.epochs} and {self.batch_size}")
        if not self.rate > 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ValueError(
                "rate must be > 0, momentum >= 0 and < 1, weight_decay >= 0; "
                f"got {self.rate}, {self.momentum} and {self.weight_decay}"
            )

    def rate_at(self, share: float) -> float:
        """The learning rate when this share of the run, 0 to 1, is done."""
        if self.schedule == "cosine":
            return self.rate * 0.5 * (1.0 + math.cos(math.pi * share))
        if self.schedule == "step":
            return self.rate * 0.1 ** sum(share >= milestone for milestone in self.milestones)
        return self.rate


@dataclass(frozen=True)
class History:
    """The course of a training run.

    losses       of each step, before it, mean over its batch
    checkpoints  the files that it wrote, in their order
    stopped      whether it was stopped before its end
    """

    losses: tuple[float, ...]
    steps_per_epoch: int
    checkpoints: tuple[Path, ...]
    stopped: bool = False

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.losses)

    def epoch_losses(self) -> list[float]:
        """The mean of the losses of each whole epoch."""
        each = self.steps_per_epoch
        parts = [self.losses[i : i + each] for i in range(0, self.steps - each + 1, each)]
        return [sum(part) / each for part in parts]
