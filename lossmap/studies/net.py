"""One net of a study: trained from its recipe, then measured, as one point of one member of a campaign.

A member is one net. Its point trains and measures, so that the ranks of mpirun share the nets of a study, a killed
study repeats the nets in flight alone, and a net whose training fails (a loss that is not finite) is a failed member
with its reason. All numbers come from the functions of the other commands: `training.train`, `landscape.sharpness`,
`linalg.eigenpairs`, `landscape.losses`, `topology.find_minima`.

Price: the training, and what each measure says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite, nan, sqrt
from typing import Any

import numpy as np
import torch
from torch import nn

from lossmap import zoo
from lossmap.campaign.member import Member
from lossmap.curvature.build import build_operator
from lossmap.data import datasets
from lossmap.data.problem import Problem
from lossmap.geometry.directions import Plane, random_plane
from lossmap.geometry.grid import Field, Grid, Point
from lossmap.geometry.parameter_vector import selected
from lossmap.landscape.loss import ForwardPlan, losses
from lossmap.landscape.run_survey import survey
from lossmap.landscape.sharpness import sharpness
from lossmap.linalg.extreme_eigenpairs import eigenpairs
from lossmap.linalg.trace import trace
from lossmap.parallel.world import World
from lossmap.sums import in_float64
from lossmap.topology.minima import find_minima
from lossmap.training import Recipe, readings, train

PARAMETERS = "weights"
BALLS = ("filter", "adaptive", "absolute")
RAW = ("largest", "trace", "critical", "average_absolute", "worst_absolute")
NORMALISED = ("average_filter", "worst_filter", "average_adaptive", "worst_adaptive")
REACH = 0.5  # of the points around a net where `DepthOfNet` measures curvature
SHARPNESS = (*RAW, *NORMALISED)  # the numbers of sharpness that studies compare


@dataclass(frozen=True)
class NetSpec:
    """A net and how it is trained and measured.

    model, settings  of the zoo: its name, and what its factory takes, as pairs
    dataset          by its name, such as `digits`
    train_samples    that it is trained on at most; None: all
    samples          of the training samples, at most, over which curvature and surfaces are measured
    """

    model: str = "mlp"
    settings: tuple[tuple[str, Any], ...] = ()
    dataset: str = "digits"
    epochs: int = 20
    batch_size: int = 64
    rate: float = 0.05
    weight_decay: float = 0.0
    train_samples: int | None = None
    samples: int = 256
    seed: int = 0

    def recipe(self) -> Recipe:
        """How it is trained."""
        return Recipe(
            epochs=self.epochs, batch_size=self.batch_size, rate=self.rate, weight_decay=self.weight_decay,
            seed=self.seed,
        )  # fmt: skip

    def fresh(self) -> nn.Module:
        """The net before its training."""
        return zoo.build(self.model, seed=self.seed, **dict(self.settings))

    def problem(self, model: nn.Module, split: str, samples: int | None) -> Problem:
        """The problem of a model on a split."""
        return Problem.supervised(model, "crossentropy", datasets.load(self.dataset, split, samples=samples))


@dataclass(frozen=True, eq=False)
class TrainedNet:
    """A net after its training: the problem on all that it was trained on, and that of which curvature is measured."""

    spec: NetSpec
    model: nn.Module
    trained_on: Problem
    measured: Problem

    @classmethod
    def of(cls, spec: NetSpec) -> TrainedNet:
        """Train a net. Raises FloatingPointError where its loss is not finite."""
        model = spec.fresh()
        problem = spec.problem(model, "train", spec.train_samples)
        train(problem, spec.recipe())
        few = min(spec.samples, problem.data.samples)
        return cls(spec, model, problem, problem.with_data(datasets.limited(problem.data, few)))

    def quality(self) -> dict[str, float]:
        """Losses (nats) and accuracies (percent) on training and test samples."""
        values: dict[str, float] = {}
        for split, problem in (("train", self.trained_on), ("test", self.spec.problem(self.model, "test", None))):
            found = readings(problem)
            if not isfinite(found["loss"]):
                raise FloatingPointError(f"the {split} loss is {found['loss']} after the training")
            values |= {f"{split}_loss": found["loss"], f"{split}_acc": found["acc"]}
        squares = [float(in_float64(p.detach()).square().sum()) for p in selected(self.model, PARAMETERS).values()]
        return values | {"weight_norm": sqrt(sum(squares))}


QUALITY = (
    Field("train_loss", "nats", "mean loss over the training samples"),
    Field("train_acc", "percent", "accuracy on the training samples"),
    Field("test_loss", "nats", "mean loss over the test samples"),
    Field("test_acc", "percent", "accuracy on the test samples"),
    Field("weight_norm", "1", "norm of the weights"),
)


@dataclass(frozen=True)
class SharpnessOfNet:
    """Every number of sharpness of a net, by `landscape.sharpness`.

    Price: some 50 products, 80 gradients and 80 forward passes over `samples`.
    """

    spec: NetSpec
    name: str = "sharpness"

    @property
    def fields(self) -> tuple[Field, ...]:
        """The numbers of a reading."""
        curved = "nats per squared unit of theta"
        rows = [
            Field("largest", curved, "largest eigenvalue of the Hessian"),
            Field("trace", curved, "trace of the Hessian"),
            Field("trace_error", curved, "standard error of the trace"),
            Field("critical", curved, "critical sharpness"),
        ]
        for ball in BALLS:
            rows += [
                Field(f"average_{ball}", "nats", f"mean rise in the {ball} ball"),
                Field(f"average_{ball}_error", "nats", "standard error of the mean rise"),
                Field(f"worst_{ball}", "nats", f"largest rise met in the {ball} ball"),
            ]
        return (*QUALITY, *rows)

    @property
    def settings(self) -> Mapping[str, Any]:
        """For the file."""
        return asdict(self.spec)

    def __call__(self, point: Point) -> dict[str, Any]:
        """Train and measure."""
        net = TrainedNet.of(self.spec)
        found = sharpness(net.measured, draws=10, ascent_steps=10, starts=1, trace_products=30, seed=self.spec.seed)
        reading: dict[str, Any] = {**net.quality(), "largest": found.largest, "critical": nan}
        if found.critical is not None:
            reading["critical"] = found.critical.value
        reading |= {"trace": nan, "trace_error": nan}
        if found.trace is not None:
            reading |= {"trace": found.trace.value, "trace_error": found.trace.error}
        for ball in found.balls:
            reading[f"average_{ball.kind}"] = ball.average
            reading[f"average_{ball.kind}_error"] = ball.average_error
            reading[f"worst_{ball.kind}"] = ball.worst
        return reading


def axes_as_vectors(plane: Plane, model: nn.Module) -> torch.Tensor:
    """(axes, n) the axes of a plane as vectors over the weights, in the order of the Hessian's rows."""
    names = list(selected(model, PARAMETERS))
    return torch.stack([torch.cat([axis[name].flatten() for name in names]) for axis in plane.axes])


