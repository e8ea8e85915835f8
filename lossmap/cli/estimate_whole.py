"""Estimates of what is no survey over a grid: curvature along a run, and the examination of a network.

Of a run the first, the middle and the last checkpoint are measured as the command will measure them; of an examination
a few products and gradients are timed, and their number is an expectation. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lossmap.cli.settings import Settings, UsageError
from lossmap.parallel.cost_model import Estimate
from lossmap.parallel.process import peak_memory
from lossmap.parallel.world import World

BYTES_OF_A_REPORT = 50_000  # of the examination's group in a result file, about


def estimate_run(settings: Settings, world: World, per_node: int, clock: Callable[[], float]) -> Estimate:
    """The estimate of `lossmap dynamics`: a point is a checkpoint."""
    from lossmap.cli import device, load_problem
    from lossmap.cli.dynamics import checkpoints_of, measure_of
    from lossmap.landscape.checkpoint_steps import find_checkpoints
    from lossmap.memory import free_memory, memory_now

    began = clock()
    files = find_checkpoints(checkpoints_of(settings))
    if settings.data.split == "both":
        raise UsageError("a run is followed on one split; use --split train or --split test")
    machine = device.prepare_machine(settings.run, world)
    device.refuse_bfloat16(machine)
    problem = load_problem.problem_and_files(settings, world, machine)[settings.data.split]
    if settings.run.batch_size:
        problem = problem.rebatched(settings.run.batch_size)
    memory = free_memory(machine.device, per_node) // 3
    sizes: list[int] = []
    measure = measure_of(settings, problem, files, memory, lambda step, vectors: sizes.append(vectors.nbytes))
    operator = measure.factory.at(measured=True)
    float((operator @ operator_start(operator))[0])  # what is made once for all checkpoints
    setup = clock() - began
    steps = list(files)
    seconds, products = [], []
    for step in dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1])):
        start = clock()
        products.append(float(measure((step,))["products"]))
        seconds.append(clock() - start)
    on_gpu = machine.device.type != "cpu"
    return Estimate(
        points=len(files),
        seconds=sum(seconds) / len(seconds),
        least=min(seconds),
        most=max(seconds),
        first=sum(seconds) / len(seconds),
        setup=setup,
        products=sum(products) / len(products),
        memory=peak_memory(),
        gpu_memory=memory_now(measure.problem.model) if on_gpu else 0,
        file_size=max(sizes) * len(files),
        per_node=per_node,
        looked_at=len(seconds),
    )


def operator_start(operator: Any) -> Any:
    """A random vector for a first product, (n,)."""
    import torch

    from lossmap.seeding import generator

    return torch.randn(operator.size, generator=generator("estimate", operator.size)).to(
        operator.device, operator.dtype
    )


def estimate_examination(settings: Settings, world: World, clock: Callable[[], float]) -> Estimate:
    """The estimate of `lossmap health`, whose only point is the network."""
    from lossmap.cli.health import examined
    from lossmap.memory import memory_now

    began = clock()
    examination = examined(settings, world)
    setup = clock() - began
    price = examination.price()
    model = examination.problem.model
    on_gpu = next(iter(model.parameters())).device.type != "cpu"
    return Estimate(
        points=1,
        seconds=price.seconds,
        least=price.seconds,
        most=price.seconds,
        first=price.seconds,
        setup=setup,
        products=price.count,
        memory=price.memory if not on_gpu else peak_memory(),
        gpu_memory=memory_now(model) if on_gpu else 0,
        file_size=BYTES_OF_A_REPORT if settings.health.surf_file else 0,
    )
