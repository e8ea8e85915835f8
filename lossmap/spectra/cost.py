"""What the parts of a spectrum will cost, before they are done: a rehearsal of all of them over few samples.

How many products a part takes hardly depends on how many samples the loss is the mean of; what a product costs
does. So every part is done over some samples, its products are counted, and one product over all samples is timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lossmap.seeding import generator
from lossmap.spectra.tasks import SpectrumTasks, Subject, Task

SAMPLES = 256  # of each split, over which the parts are rehearsed
TIMED = 3  # products of each subject that are timed, after a first one


@dataclass(frozen=True)
class Cost:
    """What a part is expected to take: products with the matrix, and seconds of one rank."""

    products: int
    seconds: float


def rehearse(jobs: SpectrumTasks, clock: Callable[[], float], samples: int = SAMPLES) -> tuple[list[Cost], float]:
    """The cost of every job, in their order, and the seconds that a rank needs before its first product is quick.

    clock  in seconds
    Raises what a job raises.
    """
    costs, setups, prices = products_of(jobs, samples), [], []
    for subject in jobs.subjects:
        begun = clock()
        matrix = jobs.matrix(subject)  # traced and compared with double backward
        v = torch.randn(matrix.size, generator=generator("rehearsal", matrix.size)).to(matrix.device, matrix.dtype)
        took = []
        for _ in range(1 + TIMED):
            start = clock()
            float((matrix @ v)[0])  # asked for on the host, so that a GPU has done it
            took.append(clock() - start)
        prices.append(statistics.median(took[1:]))
        setups.append(clock() - begun - (1 + TIMED) * prices[-1])
    told = [Cost(n, n * prices[job.subject]) for n, job in zip(costs, jobs.jobs, strict=True)]
    return told, max(0.0, sum(setups))


def products_of(jobs: SpectrumTasks, samples: int = SAMPLES) -> list[int]:
    """The products that each job takes over so few samples, a gradient counted as one."""
    counted: list[int] = []
    size = 1

    def total(message: Tensor) -> Tensor:
        """Stands in for a team's sum, in which b products travel with three numbers more: see `multiplied`."""
        counted.append((message.numel() - 3) // size)
        return message

    few = replace(jobs, subjects=tuple(_few(s, samples) for s in jobs.subjects), total=total, choices=(), made={})
    found = []
    for number, job in enumerate(jobs.jobs):
        size = _size(few, job)
        counted.clear()
        few((float(number),))
        found.append(1 if job.kind == "gradient" else sum(counted))
    return found


def _few(subject: Subject, samples: int) -> Subject:
    parts = max(1, subject.problem.data.samples // samples)
    return replace(subject, problem=subject.problem.share(0, parts))


def _size(jobs: SpectrumTasks, job: Task) -> int:
    """The length of the vectors that the job multiplies."""
    subject = jobs.subjects[job.subject]
    if job.kind not in ("block", "block_ends", "leak"):
        return int(jobs.matrix(subject).size)
    layout = jobs.matrix(subject, "all").layout
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    return sum(sizes[t] for t in jobs.groups(subject)[job.name]) if job.kind == "block" else int(layout.size)