def plane_curvature(operator: Any, axes: torch.Tensor) -> np.ndarray:
    """(2,) the eigenvalues of the Hessian restricted to a plane: what a picture of that plane can show of curvature.

    axes  (2, n); they need not be orthonormal

    Price: two products.
    """
    basis = torch.linalg.qr(in_float64(axes).T)[0].to(axes.dtype)  # (n, 2)
    images = torch.stack([operator @ column for column in basis.T], dim=1)
    small = (in_float64(basis).T @ in_float64(images)).cpu().numpy()
    values: np.ndarray = np.linalg.eigvalsh((small + small.T) / 2)
    return values


@dataclass(frozen=True)
class PlaneCurvatureOfNet:
    """The curvature that random planes through a trained net show, beside the ends of its spectrum and trace/n.

    Price: 4 products a pair of planes, 60 for the trace, some 30 for both ends.
    """

    spec: NetSpec
    planes: int = 20
    name: str = "planes"

    @property
    def fields(self) -> tuple[Field, ...]:
        """The numbers of a reading."""
        curved = "nats per squared unit of theta"
        pair = ("plane", self.planes)
        return (
            *QUALITY,
            Field("parameters", "1", "number of weights"),
            Field("largest", curved, "largest eigenvalue of the Hessian"),
            Field("smallest", curved, "smallest eigenvalue of the Hessian"),
            Field("trace", curved, "trace of the Hessian"),
            Field("trace_error", curved, "standard error of the trace"),
            *(
                Field(f"{kind}_{end}", curved, f"{text} curvature in {kind} random planes", pair)
                for kind in ("gaussian", "filter")
                for end, text in (("low", "smallest"), ("high", "largest"))
            ),
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """For the file."""
        return {**asdict(self.spec), "planes": self.planes}

    def __call__(self, point: Point) -> dict[str, Any]:
        """Train and measure."""
        net = TrainedNet.of(self.spec)
        operator = build_operator(net.measured, "hessian", PARAMETERS)
        ends = eigenpairs(operator, "ends", seed=self.spec.seed)
        whole = trace(operator, products=60, seed=self.spec.seed)
        reading: dict[str, Any] = {
            **net.quality(),
            "parameters": float(operator.size),
            "largest": float(ends.values.max()),
            "smallest": float(ends.values.min()),
            "trace": whole.value,
            "trace_error": whole.error,
        }
        for kind, norm in (("gaussian", "none"), ("filter", "filter")):
            found = [
                plane_curvature(operator, axes_as_vectors(random_plane(net.model, 2, seed, norm=norm), net.model))
                for seed in range(self.planes)
            ]
            reading[f"{kind}_low"], reading[f"{kind}_high"] = np.array(found).T
        return reading


@dataclass(frozen=True)
class DepthOfNet:
    """Convexity, minima and a bad start: what depth and skip connections do to the surface around a trained net.

    ticks  of the filter-normalised plane, -1 to 1 along each axis; its losses are those of `samples` samples

    Both ends of the spectrum are computed at the net and at the four points (-+`REACH`, -+`REACH`) of that plane. The
    bad start is the point of the plane with the largest finite loss: the net is trained from there by the same recipe.
    Price: two trainings, ticks^2 forward passes, and 5 times some 30 products.
    """

    spec: NetSpec
    ticks: int = 11
    name: str = "depth"

    @property
    def fields(self) -> tuple[Field, ...]:
        """The numbers of a reading."""
        curved = "nats per squared unit of theta"
        return (
            *QUALITY,
            Field("max_eig", curved, "largest eigenvalue, at the net and at four points around", ("place", 5)),
            Field("min_eig", curved, "smallest eigenvalue, at the net and at four points around", ("place", 5)),
            Field("surface", "nats", "loss on the plane, row by row", ("cell", self.ticks**2)),
            Field("minima", "1", "minima of the plane whose persistence is beyond the errors"),
            Field("bad_start_loss", "nats", "loss at the bad start"),
            Field("retrained_loss", "nats", "training loss after training from the bad start"),
            Field("retrained_acc", "percent", "training accuracy after training from the bad start"),
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """For the file."""
        return {**asdict(self.spec), "ticks": self.ticks}

    def __call__(self, point: Point) -> dict[str, Any]:
        """Train and measure, and train again from a bad start."""
        net = TrainedNet.of(self.spec)
        reading: dict[str, Any] = net.quality()
        plane = random_plane(net.model, 2, self.spec.seed)
        ticks = np.linspace(-1.0, 1.0, self.ticks)
        measure = losses(net.measured, plane, plan=ForwardPlan(net.measured.data.batch_size))
        surface = survey(measure, Grid(ticks, ticks), progress=False, world=World())
        values = surface["train_loss"]
        reading |= {"surface": values.ravel(), "minima": float(find_minima(surface).count)}
        reading["max_eig"], reading["min_eig"] = self._ends(net, plane)
        row, column = np.unravel_index(np.argmax(np.where(np.isfinite(values), values, -np.inf)), values.shape)
        net.model.load_state_dict(plane.at((float(ticks[column]), float(ticks[row]))), strict=False)
        again = readings(net.trained_on)
        train(net.trained_on, self.spec.recipe())
        after = readings(net.trained_on)
        return reading | {
            "bad_start_loss": again["loss"],
            "retrained_loss": after["loss"],
            "retrained_acc": after["acc"],
        }

    def _ends(self, net: TrainedNet, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
        """Largest and smallest eigenvalue, (5,) each, at the net and at four points of the plane."""
        high, low = [], []
        for place in ((0.0, 0.0), (REACH, REACH), (-REACH, REACH), (REACH, -REACH), (-REACH, -REACH)):
            net.model.load_state_dict(plane.at(place), strict=False)
            operator = build_operator(net.measured, "hessian", PARAMETERS)
            ends = eigenpairs(operator, "ends", tol=1e-2, certify=False, seed=self.spec.seed)
            high.append(float(ends.values.max()))
            low.append(float(ends.values.min()))
        net.model.load_state_dict(plane.at((0.0, 0.0)), strict=False)
        return np.array(high), np.array(low)


@dataclass(frozen=True)
class Built:
    """What a member's `build` is: its measure over one point. It pickles."""

    measure: Any

    def __call__(self) -> tuple[Any, Grid]:
        """The measure and its only point."""
        return self.measure, Grid(np.zeros(1))


def member_of(name: str, measure: Any, labels: Mapping[str, Any]) -> Member:
    """A net of a study as a member of a campaign."""
    return Member(name, Built(measure), dict(measure.settings), measure=measure.name, labels=dict(labels))
