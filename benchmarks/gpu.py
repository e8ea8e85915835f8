"""Losses, products, eigenvalues and a large language model on one GPU, against the usual ways on the same card.

    python benchmarks/gpu.py [--device cuda] [--tiny] [--minutes 8] [--only NAME ...] [--folder F]

surface   points per second over 10,000 images of 3x32x32, ResNet-20 and ResNet-56: classic (a DataLoader every time,
          batches of 128, `.item()` after each) against ours, and the share of the card's float32 matrix product
products  a product on ResNet-20, 2,048 images: a gradient, double backward by hand, ours, and a block of four
point     both ends at a point of ResNet-20's map, 2,048 images, to 1e-2: classic (two `eigsh`, double backward in
          batches of 128) against ours, which is warm from its neighbour
map       both ends at 3x3 points of ResNet-20, 2,048 images, to 1e-2: seconds and products a point
language  both ends of Llamas of 134 million and of a billion weights (random), 4 x 512 tokens, with bars

Each row also names the most memory that it took on the card. Rows are printed as they come; after --minutes the part
that runs is broken off, and said so, as are those left out. With --folder the rows of each finished part are kept there
and printed again by the same command on the same card by the same code, not measured; a map goes on at its next point.
--tiny runs everything in seconds, on a CPU too.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import lossmap
from lossmap import zoo
from lossmap.curvature.autotune import prepare
from lossmap.curvature.operators import CurvatureOperator
from lossmap.data.problem import Problem
from lossmap.geometry.directions import random_plane
from lossmap.geometry.parameter_vector import selected
from lossmap.landscape.eigenvalues import EigenvalueMap
from lossmap.landscape.loss import losses


@dataclass(frozen=True)
class Bench:
    """Where it runs, and whether small.

    device  of everything
    tiny    a smoke test
    folder  where the rows of finished parts are kept, if anywhere
    """

    device: torch.device
    tiny: bool
    folder: Path | None = None

    @property
    def depth(self) -> int:
        """Of the residual net whose curvature is measured."""
        return 8 if self.tiny else 20

    @property
    def tol(self) -> float:
        """Of eigenvalues, relative to the largest."""
        return 0.3 if self.tiny else 1e-2

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], rounds: int = 5) -> float:
        """The median of several runs after one that is not counted."""
        work()
        taken = []
        for _ in range(1 if self.tiny else rounds):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def fresh(self) -> None:
        """Memory is counted from here."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def most(self) -> str:
        """The most memory since."""
        if self.device.type != "cuda":
            return "-"
        return f"{torch.cuda.max_memory_allocated(self.device) / 2**30:.2f} GiB"


