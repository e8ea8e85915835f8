"""Many products at one theta, several times cheaper: all that does not depend on the vector is done once.

A map visits many points with one model, and at each wants many products with the curvature there. `prepare` does once
what depends on neither; `at` does once per point what does not depend on the vector:

    prepared = prepare(problem)                  # traces, compares with double backward, probes
    matrix = prepared.at(plane.at(point))        # computes the values that products read, when first asked
    matrix @ v, matrix.loss()

    way       what is kept                                      units of a layer's work in a product (gradient: 3)
    linear    the values that tangents meet (see `tangents`)    6; Gauss-Newton 4
    graph     the gradient's graph, as autograd keeps it        6, and none of the layers folded; Hessian only
    double    nothing: `curvature.Curvature`                    9; Gauss-Newton 8

Of a linear way's 3x3 convolutions with many channels, tiles (see `winograd`) save up to three multiplications in four.
All are exact. `linear` is compared with double backward in float64 on a few samples before its first use and given up,
with a line to the log, where the two differ or the trace fails: it sees through detach, `.data`, no_grad, custom
autograd functions and random numbers. Kept values stay within a bound of memory; batches beyond it are computed anew in
every product. Prices as measured: benchmarks/hvp.py. After Pearlmutter (1994), doi:10.1162/neco.1994.6.1.147, and the
linearisation of JAX (Radul, Paszke, Frostig, Johnson and Maclaurin 2022, arXiv:2204.10923).
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lossmap.curvature.linearized_operator import (
    BatchList,
    HvpPlan,
    LinearizedOperator,
    OperatorFactory,
    disagreement,
    tracing,
)
from lossmap.curvature.operators import (
    Product,
    Total,
    differentiated,
    first_backward,
    gauss_newton,
    hessian,
    outputs_and_loss,
    single_rank,
)
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.parameter_vector import Layout, selected
from lossmap.seeding import generator
from lossmap.sums import norm

log = logging.getLogger("lossmap")

BACKENDS = ("auto", "linear", "graph", "double")
FIRST = 32  # the batch at which the probe starts
TILED = 16  # the least channels of 3x3 convolutions with which tiles are tried
ROUNDED = 32  # how far tiles may round, in units of the precision
PROBE = 30.0  # processor seconds after which the probe tries nothing further


def free_memory(device: torch.device) -> int:
    """Bytes that could be had on this device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 2 << 30


def prepare(
    problem: Problem,
    parameters: str = "weights",
    product: Product = hessian,
    *,
    total: Total = single_rank,
    way: str = "auto",
    choice: HvpPlan | None = None,
    memory: int | None = None,
) -> OperatorFactory:
    """What many products at many places have in common, made once.

    parameters  `weights` (dimension > 1), `all`, or a regular expression
    product     hessian or gauss_newton
    way         `linear`, `graph`, `double`, or `auto`: the cheapest by a short probe on this machine
    choice      what an earlier `prepare` chose, here or on another rank: no probe
    memory      bytes for kept values; by default a third of what is free now (give less where ranks share it)

    The model's mode does not matter: products are those of evaluation mode. Where `linear` cannot be trusted, the log
    says why and another way is taken. Raises ValueError where there is no such way or parameter.
    """
    if way not in BACKENDS:
        raise ValueError(f"unknown way {way!r}; there are {', '.join(BACKENDS)}")
    device = next(iter(selected(problem.model, parameters).values())).device
    room = free_memory(device) // 3 if memory is None else memory
    plain: HvpPlan = {"way": "double", "batch": problem.data.batch_size, "format": "contiguous", "block": "apart"}
    begun = OperatorFactory(problem, parameters, product, total, plain, room)
    if product is gauss_newton:
        with tracing(problem):
            outputs_and_loss(problem, next(iter(problem.rebatched(1).data)))
    wish = way if choice is None else str(choice["way"])
    if choice is not None:
        begun = OperatorFactory(problem, parameters, product, total, dict(choice), room)
    reason = disagreement(begun) if wish in ("auto", "linear") else None
    if reason is not None:
        log.warning("products are not linearised, but made by double backward: %s", reason)
    if choice is not None:
        way_left = {} if reason is None else {"way": "double"}
        return OperatorFactory(problem, parameters, product, total, begun.choice | way_left, room)
    allowed = {"linear", "graph", "double"} if way == "auto" else {way}
    if reason is not None:
        allowed = (allowed - {"linear"}) or {"double"}
    if product is not hessian:
        allowed = (allowed - {"graph"}) or {"double"}
    with torch.inference_mode(False), torch.no_grad():
        return Probe(begun).chosen(allowed)


