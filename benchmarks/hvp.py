"""Cost of one Hessian-vector product, in gradients over the same data and against plain double backward.

Prints a Markdown table: for each model and number of threads the best gradient and the best double backward over memory
formats and batch sizes, what `prepare` chose, and its cost for one vector, for blocks of 2, 4 and 8 vectors (per
vector), and for the Gauss-Newton matrix. All are timed alternately, so that the load of the machine affects all of them
alike; the minimum counts. `bare` is the cost of the convolutions of a product alone, with their operands in memory: two
forward, and two backward in input and weight, in the chosen batches; no product that uses these kernels can be
cheaper.

    python benchmarks/hvp.py [--quick] [--threads 1,2] [--cpu-time]
"""

from __future__ import annotations

import argparse
import copy
import datetime
import os
import platform
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn

from lossmap import zoo
from lossmap.curvature.autotune import prepare
from lossmap.curvature.operators import CurvatureOperator, gauss_newton
from lossmap.data.problem import Problem
from lossmap.geometry.parameter_vector import selected
from lossmap.parallel.process import keep_freed_memory

Clock = Callable[[], float]


def net_of(name: str) -> tuple[nn.Module, tuple[int, ...], int]:
    """A model of the zoo, the shape of its input, and the number of samples."""
    net = zoo.build(name, seed=0)
    shape, samples = {"resnet20": ((3, 32, 32), 128), "resnet20-w8": ((1, 8, 8), 512), "mlp": ((1, 8, 8), 512)}[name]
    torch.manual_seed(0)
    for _ in range(2):  # running statistics of the data
        net(torch.randn(32, *shape))
    return net.eval(), shape, samples


def minimum(works: dict[str, Callable[[], object]], rounds: int, clock: Clock) -> dict[str, float]:
    """The minimal seconds of each, all timed alternately."""
    taken = dict.fromkeys(works, float("inf"))
    for turn in range(rounds + 1):
        for name, work in works.items():
            start = clock()
            work()
            if turn:  # the first is not counted
                taken[name] = min(taken[name], clock() - start)
    return taken


def convolutions(net: nn.Module, x: torch.Tensor, size: int) -> Callable[[], None] | None:
    """The convolutions of one product over all samples, in batches of this size; None where the model has none."""
    calls: list[tuple[nn.Conv2d, torch.Size, torch.Size]] = []
    kinds = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    hooks = [m.register_forward_hook(lambda m, x, y: calls.append((m, x[0].shape, y.shape))) for m in kinds]
    with torch.no_grad():
        net(x[:size])
    for hook in hooks:
        hook.remove()
    last = torch.channels_last
    ready = [
        (m, torch.randn(a).contiguous(memory_format=last), torch.randn(b).contiguous(memory_format=last),
         m.weight.detach().contiguous(memory_format=last))
        for m, a, b in calls
    ]  # fmt: skip

    def work() -> None:
        for _ in range(max(1, len(x) // size)):
            for i, (m, a, b, w) in enumerate(ready):
                rest = (m.stride, m.padding, m.dilation, False, (0, 0), m.groups)
                for turn in range(2):
                    if i or turn:  # the data have no tangent
                        torch.ops.aten.convolution(a, w, None, *rest)
                    both = [i > 0, True, False]
                    if i or turn:
                        torch.ops.aten.convolution_backward(b, a, w, None, *rest, both)

    return work if calls else None


def row(name: str, threads: int, quick: bool, clock: Clock) -> str:
    """One line of the table."""
    torch.set_num_threads(threads)
    net, shape, samples = net_of(name)
    samples = 64 if quick else samples
    data = (torch.randn(samples, *shape), torch.randint(10, (samples,)))
    problem = Problem.supervised(net, "crossentropy", data, batch_size=samples)
    prepared = prepare(problem)
    newton = prepare(problem, product=gauss_newton)
    matrix = prepared.at()
    block = torch.randn(matrix.size, 8)
    works: dict[str, Callable[[], object]] = {"linear": lambda: matrix @ block[:, 0]}
    for b in (2, 4, 8):
        works[f"block {b}"] = lambda b=b: matrix @ block[:, :b]  # type: ignore[misc]
    newton_matrix = newton.at()
    works["newton"] = lambda: newton_matrix @ block[:, 0]

    def gradient(problem: Problem) -> None:
        theta = list(selected(problem.model).values())
        for batch in problem.data:
            torch.autograd.grad(problem.total(batch), theta)

    formats: Iterable[torch.memory_format] = (torch.contiguous_format,)
    if any(p.dim() == 4 for p in net.parameters()):
        formats = (torch.contiguous_format, torch.channels_last)
    for form in formats:
        laid = copy.deepcopy(net).to(memory_format=form)
        x = data[0].contiguous(memory_format=form)
        for size in sorted({min(size, samples) for size in (32, 128, 512)}):
            other = Problem.supervised(laid, "crossentropy", (x, data[1]), batch_size=size)
            classic = CurvatureOperator(other)
            works[f"gradient {form} {size}"] = lambda p=other: gradient(p)  # type: ignore[misc]
            works[f"double {form} {size}"] = lambda c=classic: c @ block[:, 0]  # type: ignore[misc]
    bare = convolutions(net, data[0], prepared.plan.batch_size)
    if bare is not None:
        works["bare"] = bare
    taken = minimum(works, 2 if quick else 6, clock)
    unit = min(t for k, t in taken.items() if k.startswith("gradient"))
    double = min(t for k, t in taken.items() if k.startswith("double"))
    linear = taken["linear"]
    blocks = ", ".join(f"{taken[f'block {b}'] / b / unit:.2f}" for b in (2, 4, 8))
    floor = f"{taken['bare'] / unit:.2f}" if "bare" in taken else "-"
    chosen = f"{prepared.plan.label}{', by vmap' if prepared.plan.vectorized else ''}"
    return (
        f"| {name} | {samples} | {threads} | {1e3 * unit:.1f} ms | {double / unit:.2f} | **{linear / unit:.2f}** | "
        f"**{double / linear:.2f}** | {floor} | {blocks} | {taken['newton'] / unit:.2f} | {chosen} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few samples and rounds, as a smoke test")
    parser.add_argument("--threads", default="1,2", help="numbers of threads, separated by commas")
    parser.add_argument("--nets", default="resnet20,resnet20-w8,mlp", help="names in the zoo, separated by commas")
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds: for one thread on a busy machine")
    options = parser.parse_args()
    keep_freed_memory()
    clock = time.thread_time if options.cpu_time else time.perf_counter
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
          f"{datetime.date.today().isoformat()}{', smoke test' if options.quick else ''}\n")  # fmt: skip
    print("Costs in gradients; blocks per vector.\n")
    print("| net | samples | threads | gradient | double backward | ours | times cheaper | bare | blocks of 2, 4, 8 | "
          "Gauss-Newton | chosen |\n|---|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for name in options.nets.split(","):
        for threads in map(int, options.threads.split(",")):
            print(row(name, threads, options.quick, clock), flush=True)


if __name__ == "__main__":
    main()
