"""Which nets a study is made of: a design, as members of a campaign with their arms as labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

from lossmap.campaign.member import Member
from lossmap.studies.net import DepthOfNet, NetSpec, PlaneCurvatureOfNet, SharpnessOfNet, member_of

SMALL_BATCH, LARGE_BATCH = 16, 512


@dataclass(frozen=True)
class Size:
    """How large a study is.

    seeds    random seeds of each arm
    epochs   of each training
    samples  of curvature and surfaces, at most
    model    of the zoo, where the study compares recipes and not nets
    depths   of the residual nets, for `depth`
    ticks    of each axis of a plane, for `depth`
    planes   random planes of each kind, for `plane-curvature`
    """

    seeds: int = 5
    epochs: int = 20
    samples: int = 256
    model: str = "mlp"
    depths: tuple[int, ...] = (8, 14, 20)
    ticks: int = 11
    planes: int = 20

    def __post_init__(self) -> None:
        for name in ("seeds", "epochs", "samples", "planes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1; got {getattr(self, name)}")
        if self.ticks < 5:
            raise ValueError(f"ticks must be >= 5, for minima to be counted; got {self.ticks}")
        wrong = [depth for depth in self.depths if depth < 8 or (depth - 2) % 6]
        if wrong or not self.depths:
            raise ValueError(f"depths must be 8, 14, 20, ... (6 m + 2); got {' '.join(map(str, self.depths))}")
        if len(set(self.depths)) < len(self.depths):
            raise ValueError(f"depths must differ from each other; got {' '.join(map(str, self.depths))}")


QUICK = Size(seeds=2, epochs=5, samples=128, depths=(8,), ticks=7, planes=5)


def flatness(size: Size) -> list[Member]:
    """Small and large batches, with and without weight decay: the same seeds in each arm, the same epochs."""
    members = []
    for batch, decay, seed in product((SMALL_BATCH, LARGE_BATCH), (0.0, 5e-4), range(size.seeds)):
        spec = NetSpec(
            size.model, epochs=size.epochs, batch_size=batch, weight_decay=decay, samples=size.samples, seed=seed
        )
        labels = {"batch": batch, "decay": decay, "seed_of_net": seed}
        members.append(member_of(f"batch {batch}, decay {decay:g}, seed {seed}", SharpnessOfNet(spec), labels))
    return members


def generalisation(size: Size) -> list[Member]:
    """Nets of several recipes, trained on 300 samples so that a gap to the test samples is there; `seeds` of each."""
    members = []
    for batch, decay, rate, seed in product((16, 128), (0.0, 5e-3), (0.02, 0.1), range(size.seeds)):
        spec = NetSpec(
            size.model, epochs=size.epochs, batch_size=batch, rate=rate, weight_decay=decay, train_samples=300,
            samples=size.samples, seed=seed,
        )  # fmt: skip
        name = f"batch {batch}, decay {decay:g}, rate {rate:g}, seed {seed}"
        labels = {"batch": batch, "decay": decay, "rate_of_net": rate, "seed_of_net": seed}
        members.append(member_of(name, SharpnessOfNet(spec), labels))
    return members


def depth(size: Size) -> list[Member]:
    """Residual nets of each depth with and without skip connections, and VGG-9, on 8x8 digits."""
    members = []
    base = NetSpec(epochs=size.epochs, batch_size=128, rate=0.1, weight_decay=5e-4, samples=size.samples)
    nets: list[tuple[str, int, str, NetSpec]] = []
    for deep, (skip, ending) in product(size.depths, (("skip", ""), ("no skip", "-noshort"))):
        spec = replace(base, model=f"resnet20-w8{ending}", settings=(("depth", deep),))
        nets.append((f"resnet{deep} {skip}", deep, skip, spec))
    nets.append(("vgg9", 9, "vgg", replace(base, model="vgg9", settings=(("size", 8), ("channels", 1)))))
    for (name, deep, kind, spec), seed in product(nets, range(size.seeds)):
        labels = {"net": name, "depth_of_net": deep, "kind": kind, "seed_of_net": seed}
        members.append(member_of(f"{name}, seed {seed}", DepthOfNet(replace(spec, seed=seed), size.ticks), labels))
    return members


def planes(size: Size) -> list[Member]:
    """One net for each seed, with its random planes."""
    members = []
    for seed in range(size.seeds):
        spec = NetSpec(size.model, epochs=size.epochs, samples=size.samples, seed=seed)
        members.append(member_of(f"seed {seed}", PlaneCurvatureOfNet(spec, size.planes), {"seed_of_net": seed}))
    return members


DESIGNS: dict[str, Callable[[Size], list[Member]]] = {
    "flatness": flatness,
    "depth": depth,
    "generalisation": generalisation,
    "plane-curvature": planes,
}
DEFAULTS = {  # minutes on the digits
    "flatness": Size(),
    "depth": Size(seeds=2, epochs=8),
    "generalisation": Size(seeds=3),
    "plane-curvature": Size(seeds=3),
}
