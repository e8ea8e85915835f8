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
from lossmap.spectra.block_groups import size_of
from lossmap.spectra.request import Subject, Task
from lossmap.spectra.tasks import SpectrumTasks

SAMPLES = 256  # of each split, over which the parts are rehearsed
TIMED = 3  # products of each subject that are timed, after a first one


@dataclass(frozen=True)
class Cost:
    """What a part is expected to take: products with the matrix, and seconds of one rank."""

    products: int
    seconds: float


def rehearse(tasks: SpectrumTasks, clock: Callable[[], float], samples: int = SAMPLES) -> tuple[list[Cost], float]:
    """The cost of every task, in their order, and the seconds that a rank needs before its first product is quick.

    clock  in seconds
    Raises what a task raises.
    """
    costs, setups, prices = products_of(tasks, samples), [], []
    for subject in tasks.subjects:
        begun = clock()
        matrix = tasks.matrix(subject)  # traced and compared with double backward
        v = torch.randn(matrix.size, generator=generator("rehearsal", matrix.size)).to(matrix.device, matrix.dtype)
        took = []
        for _ in range(1 + TIMED):
            start = clock()
            float((matrix @ v)[0])  # asked for on the host, so that a GPU has done it
            took.append(clock() - start)
        prices.append(statistics.median(took[1:]))
        setups.append(clock() - begun - (1 + TIMED) * prices[-1])
    costs_of_tasks = [Cost(n, n * prices[task.subject]) for n, task in zip(costs, tasks.tasks, strict=True)]
    return costs_of_tasks, max(0.0, sum(setups))


def products_of(tasks: SpectrumTasks, samples: int = SAMPLES) -> list[int]:
    """The products that each task takes over so few samples, a gradient counted as one."""
    counted: list[int] = []
    size = 1

    def total(message: Tensor) -> Tensor:
        """Stands in for a team's sum, in which b products travel with three numbers more: see `mean_product`."""
        counted.append(max(0, message.numel() - 3) // size)  # a vote of the team holds no product
        return message

    # no vote on products, which would count as one of a small block's
    total.is_alone = True  # type: ignore[attr-defined]
    few = replace(tasks, subjects=tuple(_few(s, samples) for s in tasks.subjects), total=total, choices=(), made={})
    products = []
    for number, task in enumerate(tasks.tasks):
        size = _size(few, task)
        counted.clear()
        few((float(number),))
        products.append(1 if task.kind == "gradient" else sum(counted))
    return products


def _few(subject: Subject, samples: int) -> Subject:
    parts = max(1, subject.problem.data.samples // samples)
    few = subject.problem.share(0, parts)
    return replace(subject, problem=few) if few.weight else subject


def _size(tasks: SpectrumTasks, task: Task) -> int:
    """The length of the vectors that the task multiplies."""
    subject = tasks.subjects[task.subject]
    if task.kind not in ("block", "block_ends", "leak"):
        return int(tasks.matrix(subject).size)
    layout = tasks.matrix(subject, tasks.request.block_parameters).layout
    if task.kind == "block":
        return size_of(layout, subject.groups(tasks.request)[task.name])
    return int(layout.size)
