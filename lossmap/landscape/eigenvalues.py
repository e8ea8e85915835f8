"""The measure of a map of eigenvalues: the extreme ones of the Hessian of the mean loss at points of a plane.

    point (k,) -> {max_eig, max_eig_error, max_eig_limit, min_eig, ..., products}      what they mean: `eigen`

A search starts from the eigenvectors of the nearest point that this rank has solved, continued in a straight line where
the point beyond it is known too, plus a small random part made from (seed, point). Where the loss is not finite the
readings are NaN and the point is done; a product that is not finite at a finite loss raises.

Units: loss per squared unit of theta. Price: `benchmarks/eigenmap.py`. Memory: the search space and the neighbours'
vectors, each at most `memory` bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lossmap.geometry.directions import Plane
from lossmap.geometry.grid import Field, Point
from lossmap.interrupt import Interrupted
from lossmap.linalg.lanczos import EigenPairs, Which, check_eigenvalue_request, extremes
from lossmap.linalg.operator import SymmetricOperator
from lossmap.linalg.trace import trace

CERTIFY = ("audit", "each", "none")
MOST = 512
ALIGNED = 0.8  # a vector is continued in a straight line where the last two make an angle with a cosine above this


class There(SymmetricOperator, Protocol):
    """The matrix at one point, which knows the loss there."""

    def loss(self) -> float:
        """The mean loss over all samples of the team."""


class Prepared(Protocol):
    """A problem made ready for many products at many points: `linearize.prepare` makes one."""

    @property
    def size(self) -> int:
        """The entries n of theta."""

    @property
    def batch(self) -> int:
        """Samples of a batch."""

    def at(self, tensors: Mapping[str, Tensor]) -> There:
        """The matrix where the model has these tensors."""

    def smaller(self) -> Prepared | None:
        """The same with smaller batches and fewer kept values; None where it cannot do with less."""


class EigenvalueMap:
    """The measure: `measure(point)` -> reading.

    prepared      by split, {"train": ...}: the fields of the first have no prefix, those of the others `test_`
    which         ends, top:k, bottom:k, abs:k or trace, or several of them joined by commas
    tol, solver, max_products, confidence    as in `eigen`
    certify       each: every point starts cold, and goes on until its limits are near; else from a neighbour
    stop          asked between products; then the point is left by Unfinished, whose state `resume` takes
    unit          of the loss
    settings      what else it was told, to be stored
    audit         cold and certified, its fields under names of their own: the second look at some points
    """

    def __init__(
        self,
        prepared: Mapping[str, Prepared],
        plane: Plane,
        which: str = "ends",
        *,
        tol: float = 1e-3,
        solver: str = "auto",
        max_products: int | None = None,
        certify: str = "audit",
        confidence: float = 0.99,
        seed: int = 0,
        memory: int = 1 << 29,
        stop: Callable[[], bool] | None = None,
        unit: str = "nats",
        settings: Mapping[str, Any] | None = None,
        audit: bool = False,
    ) -> None:
        if certify not in CERTIFY:
            raise ValueError(f"--certify is one of {', '.join(CERTIFY)}; got {certify!r}")
        self.prepared: dict[str, Prepared] = dict(prepared)
        self.plane, self.which = plane, which
        self.parts = parts_of(which)
        for part in self.parts:
            for made in self.prepared.values():
                check_eigenvalue_request(
                    Which.parse("ends" if part == "trace" else part), made.size, tol, max_products, confidence
                )
        self.certify, self.seed, self.stop, self.unit, self.audit = certify, seed, stop, unit, audit
        self.cold = audit or certify == "each"
        self.name = "audit" if audit else "eigen"
        self.told: dict[str, Any] = {
            "tol": tol,
            "solver": "lanczos" if audit else solver,
            "max_products": max_products,
            "confidence": confidence,
        }
        self.memory = memory
        self._given = dict(settings or {})
        first, *others = self.prepared
        self.prefixes = {first: "", **{split: f"{split}_" for split in others}}
        own = [f for split in self.prepared for f in fields_of(self.parts, self.prefixes[split], split, unit)]
        self.fields = tuple(_renamed(f, "audit_") for f in own) if audit else tuple(own)
        self._jobs = [(split, part) for split in self.prepared for part in self.parts]
        self._solved = {job: Neighbours(plane, memory // len(self._jobs)) for job in self._jobs}

    @property
    def settings(self) -> dict[str, Any]:
        """What it was told: equal settings, equal results within their bounds."""
        return {**self._given, "which": self.which, **self.told, "start": "cold" if self.cold else "neighbour"}

    @property
    def auditable(self) -> bool:
        """Whether a second, cold look could tell something: starts are a neighbour's, and eigenvalues are read."""
        return not self.cold and self.parts != ("trace",)

    def smaller(self) -> str | None:
        """Need less memory, after it ran out: half the batches, kept values and vectors. What was done, or None.

        Every rank of a team calls it, also where that is no use, since all must go on from the same vectors.
        """
        self.memory //= 2
        for solved in self._solved.values():
            solved.forget(self.memory // len(self._jobs))
        torch.cuda.empty_cache()  # what its allocator holds for batches of the former size; without CUDA nothing
        made = {split: prepared.smaller() for split, prepared in self.prepared.items()}
        if all(less is None for less in made.values()):
            return None
        self.prepared |= {split: less for split, less in made.items() if less is not None}
        batch = max(prepared.batch for prepared in self.prepared.values())
        return f"products over batches of {batch} samples, and half the memory for what is kept, from here on"

    def __call__(self, point: Point) -> dict[str, Any]:
        """Read the eigenvalues at a point. Every rank of a team calls with the same point."""
        return self.resume(point, {})

    def resume(self, point: Point, state: Mapping[str, Any]) -> dict[str, Any]:
        """Go on at a point that was left by raising Unfinished with this state."""
        begun = int(state.get("job", 0))
        reading = {k.removeprefix("reading:"): v for k, v in state.items() if k.startswith("reading:")}
        space: dict[str, Any] | None = {k.removeprefix("space:"): v for k, v in state.items() if k.startswith("space:")}
        tensors = self.plane.at(point)
        matrix: There | None = None
        for i, (split, part) in enumerate(self._jobs):
            if i < begun:
                continue
            if matrix is None or part == self.parts[0]:
                matrix = self.prepared[split].at(tensors)
                finite = isfinite(matrix.loss())
            try:
                found = self._read(matrix, split, part, point, space or None) if finite else {}
            except Interrupted as left:
                kept = {f"reading:{k}": v for k, v in reading.items()}
                raise Interrupted({"job": i, **kept, **{f"space:{k}": v for k, v in left.state.items()}}) from None
            space = None
            products = f"{self.prefixes[split]}products"
            found[products] = reading.get(products, 0.0) + found.get(products, 0.0)
            reading |= found
        names = {f.name.removeprefix("audit_"): f for f in self.fields}
        return {f.name: reading.get(name, _nothing(f)) for name, f in names.items()}

    def _read(self, matrix: There, split: str, part: str, point: Point, state: dict[str, Any] | None) -> dict[str, Any]:
        """One part's fields, without the name of the audit."""
        prefix, seed = self.prefixes[split], f"{self.name} {self.seed} {part} {point}"
        if part == "trace":
            about = trace(matrix, products=self.told["max_products"] or 60, seed=seed)
            return {
                f"{prefix}trace": about.value,
                f"{prefix}trace_error": about.error,
                f"{prefix}products": float(about.products),
            }
        solved = self._solved[split, part]
        pairs = extremes(
            matrix,
            part,
            start=None if self.cold else solved.start(point),
            seed=seed,
            certify=self.cold,
            memory=self.memory,
            stop=self.stop,
            state=state,
            **self.told,
        )
        if not self.cold:
            solved.keep(point, pairs.vectors)
        return {f"{prefix}{k}": v for k, v in reading_of(pairs, Which.parse(part)).items()}


def parts_of(which: str) -> tuple[str, ...]:
    """What is to be read, from a list joined by commas. Raises ValueError where that makes no sense."""
    parts = tuple(p.strip() for p in which.split(","))
    for part in parts:
        if part != "trace":
            Which.parse(part)
    kinds = [p.partition(":")[0] for p in parts]
    if len(set(kinds)) < len(kinds) or ("ends" in kinds and {"top", "bottom"} & set(kinds)):
        raise ValueError(f"--which names the same eigenvalues twice: {which!r}; top:k and bottom:k hold the ends")
    return parts


def fields_of(parts: tuple[str, ...], prefix: str, split: str, unit: str) -> list[Field]:
    """The fields that these parts read."""
    per = f"{unit} per squared unit of theta"
    over = "" if not prefix else f" over the {split} samples"
    fields: list[Field] = []
    words = {"max": "largest", "min": "smallest"}
    for part in parts:
        if part == "trace":
            fields += [
                Field(f"{prefix}trace", per, f"trace of the Hessian{over}, an estimate"),
                Field(f"{prefix}trace_error", per, f"standard error of the trace{over}"),
            ]
            continue
        wanted = Which.parse(part)
        ends = {"ends": ("max", "min"), "top": ("max",), "bottom": ("min",), "abs": ()}[wanted.kind]
        for end in ends:
            name, word = f"{prefix}{end}_eig", words[end]
            fields += [
                Field(name, per, f"{word} eigenvalue of the Hessian{over}"),
                Field(f"{name}_error", per, f"an eigenvalue lies within this distance of the {word}{over}"),
                Field(f"{name}_limit", per, f"beyond it, with the stated confidence, lies no eigenvalue{over}"),
            ]
        if wanted.kind != "ends":
            word = {"top": "largest", "bottom": "smallest", "abs": "largest in absolute value"}[wanted.kind]
            extra = (wanted.kind, wanted.count)
            fields += [
                Field(f"{prefix}{wanted.kind}_eig", per, f"eigenvalues of the Hessian{over}, {word}", extra),
                Field(f"{prefix}{wanted.kind}_eig_error", per, f"an eigenvalue lies within this distance{over}", extra),
            ]
    return [*fields, Field(f"{prefix}products", "1", f"Hessian-vector products spent{over}")]


def reading_of(pairs: EigenPairs, wanted: Which) -> dict[str, Any]:
    """The fields of one search."""
    reading: dict[str, Any] = {"products": float(pairs.products)}
    places = {"ends": {"max": 0, "min": 1}, "top": {"max": 0}, "bottom": {"min": 0}, "abs": {}}[wanted.kind]
    for end, place in places.items():
        reading |= {
            f"{end}_eig": float(pairs.values[place]),
            f"{end}_eig_error": float(pairs.residuals[place]),
            f"{end}_eig_limit": pairs.limits[0 if end == "max" else 1],
        }
    if wanted.kind != "ends":
        reading |= {f"{wanted.kind}_eig": pairs.values, f"{wanted.kind}_eig_error": pairs.residuals}
    return reading


def _renamed(field: Field, prefix: str) -> Field:
    return Field(prefix + field.name, field.unit, f"audit: {field.long_name}", field.extra)


def _nothing(field: Field) -> Any:
    """What a field reads where the loss is not finite: no product was spent, and nothing is known."""
    if field.name.endswith("products"):
        return 0.0
    return np.full(field.extra[1], nan) if field.extra else nan


@dataclass(frozen=True)
class Solved:
    """A point that was solved, and its eigenvectors (n, m) of length one."""

    place: np.ndarray
    vectors: Tensor


class Neighbours:
    """The points that this rank has solved: the newest ones within so many bytes, three at least and `MOST` at most.

    plane  gives the lengths of the axes, so that near means near in theta
    """

    def __init__(self, plane: Plane, memory: int) -> None:
        self.lengths = np.array([length or 1.0 for length in plane.lengths])
        self.memory = memory
        self.held: OrderedDict[Point, Solved] = OrderedDict()

    def keep(self, point: Point, vectors: Tensor) -> None:
        """Remember the eigenvectors of a point, unless some are missing."""
        if not bool(vectors.isfinite().all()):
            return
        self.held.pop(point, None)
        self.held[point] = Solved(np.array(point) * self.lengths, vectors)
        size = vectors.numel() * vectors.element_size()
        while len(self.held) > min(max(3, self.memory // size), MOST):
            self.held.popitem(last=False)

    def forget(self, memory: int) -> None:
        """Let go of all points, and hold no more than so many bytes from here on."""
        self.held.clear()
        self.memory = memory

    def start(self, point: Point) -> Tensor | None:
        """(n, m) vectors to start from: the nearest point's, continued in a straight line where that is possible."""
        if not self.held:
            return None
        place = np.array(point) * self.lengths
        every = list(self.held.values())
        distances = np.linalg.norm([s.place - place for s in every], axis=1)
        nearest = every[int(distances.argmin())]
        beyond = 2.0 * nearest.place - place
        gaps = np.linalg.norm([s.place - beyond for s in every], axis=1)
        if distances.min() == 0.0 or gaps.min() > 1e-6 * distances.min():
            return nearest.vectors
        return continued(nearest.vectors, every[int(gaps.argmin())].vectors)


def continued(near: Tensor, far: Tensor) -> Tensor:
    """Vectors (n, m), each continued by the step from far to near where those two are nearly alike up to their sign."""
    overlaps = (near.double() * far.double()).sum(0)
    ahead = 2.0 * near - overlaps.sign().to(near.dtype) * far
    ahead = ahead / torch.linalg.vector_norm(ahead, dim=0, dtype=torch.float64).to(ahead.dtype)
    return torch.where(overlaps.abs() > ALIGNED, ahead, near)
