"""An estimate as text: what a point takes, time and node-hours by number of ranks, and the job that follows from it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from lossmap.parallel.cost_model import Estimate
from lossmap.parallel.slurm import time_text
from lossmap.report.price import size_text, span_text


def estimate_text(estimate: Estimate, result: Path, words: Sequence[str], goal: float, unit: str = "point") -> str:
    """The estimate for a person.

    result  the file that the command would write
    words   the command and its flags
    goal    seconds in which it should be complete
    unit    point of a survey, or task of a spectrum
    """
    ranks = estimate.ranks_for(goal)
    origin = f"of which {estimate.looked_at} were measured"
    if estimate.looked_at > estimate.points:  # of few points some are measured several times
        origin = f"estimated from {estimate.looked_at} measurements"
    if unit == "task":
        origin = "all rehearsed over few samples"
    lines = [f"{result}: {estimate.points:,} {unit}s, {origin}", _seconds_line(estimate, unit)]
    if not math.isnan(estimate.products):
        lines.append(f"products        {estimate.products:.3g} a {unit}")
    if estimate.again:
        lines.append(f"audit           {estimate.again:,} points are solved again")
    memory = f"memory          {size_text(estimate.memory)} a rank"
    if estimate.gpu_memory:
        memory += f", {size_text(estimate.gpu_memory)} on its GPU"
    lines += [memory, f"file            {size_text(estimate.file_size)}"]
    total = f"{f'all {unit}s':16}{span_text(estimate.rank_seconds)} on one rank"
    lines.append(f"{total}; {estimate.per_node} ranks fit on a node")
    lines += _table(estimate, ranks)
    nodes, each = math.ceil(ranks / estimate.per_node), min(ranks, estimate.per_node)
    flags = f"--nodes {nodes} --ranks-per-node {each} --time {time_text(estimate.limit(ranks))}"
    lines.append(f"to run it:  lossmap submit {flags} -- {shlex.join(words)}")
    return "\n".join(lines)


def _seconds_line(estimate: Estimate, unit: str) -> str:
    line = f"{f'a {unit}':16}{estimate.seconds:.3g} s ({estimate.least:.3g} to {estimate.most:.3g})"
    if estimate.first > 1.1 * estimate.seconds:
        line += f", without a near neighbour {estimate.first:.3g} s"
    if estimate.setup > estimate.seconds:
        line += f"; a rank's set-up {estimate.setup:.2g} s"
    if estimate.beside > estimate.seconds:
        line += f"; beside the points {span_text(estimate.beside)}, on one rank"
    return line


def _table(estimate: Estimate, fitting: int) -> list[str]:
    """Time and node-hours by number of ranks; the number that fits the goal is marked."""
    powers = (4**k for k in range(1, 6) if 4**k < 4 * fitting)
    lines = ["   ranks   nodes        time   node-hours"]
    for n in sorted({1, 2, estimate.per_node, fitting, *powers}):
        nodes = math.ceil(n / estimate.per_node)
        mark = "   fits" if n == fitting else ""
        lines.append(f"{n:8,}{nodes:8,}{span_text(estimate.wall(n)):>12}{estimate.node_hours(n):13.3g}{mark}")
    return lines
