"""Seconds per point of a loss surface, against the classic loop, on the same net and data in one run.

    python benchmarks/surface_point.py [--threads 2] [--points 5] [--quick]

Classic, as the original tool has it: the weights are set from lists of tensors; a DataLoader with two workers starts
at every point and yields batches of 128; `.item()` after each batch. Ours: data in memory, the forward plan that the
probe chooses. The two alternate in one process, a classic point, then five of ours; the ratio is that of the medians.
The share of the machine is the speed of the forward pass's multiplications, relative to a large float32 matrix product.
"""

import argparse
import statistics
import time

import torch
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from lossmap import zoo
from lossmap.data import datasets
from lossmap.data.problem import Problem
from lossmap.geometry.directions import random_plane
from lossmap.landscape.loss import losses, probe_forward_plan

CASES = (("mlp", "digits", None), ("resnet20-w8", "digits", None), ("resnet20", "digits32", 1024))


def classic(net, plane, tensors, point, workers=2):
    """One point as the original tool computes it: mean loss and accuracy."""
    parameters = list(net.parameters())
    start, (x, y) = list(plane.origin.values()), [list(a.values()) for a in plane.axes]
    for p, w, dx, dy in zip(parameters, start, x, y, strict=True):
        p.data = w + (dx * point[0] + dy * point[1])
    loader = DataLoader(TensorDataset(*tensors), batch_size=128, shuffle=False, num_workers=workers)
    criterion, loss, correct, total = torch.nn.CrossEntropyLoss(), 0.0, 0, 0
    net.eval()
    with torch.no_grad():
        for inputs, targets in loader:
            size = inputs.size(0)
            outputs = net(inputs)
            loss += criterion(outputs, targets).item() * size
            correct += outputs.argmax(1).eq(targets).sum().item()
            total += size
    return loss / total, 100.0 * correct / total


def peak(threads):
    """GFLOP/s of a large float32 matrix product with this number of threads."""
    torch.set_num_threads(threads)
    a = torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best / 1e9


def case(name, dataset, samples, points, threads):
    torch.set_num_threads(threads)
    net = zoo.build(name, seed=0).eval()
    data = datasets.load(dataset, "train", samples=samples)
    problem = Problem.supervised(net, "crossentropy", data)
    plane = random_plane(net)
    plan = probe_forward_plan(problem, plane)
    ours = losses(problem, plane, plan=plan)
    tensors = data.tensors
    times = {"classic": [], "ours": []}
    ours((0.0, 0.0))
    for i in range(points):
        point = (0.1 * i - 0.2, 0.3)
        start = time.perf_counter()
        theirs = classic(net, plane, tensors, point)
        middle = time.perf_counter()
        for p, w in zip(net.parameters(), plane.origin.values(), strict=True):
            p.data = w.clone()
        again = time.perf_counter()
        for j in range(5):  # a survey's points follow each other
            reading = ours((point[0], point[1] + 0.01 * (4 - j)))
        times["ours"].append((time.perf_counter() - again) / 5)
        times["classic"].append(middle - start)
        if abs(reading["train_loss"] - theirs[0]) > 1e-4 * abs(theirs[0]):
            raise SystemExit(f"{name}: the losses differ: {reading['train_loss']} and {theirs[0]}")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(tensors[0][:8])
    work = counter.get_total_flops() / 8 * data.samples / 1e9
    median = {k: statistics.median(v) for k, v in times.items()}
    return plan, median, work


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--threads", type=int, default=2)
    flags.add_argument("--points", type=int, default=7)
    flags.add_argument("--quick", action="store_true", help="few samples and points, as a smoke test")
    options = flags.parse_args()
    speed = peak(options.threads)
    print(f"{options.threads} threads, matrix product {speed:.0f} GFLOP/s, torch {torch.__version__}")
    print("| net | samples | classic, s/point | ours, s/point | ratio | share of the machine | way |")
    print("|---|---|---|---|---|---|---|")
    for name, dataset, samples in CASES:
        count = 64 if options.quick else samples
        plan, median, work = case(name, dataset, count, 2 if options.quick else options.points, options.threads)
        ratio, share = median["classic"] / median["ours"], work / median["ours"] / speed
        forms = [f"batch {plan.batch_size}"] + ["channels last"] * plan.channels_last + ["folded"] * plan.fold
        times = f"{median['classic']:.4f} | {median['ours']:.5f} | {ratio:.1f} | {share:.0%}"
        print(f"| {name} | {count or 1437} | {times} | {', '.join(forms)} |", flush=True)


if __name__ == "__main__":
    main()