class Probe:
    """The search for the cheapest way, while it lasts. Not a result: `chosen` makes a Prepared."""

    def __init__(self, begun: OperatorFactory) -> None:
        self.begun = begun
        self.samples = begun.problem.data.samples
        self.deadline = time.process_time() + PROBE
        self.seconds: dict[str, float] = {}  # per sample and product
        # of one thread, what it worked itself: others on the same cores do not count
        alone_at_work = torch.get_num_threads() == 1 and next(begun.problem.model.parameters()).device.type == "cpu"
        self.clock = time.thread_time if alone_at_work else time.perf_counter
        self.images = any(p.dim() == 4 for p in begun.problem.model.parameters())

    def chosen(self, allowed: set[str]) -> OperatorFactory:
        """The cheapest among these ways, with its cut, memory format, and what else there is to choose."""
        found = [f for f in (self.climb(way) for way in BACKENDS if way in allowed) if f is not None]
        best = found[0]
        for other in found[1:]:
            best = self.better(best, other)
        if best.choice["way"] == "linear":
            return self.recorded(self.blocks(best))
        return self.recorded(best.choice)

    def recorded(self, choice: HvpPlan) -> OperatorFactory:
        """With the seconds that were measured beside the choice."""
        record = {k: float(f"{t:.3g}") for k, t in self.seconds.items()}
        return self.told(choice | {"seconds_per_sample": record})

    def told(self, choice: HvpPlan) -> OperatorFactory:
        """As begun, with this choice."""
        return replace(self.begun, choice=choice)

    def climb(self, way: str) -> Candidate | None:
        """Both memory formats at the first cut, then larger cuts as long as they gain, or else smaller ones."""
        plain = {"way": way, "batch": min(FIRST, self.samples), "format": "contiguous", "block": "apart"}
        best = self.entrant(plain)
        if way == "linear" and self.images:
            other = self.entrant(plain | {"format": "channels_last"})
            # an operation may not know the other format, or take it otherwise
            winner = self.better(best, other) if best and other else best or other
            if winner is not best and winner is not None and disagreement(winner.prepared) is None:
                best = winner
        if best is None:
            return None
        if best.choice["format"] == "channels_last":
            best = self.tiled(best)
        for factor in (2.0, 0.5):
            while time.process_time() < self.deadline:
                size = min(int(best.choice["batch"] * factor), self.samples)
                if size < 8 or size == best.choice["batch"]:
                    break
                tried = self.entrant(best.choice | {"batch": size})
                if tried is None or self.better(best, tried, 0.97) is best:
                    break
                best = tried
            if best.choice["batch"] > plain["batch"]:
                break
        return best

    def tiled(self, best: Candidate) -> Candidate:
        """With 3x3 convolutions of many channels done by tiles, as long as that gains and rounds well enough."""
        plain = best
        shapes = [p.shape for p in self.begun.problem.model.parameters() if p.dim() == 4 and p.shape[2:] == (3, 3)]
        for channels in sorted({min(s[:2]) for s in shapes if min(s[:2]) >= TILED}, reverse=True)[:3]:
            if time.process_time() > self.deadline:
                break
            tried = self.entrant(plain.choice | {"tiled": channels})
            if tried is None or self.better(best, tried) is best:
                continue
            ours, theirs = tried.work(), plain.work()
            if norm(ours - theirs) <= ROUNDED * torch.finfo(ours.dtype).eps * norm(theirs):
                best = tried
        return best

    def blocks(self, best: Candidate) -> HvpPlan:
        """Four vectors together by vmap, if that is cheaper than one after the other."""
        if "tiled" in best.choice:
            return best.choice
        together = Candidate(self, best.choice | {"block": "together"}, vectors=4)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                together.work()
        except (RuntimeError, UserWarning):  # an operation that vmap does not know, or loops over
            return best.choice
        apart = Candidate(self, best.choice, vectors=4)
        return together.choice if in_turns([apart, together], self.clock)[1] is together else best.choice

    def entrant(self, choice: HvpPlan) -> Candidate | None:
        """A way with its first batch prepared; None where it does not run."""
        if choice["way"] == "graph":
            one = self.one(self.told(choice))
            size = one.problem.data.samples
            choice = choice | {"kept_per_sample": graph_bytes(one.problem, one.layout) // size}
        made = Candidate(self, choice)
        try:
            made.work()
        except RuntimeError:  # too large for the memory, or in a format that some operation does not take
            if choice["way"] == "double":
                raise
            return None
        return made

    def better(self, best: Candidate, tried: Candidate, margin: float = 1.0) -> Candidate:
        """The cheaper per sample, both timed in turns; the first unless the second is cheaper by the margin."""
        (first, second), _ = in_turns([best, tried], self.clock)
        for entrant, seconds in ((best, first), (tried, second)):
            self.seconds[entrant.name] = min(seconds, self.seconds.get(entrant.name, seconds))
        return tried if second < margin * first else best

    def one(self, prepared: OperatorFactory) -> OperatorFactory:
        """The same over its first batch alone."""
        batch = next(iter(prepared.cut.data))
        return replace(prepared, problem=prepared.problem.with_data(BatchList([batch])), total=single_rank)


class Candidate:
    """A choice that can be timed: its product over one batch with some vectors."""

    def __init__(self, probe: Probe, choice: HvpPlan, vectors: int = 1) -> None:
        self.choice, self.prepared = choice, probe.told(choice)
        one = probe.one(self.prepared)
        self.samples = one.problem.data.samples
        matrix = one.at()
        drawn = torch.randn(vectors, one.size, generator=generator("probe", vectors, one.size))
        rows = drawn.to(matrix.device, matrix.dtype)
        self.device = matrix.device
        self.work: Callable[[], Tensor] = partial(matrix.share, rows)
        tiled = f" tiled from {choice['tiled']}" if "tiled" in choice else ""
        self.name = f"{choice['way']} {choice['batch']} {choice['format']}{tiled}"


def in_turns(
    entrants: Sequence[Candidate], clock: Callable[[], float], rounds: int = 4
) -> tuple[tuple[float, ...], Candidate]:
    """The least seconds per sample of each, in turns, so that a change of load meets all alike; and the cheapest."""
    least = [float("inf")] * len(entrants)
    for _ in range(rounds):
        for i, entrant in enumerate(entrants):
            start = clock()
            entrant.work()
            if entrant.device.type == "cuda":
                torch.cuda.synchronize(entrant.device)
            least[i] = min(least[i], (clock() - start) / entrant.samples)
    return tuple(least), entrants[least.index(min(least))]


class AllocationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all results inside: more than a graph of them can hold."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf._base is None:
                self.bytes += leaf.untyped_storage().nbytes()
        return result


def graph_bytes(problem: Problem, layout: Layout) -> int:
    """A bound of the memory that the gradient's graphs over these few batches would keep."""
    own = dict(problem.model.named_parameters())
    parameters = [own[k] for k in layout.names]
    with (
        temporary_parameters(problem.model, {}),
        differentiated(problem.model, parameters),
        AllocationCounter() as counted,
    ):
        for batch in problem.data:
            first_backward(problem, batch, parameters)
    total: int = counted.bytes
    return total


__all__ = ["HvpPlan", "LinearizedOperator", "OperatorFactory", "prepare"]
