"""The price of what makes numbers trustworthy: checks of loss and product, forms that do not cancel, rounding measured.

    python benchmarks/checks.py [--quick] [--repeats 3] [--only mlp]

Each job is a command, run in this process with all of it and without any of it (no check of the loss; products compared
with double backward alone, as before there were checks; PyTorch's own functions; rounding assumed), in turns. Reported
are the smallest processor times, so that other programs count little, and what the parts took of the full run. Imports
are paid before, by a run that is not counted. Networks are those of the zoo at their initial weights, on the digits.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from lossmap.cli import load_problem
from lossmap.cli.__main__ import main as lossmap
from lossmap.curvature import autotune, build, double_backward, product_check
from lossmap.landscape import eigenvalues, loss
from lossmap.spectra import blocks, spectrum, tasks

PLANE = "--x=-1:1:5 --y=-1:1:3"
JOBS = {
    "resnet20-w8, eigenmap of 15 points": f"eigenmap --model resnet20-w8 {PLANE} --samples 256",
    "cnn, eigenmap of 15 points": f"eigenmap --model cnn {PLANE}",
    "mlp, eigenmap of 15 points": f"eigenmap --model mlp {PLANE}",
    "cnn, spectrum": "spectrum --model cnn",
    "mlp, spectrum": "spectrum --model mlp",
    "mlp, surface of 15 points": f"surface --model mlp {PLANE}",
}
CHECKERS = {  # where each function is looked up by those who call it
    "loss check": [(m, "check_loss") for m in (load_problem, autotune, build, loss, spectrum, blocks, tasks)],
    "product check": [(m, "check_product") for m in (autotune, build)],
    "rounding": [(autotune, "_with_rounding"), (eigenvalues, "remeasured"), (build, "RoundingProbe")],
}


class Clock:
    """Processor seconds inside of functions, by part; of nested calls the outermost counts."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.inside = False

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added to a part's."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return function(*args, **kwargs)
            self.inside, start = True, time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.process_time() - start
                self.inside = False

        return call


@contextmanager
def timed_parts(clock: Clock) -> Iterator[None]:
    """Inside, the time of every part is added up."""
    with ExitStack() as stack:
        for part, places in CHECKERS.items():
            for module, name in places:
                if not isinstance(getattr(module, name), type):
                    stack.enter_context(mock.patch.object(module, name, clock.timed(part, getattr(module, name))))
        yield


@contextmanager
def nothing_checked() -> Iterator[None]:
    """Inside, numbers are as they come."""

    def unchecked(*_: Any, **__: Any) -> product_check.ProductCheck:
        return product_check.ProductCheck(unchecked="switched off")

    replacements = {
        "check_loss": lambda problem, **_: replace(problem, checked=True),
        "check_product": unchecked,
        "_with_rounding": lambda factory: factory,
        "remeasured": lambda matrix, pairs, suspected: pairs,
        "RoundingProbe": lambda *_: None,
    }
    with ExitStack() as stack:
        for places in CHECKERS.values():
            for module, name in places:
                stack.enter_context(mock.patch.object(module, name, replacements[name]))
        for module in (double_backward, loss):
            stack.enter_context(mock.patch.object(module, "stable_forms", lambda *_: nullcontext()))
        yield


def seconds(arguments: str) -> float:
    """Processor seconds of a command, in a folder of its own."""
    product_check._remembered.by_model.clear()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        start = time.process_time()
        code = lossmap([*arguments.split(), "--surf-file", str(Path(folder, "result.h5")), "--threads", "1"])
        taken = time.process_time() - start
    if code:
        raise SystemExit(f"exit code {code}: {arguments}")
    return taken


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--quick", action="store_true", help="one repetition of the small nets")
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--only", nargs="*", default=[], help="parts of the names of jobs")
    options = flags.parse_args()
    torch.set_num_threads(1)
    jobs = {name: job for name, job in JOBS.items() if not options.only or any(o in name for o in options.only)}
    if options.quick:
        jobs = {name: job for name, job in jobs.items() if "resnet" not in name}
    print("| job | unchecked, s | checked, s | more | loss check, s | product check, s | rounding, s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    seconds(JOBS["mlp, spectrum"] + " --samples 64")
    for name, job in jobs.items():
        plain, full, parts = [], [], []
        for _ in range(1 if options.quick else options.repeats):
            with nothing_checked():
                plain.append(seconds(job))
            clock = Clock()
            with timed_parts(clock):
                full.append(seconds(job))
            parts.append(clock.seconds)
        base, whole = min(plain), min(full)
        shares = " | ".join(f"{min(p[part] for p in parts):.2f}" for part in CHECKERS)
        print(
            f"| {name} | {base:.2f} | {whole:.2f} | {whole - base:+.2f} s, {whole / base - 1:+.1%} | {shares} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
