"""The price of what makes numbers trustworthy, and of the probe that chooses how products are computed.

    python benchmarks/checks.py [--quick] [--repeats 3] [--only mlp]

Each job is a command, run in this process as it is, and bare: no check of loss or products, PyTorch's own functions,
rounding assumed, and the plan of products taken up as a resumed run takes it, without a probe; in turns. Reported are
the smallest processor times, so that other programs count little, their difference, and what the parts took of a full
run; that of the probe holds the trace of the chosen plan, which the bare run makes too. Imports are paid before, by a
run that is not counted. Networks are those of the zoo and of `small_problems`, at their initial weights or trained
until they are saturated.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
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

from lossmap import zoo
from lossmap.cli import load_problem
from lossmap.cli.__main__ import main as lossmap
from lossmap.curvature import autotune, build, double_backward, product_check
from lossmap.curvature.hvp_plan import HvpPlan
from lossmap.data.datasets import load
from lossmap.landscape import eigenvalues, loss, loss_map
from lossmap.spectra import blocks, spectrum, tasks

PLANE = "--x=-1:1:5 --y=-1:1:3"
JOBS = {  # a default eigenmap is of 51 points over all 1,437 digits
    "mlp, default eigenmap": "eigenmap --model mlp",
    "cnn, default eigenmap": "eigenmap --model cnn",
    "resnet20-w8, default eigenmap": "eigenmap --model resnet20-w8",
    "resnet20-w8, default eigenmap, 64 digits": "eigenmap --model resnet20-w8 --samples 64",
    "resnet20-w8, eigenmap of 15 points, 256 digits": f"eigenmap --model resnet20-w8 {PLANE} --samples 256",
    "cnn, eigenmap of 15 points": f"eigenmap --model cnn {PLANE}",
    "mlp, eigenmap of 15 points": f"eigenmap --model mlp {PLANE}",
    "resnet20-w8, both ends at one point, 64 digits": "eigenmap --model resnet20-w8 --samples 64 --x=0:0:1",
    "cnn, spectrum": "spectrum --model cnn",
    "mlp, spectrum": "spectrum --model mlp",
    "mlp, surface of 15 points": f"surface --model mlp {PLANE}",
    "mlp, both ends at one point": "eigenmap --model mlp --x=0:0:1",
    "cnn, both ends at one point": "eigenmap --model cnn --x=0:0:1",
    "transformer, both ends at one point": "eigenmap --problem PROBLEMS:transformer --x=0:0:1",
    "transformer, eigenmap of 15 points": f"eigenmap --problem PROBLEMS:transformer {PLANE}",
    "transformer, surface of 15 points": f"surface --problem PROBLEMS:transformer {PLANE}",
    "lstm, both ends at one point": "eigenmap --problem PROBLEMS:lstm --x=0:0:1",
    "lstm, eigenmap of 15 points": f"eigenmap --problem PROBLEMS:lstm {PLANE}",
    "mlp saturated, default eigenmap": "eigenmap --model mlp --model-file SATURATED",
    "mlp saturated, spectrum": "spectrum --model mlp --model-file SATURATED",
}
PROBLEMS = Path(__file__).with_name("small_problems.py")
STEPS = 3000  # of Adam at 0.01 over all digits, to a loss of some 1e-6
CHECKERS: dict[str, list[tuple[Any, str]]] = {  # where each function is looked up by those who call it
    "loss check": [(m, "check_loss") for m in (load_problem, autotune, build, loss, spectrum, blocks, tasks)],
    "product check": [(autotune, "_verdict"), (build, "check_product")],
    "rounding": [(autotune, "_with_rounding"), (eigenvalues, "remeasured"), (eigenvalues, "rounding_of")],
    "probe": [(autotune.Probe, "best"), (autotune.Probe, "for_few")],
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
def plans_recorded(plans: list[HvpPlan]) -> Iterator[None]:
    """Inside, the plans that probes choose are added to the list."""
    with ExitStack() as stack:
        for name in ("best", "for_few"):
            choose = getattr(autotune.Probe, name)

            def recorded(self: Any, *given: Any, choose: Any = choose) -> Any:
                chosen = choose(self, *given)
                plans.append((chosen[0] if isinstance(chosen, tuple) else chosen).plan)
                return chosen

            stack.enter_context(mock.patch.object(autotune.Probe, name, recorded))
        yield


@contextmanager
def bare(plans: list[HvpPlan]) -> Iterator[None]:
    """Inside, numbers are as they come, by these plans, one after the other."""
    remaining = iter(plans)

    def unchecked(*_: Any, **__: Any) -> product_check.ProductCheck:
        return product_check.ProductCheck()

    def planned(probe: Any, _: set[str]) -> Any:
        return probe.with_plan(next(remaining))

    def planned_for_few(probe: Any, backends: set[str], _: bool = True) -> Any:
        factory = planned(probe, backends)
        return factory, factory.at()

    replacements = {
        "check_loss": lambda problem, **_: replace(problem, checked=True),
        "check_product": unchecked,
        "_verdict": unchecked,
        "_with_rounding": lambda factory, operator: (factory, operator),
        "remeasured": lambda matrix, pairs, suspected: (pairs, False),
        "rounding_of": lambda matrix, pairs: 0.0,
        "best": planned,
        "for_few": planned_for_few,
    }
    with ExitStack() as stack:
        for places in CHECKERS.values():
            for module, name in places:
                stack.enter_context(mock.patch.object(module, name, replacements[name]))
        stack.enter_context(mock.patch.object(build, "RoundingProbe", lambda *_: None))
        for module in (double_backward, loss_map):
            stack.enter_context(mock.patch.object(module, "stable_forms", lambda *_: nullcontext()))
        yield


def seconds(arguments: str) -> float:
    """Processor seconds of a command, in a folder of its own."""
    product_check._remembered.by_model.clear()
    gc.collect()
    gc.freeze()  # as a command of its own does after its imports: collections look at what it makes alone
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
    repeats = options.repeats
    if options.quick:
        jobs, repeats = {name: job for name, job in jobs.items() if "mlp" in name and "saturated" not in name}, 1
    with tempfile.TemporaryDirectory() as folder:
        if any("SATURATED" in job for job in jobs.values()):
            print(f"saturated: trained to a loss of {saturated(Path(folder, 'mlp.pt')):.1e}\n")
        print("| job | bare, s | full, s | more | " + "".join(f"{part}, s | " for part in CHECKERS) + "together, s |")
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        seconds(JOBS["mlp, eigenmap of 15 points"] + " --samples 64")
        for name, job in jobs.items():
            job = job.replace("SATURATED", str(Path(folder, "mlp.pt"))).replace("PROBLEMS", str(PROBLEMS))
            print(row(name, job, repeats), flush=True)


def row(name: str, job: str, repeats: int) -> str:
    """A job's row of the table."""
    plain, full, parts = [], [], []
    for _ in range(repeats):
        clock, plans = Clock(), list[HvpPlan]()
        with timed_parts(clock), plans_recorded(plans):
            full.append(seconds(job))
        parts.append(clock.seconds)
        with bare(plans):
            plain.append(seconds(job))
    base, whole = min(plain), min(full)
    shares = " | ".join(f"{min(p[part] for p in parts):.3f}" for part in CHECKERS)
    together = min(sum(p.values()) for p in parts)
    more = f"{whole - base:+.2f} s, {whole / base - 1:+.1%}"
    return f"| {name} | {base:.2f} | {whole:.2f} | {more} | {shares} | {together:.3f} |"


def saturated(path: Path) -> float:
    """Trains the zoo's mlp on all digits until it is saturated; its loss in nats. The weights go to the file."""
    digits = load("digits", "train")
    x, y = next(iter(digits.rebatched(digits.samples)))
    model = zoo.build("mlp", seed=0)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(model(x), y)
        value.backward()
        optimizer.step()
    torch.save(model.state_dict(), path)
    return float(value)


if __name__ == "__main__":
    main()