def images(samples: int, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(samples, 3, 32, 32).to(device), torch.randint(10, (samples,)).to(device)


def resnet(depth: int, device: torch.device) -> nn.Module:
    net = zoo.build("resnet20", seed=0, depth=depth)
    with torch.no_grad():
        net.train()(images(256, "cpu")[0])  # running statistics
    return net.eval().to(device)


def peak(bench: Bench) -> float:
    """TFLOP/s of a large float32 matrix product without TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    n = 512 if bench.tiny else 8192
    a = torch.randn(n, n, device=bench.device)
    return 2 * n**3 / bench.seconds(lambda: a @ a) / 1e12


def surface(bench: Bench, speed: float) -> None:
    samples = 16 if bench.tiny else 10_000
    print("| net | samples | classic, points/s | ours, points/s | ratio | share of the card | plan | memory |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for depth in (20,) if bench.tiny else (20, 56):
        net, (x, y) = resnet(depth, bench.device), images(samples, "cpu")
        plane = random_plane(net)

        def classic(net: nn.Module = net, x: torch.Tensor = x, y: torch.Tensor = y) -> float:
            loss, criterion = 0.0, nn.CrossEntropyLoss()
            with torch.no_grad():
                for inputs, targets in DataLoader(TensorDataset(x, y), batch_size=128, num_workers=2):
                    inputs, targets = inputs.to(bench.device), targets.to(bench.device)
                    loss += criterion(net(inputs), targets).item() * len(targets)
            return loss / len(y)

        bench.fresh()
        ours = losses(Problem.supervised(net, "crossentropy", (x.to(bench.device), y.to(bench.device))), plane)
        if abs(ours((0.0, 0.0))["train_loss"] - classic()) > 2e-3 * classic():
            raise SystemExit("the losses differ")
        mine = bench.seconds(lambda ours=ours: [ours((0.1, 0.01 * i)) for i in range(5)]) / 5
        memory = bench.most()
        theirs = bench.seconds(classic, 3)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(x[:8].to(bench.device))
        share = counter.get_total_flops() / 8 * samples / mine / 1e12 / speed
        p = ours.plan
        forms = [f"batch {p.batch_size}"] + ["channels last"] * p.channels_last + ["folded"] * p.fold
        rates = f"{1 / theirs:.2f} | {1 / mine:.2f} | {theirs / mine:.1f} | {share:.0%}"
        print(f"| ResNet-{depth} | {samples} | {rates} | {', '.join(forms)} | {memory} |", flush=True)


def by_hand(net: nn.Module, x: torch.Tensor, y: torch.Tensor, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A product by plain double backward in batches, as one writes it, with PyTorch's own settings."""
    theta = list(selected(net).values())

    def product(v: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(v)
        for a, b in zip(x.split(size), y.split(size), strict=True):
            loss = nn.functional.cross_entropy(net(a), b, reduction="sum")
            gradient = torch.autograd.grad(loss, theta, create_graph=True)
            dot = sum((g * part.view_as(g)).sum() for g, part in zip(gradient, v.split(sizes), strict=True))
            total += torch.cat([h.reshape(-1) for h in torch.autograd.grad(dot, theta)])
        return total / len(x)

    sizes = [p.numel() for p in theta]
    return product


def products(bench: Bench, _: float) -> None:
    samples = 8 if bench.tiny else 2048
    net, (x, y) = resnet(bench.depth, bench.device), images(samples, bench.device)
    theta = list(selected(net).values())
    v = torch.randn(sum(p.numel() for p in theta), generator=torch.Generator().manual_seed(0)).to(bench.device)
    print("| product | ms | in gradients | memory |\n|---|---|---|---|", flush=True)

    def row(name: str, work: Callable[[], object], unit: float, vectors: int = 1) -> float:
        bench.fresh()
        taken = bench.seconds(work) / vectors
        print(f"| {name} | {1e3 * taken:.2f} | {taken / (unit or taken):.2f} | {bench.most()} |", flush=True)
        return taken

    def gradient() -> None:
        torch.autograd.grad(nn.functional.cross_entropy(net(x), y), theta)

    unit = row("gradient, one batch", gradient, 0.0)
    for size in (8,) if bench.tiny else (128, 512, 2048):
        product = by_hand(net, x, y, size)
        row(f"double backward, batches of {size}", lambda product=product: product(v), unit)
    double = CurvatureOperator(Problem.supervised(net, "crossentropy", (x, y), batch_size=samples))
    row("double backward of ours, deterministic", lambda: double @ v, unit)
    factory = prepare(Problem.supervised(net, "crossentropy", (x, y)))
    operator = factory.at()
    row(f"ours: {factory.plan.label}", lambda: operator @ v, unit)
    block = torch.randn(len(v), 4, device=bench.device)
    row("the same, a block of four, per vector", lambda: operator @ block, unit, 4)
    error = float((operator @ v - by_hand(net, x, y, samples)(v)).norm() / (operator @ v).norm())
    print(f"\ndifference from double backward, relative: {error:.1e}", flush=True)


def point(bench: Bench, _: float) -> None:
    samples = 8 if bench.tiny else 2048
    net, data = resnet(bench.depth, bench.device), images(samples, bench.device)
    n = sum(p.numel() for p in selected(net).values())
    double, count = by_hand(net, *data, size=128), [0]

    def times(v: np.ndarray) -> np.ndarray:
        count[0] += 1
        return double(torch.from_numpy(v.astype(np.float32).ravel()).to(bench.device)).cpu().numpy()

    def classic() -> tuple[float, float]:
        top = eigsh(LinearOperator((n, n), matvec=times, dtype=np.float32), k=1, tol=bench.tol)[0][0]
        other = LinearOperator((n, n), matvec=lambda v: times(v) - top * v.ravel(), dtype=np.float32)
        return float(top), float(eigsh(other, k=1, tol=bench.tol)[0][0] + top)

    factory = prepare(Problem.supervised(net, "crossentropy", data))
    measure = EigenvalueMap({"train": factory}, random_plane(net, axes=1), "ends", tol=bench.tol)
    measure((0.0,))
    bench.wait()
    start = time.perf_counter()
    reading = measure((0.02,))
    bench.wait()
    ours = time.perf_counter() - start
    start = time.perf_counter()
    ends = classic()
    theirs = time.perf_counter() - start
    print(f"| point of ResNet-{bench.depth} | seconds | products | ends |\n|---|---|---|---|")
    print(f"| classic, at the centre | {theirs:.2f} | {count[0]} | {min(ends):.5g}, {max(ends):.5g} |")
    bars = f"+- {reading['min_eig_error']:.1g}, {reading['max_eig']:.5g} +- {reading['max_eig_error']:.1g}"
    print(f"| ours, its neighbour | {ours:.2f} | {reading['products']:.0f} | {reading['min_eig']:.5g} {bars} |")
    print(f"\n{theirs / ours:.1f} times", flush=True)


def language(bench: Bench, _: float) -> None:
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        print("left out: transformers is not installed")
        return
    print(
        "| weights | tokens | seconds | products | largest | smallest | memory |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    for layers, width, inner, heads in [(2, 64, 128, 4)] if bench.tiny else [(12, 768, 2048, 12), (22, 2048, 5632, 32)]:
        vocabulary, length = (100, 16) if bench.tiny else (32000, 512)
        config = LlamaConfig(
            vocab_size=vocabulary, max_position_embeddings=length, num_hidden_layers=layers, hidden_size=width,
            intermediate_size=inner, num_attention_heads=heads,
        )  # fmt: skip
        torch.manual_seed(0)
        with torch.device(bench.device):
            model = LlamaForCausalLM(config).eval()
        n = sum(p.numel() for p in model.parameters())
        ids = torch.randint(vocabulary, (4, length), device=bench.device)
        bench.fresh()
        start = time.perf_counter()
        problem = lossmap.huggingface(model, [{"input_ids": i, "labels": i} for i in ids.split(1)])
        s = lossmap.spectrum(problem, top=1, bottom=1, density_error=None, trace_products=0, tol=1e-2)
        bench.wait()
        taken = time.perf_counter() - start
        copies = ""
        if bench.device.type == "cuda":
            copies = f" ({torch.cuda.max_memory_allocated() / (4 * n):.1f} copies)"
        values = " | ".join(f"{v:.5g} +- {e:.1g}" for v, e in zip(s.values, s.errors, strict=True))
        print(f"| {n:,} | {ids.numel()} | {taken:.1f} | {s.products} | {values} | {bench.most()}{copies} |", flush=True)
        del model, problem, s


def eigenmap(bench: Bench, _: float) -> None:
    samples = 8 if bench.tiny else 2048
    net = resnet(bench.depth, bench.device)
    factory = prepare(Problem.supervised(net, "crossentropy", images(samples, bench.device)))
    measure = EigenvalueMap({"train": factory}, random_plane(net), "ends", tol=bench.tol)
    grid = lossmap.Grid.square(-1, 1, 2 if bench.tiny else 3)
    path = None if bench.folder is None else bench.folder / f"map{'-tiny' if bench.tiny else ''}.h5"
    bench.fresh()
    start = time.perf_counter()
    found = lossmap.survey(measure, grid, path=path, progress=False)
    bench.wait()
    taken = time.perf_counter() - start
    print(f"| points of ResNet-{bench.depth} | seconds, now | products | largest | smallest | memory |")
    print("|---|---|---|---|---|---|")
    ends = f"{np.nanmax(found['max_eig']):.5g} | {np.nanmin(found['min_eig']):.5g}"
    print(
        f"| {found['max_eig'].size} | {taken:.2f} | {found['products'].sum():.0f} | {ends} | {bench.most()} |",
        flush=True,
    )


PARTS = {"surface": surface, "products": products, "point": point, "map": eigenmap, "language": language}


class Copied(io.TextIOBase):
    """What is printed, and a copy of it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.text = stream, ""

    def write(self, text: str) -> int:
        self.text += text
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


def digest_of_code() -> str:
    """Which code measures: rows of another are not those of this one."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted([*root.glob("lossmap/**/*.py"), *root.glob("benchmarks/*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def run_part(part: str, bench: Bench, speed: float, head: str) -> None:
    """Measure a part and keep its rows, or print those of the same card and code, where they are kept."""
    kept = None if bench.folder is None else bench.folder / f"{part}{'-tiny' if bench.tiny else ''}.md"
    if kept is not None and kept.exists() and kept.read_text().partition("\n")[0] == head:
        day = date.fromtimestamp(kept.stat().st_mtime).isoformat()
        print(f"{kept.read_text().partition(chr(10))[2]}\n(kept from a run of {day})", flush=True)
        return
    copied = Copied(sys.stdout)
    start = time.perf_counter()
    with contextlib.redirect_stdout(copied):
        PARTS[part](bench, speed)
        print(f"\n({time.perf_counter() - start:.0f} s)", flush=True)
    if kept is not None:
        new = kept.with_suffix(".new")
        new.write_text(f"{head}\n{copied.text}")
        new.replace(kept)


def within(seconds: float, work: Callable[[], None]) -> bool:
    """Whether the work ended within so many seconds; else it is broken off as by Ctrl-C, which is no point's error."""
    is_over = False

    def interrupt(*_: object) -> None:
        nonlocal is_over
        is_over = True
        signal.default_int_handler(signal.SIGINT, None)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        work()
    except KeyboardInterrupt:
        if not is_over:
            raise
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return True


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags.add_argument("--tiny", "--quick", action="store_true", help="everything in seconds, as a smoke test")
    flags.add_argument("--minutes", type=float, default=8.0)
    flags.add_argument("--only", nargs="*", choices=tuple(PARTS), default=tuple(PARTS))
    flags.add_argument("--folder", type=Path, help="where the rows of finished parts are kept")
    options = flags.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(torch.device(options.device), options.tiny, options.folder)
    if bench.device.type == "cpu" and not options.tiny:
        sys.exit("no CUDA device is here; --tiny runs everything small on the CPU")
    began = time.perf_counter()
    name = platform.processor() if bench.device.type == "cpu" else torch.cuda.get_device_name(bench.device)
    speed, head = peak(bench), f"{name}, torch {torch.__version__}, code {digest_of_code()}"
    print(f"{name}, float32 matrix product {speed:.1f} TFLOP/s, torch {torch.__version__}, {date.today().isoformat()}")
    for part in options.only:
        left = 60 * options.minutes - (time.perf_counter() - began)
        if left <= 0:
            print(f"\n## {part}: left out, {options.minutes:g} minutes are over")
            continue
        print(f"\n## {part}\n", flush=True)
        if not within(left, partial(run_part, part, bench, speed, head)):
            print(f"\n(broken off: {options.minutes:g} minutes are over)", flush=True)


if __name__ == "__main__":
    main()
