"""Accuracy of an estimate against the measured cost of the survey: five runs each, of losses and of eigenvalues.

    python benchmarks/estimate.py [--quick] [--runs 5]

Each run consists of the commands `lossmap estimate`, then `lossmap surface` (the demo's survey: ResNet-20 of width 8 on
the digits, 25 x 25 points, trained) or `lossmap eigenmap` (256 samples, 9 x 9 points), one rank with one thread. It
prints the estimated seconds of all points relative to the measured sum over the points, including the audit. Goal:
within 20 %.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

AIM = 0.20


def lossmap(folder, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lossmap.cli", *words],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"lossmap {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def compared(folder, result, work):
    """(quantity, estimated, measured) of one run."""
    lossmap(folder, "estimate", "--", *work, "--surf-file", result)
    lossmap(folder, *work, "--surf-file", result)
    status = json.loads(lossmap(folder, "status", "--json", result))
    name = next(iter(status["estimate"]))
    estimated, took = status["estimate"][name], status["measures"][name]["took"]
    whole = estimated["points"] * estimated["seconds"]
    yield "seconds", whole, took["rank_seconds"]
    if "products" in estimated:
        yield "products", estimated["products"], took["products"]
    if took.get("audit"):
        audit = estimated["again"] * estimated["again_cost"] * estimated["first"]
        yield "with audit", whole + audit, took["rank_seconds"] + took["audit"]
    yield "file", estimated["file_size"], took["file_size"]
    yield "memory", estimated["memory"], took["memory"]


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--quick", action="store_true", help="one run, of few points")
    flags.add_argument("--runs", type=int, default=5)
    options = flags.parse_args()
    runs, loss_count, eigen_count = (1, 5, 3) if options.quick else (options.runs, 25, 9)
    with tempfile.TemporaryDirectory() as folder:
        subject = ["--model", "resnet20-w8"]
        lossmap(folder, "train", *subject, "--epochs", "1" if options.quick else "12", "--final", "net.pt")
        subject += ["--model-file", "net.pt"]
        sides = {n: [f"--x=-1:1:{n}", f"--y=-1:1:{n}"] for n in (loss_count, eigen_count)}
        works = {
            "demo survey": ["surface", *subject, *sides[loss_count]],
            "eigenmap": ["eigenmap", *subject, *sides[eigen_count], "--samples", "32" if options.quick else "256"],
        }
        for title, work in works.items():
            print(f"{title}: estimated / taken, {runs} runs")
            rows: dict[str, list[float]] = {}
            for run in range(runs):
                for what, estimated, taken in compared(folder, f"{title.split()[0]}-{run}.h5", work):
                    rows.setdefault(what, []).append(estimated / taken)
            for what, ratios in rows.items():
                worst = max(abs(r - 1) for r in ratios)
                listed = "  ".join(f"{r:.3f}" for r in ratios)
                met = "met" if worst <= AIM else "missed"
                aim = f"   aim of {AIM:.0%} {met}" if what in ("seconds", "with audit") else ""
                print(f"  {what:11} {listed}   median {statistics.median(ratios):.3f}, worst {worst:.1%} off{aim}")


if __name__ == "__main__":
    main()
