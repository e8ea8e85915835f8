"""Cost of dispatching: rate, efficiency, CPU of waiting ranks, a grid of a million points.

    python benchmarks/dispatch.py [--quick] [--only rate efficiency workers waiting million] [--ranks 2 4 8 16 32 64]

Points only sleep (or do nothing), so that more ranks than cores measure the dispatching.

rate        points per second that rank 0 dispatches and records, and its CPU time per point: see docs/scaling.md
efficiency  sleeping / (computing ranks * time), costs varying tenfold, against a static split with an Allreduce after
            each point (as in the original tool), each with its upper bound: the same schedule of these points
            without overhead
workers     rank 0's CPU time per point with up to 10,000 workers, which answer at once and without MPI
waiting     CPU of idle ranks
million     memory, sizes and rate along a grid of 1000 x 1000 points in one process
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import numpy as np

from lossmap.geometry.grid import Field, Grid
from lossmap.io.read import SurfaceFile
from lossmap.landscape.run_survey import survey
from lossmap.landscape.survey_recorder import Recorder
from lossmap.parallel.dispatcher import Dispatcher
from lossmap.parallel.messages import DONE, HELLO, POINTS
from lossmap.parallel.shutdown import Stop
from lossmap.parallel.work_queue import WorkQueue
from lossmap.parallel.world import World

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_btl": "^ofi",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}


def costs(count: int, mean: float) -> np.ndarray:
    """Seconds of each point: log-uniform between 1 and 10, scaled to this mean."""
    drawn = 10 ** np.random.default_rng(0).uniform(size=count)
    return drawn * mean / drawn.mean()


class Sleep:
    """A measure that only sleeps."""

    name = "loss"
    fields = (Field("train_loss", "nats", "mean loss"), Field("train_acc", "percent", "accuracy"))

    def __init__(self, seconds: np.ndarray | float, count=lambda number: None) -> None:
        self.seconds, self.count, self.number, self.settings = seconds, count, 0, {"kind": "sleep"}

    def __call__(self, point):
        self.number += 1
        self.count(self.number)
        seconds = self.seconds
        if not isinstance(seconds, float):
            seconds = float(seconds[int(point[0])])
        if seconds:
            time.sleep(seconds)
        return {"train_loss": point[0], "train_acc": point[0]}


def cpu() -> float:
    """CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def line(count: int) -> Grid:
    """A line of points whose coordinate is their number."""
    return Grid(np.arange(float(count)))


def rate(world: World, count: int, folder: str) -> None:
    """Role: points without cost, rank 0 only dispatches."""
    grid, measure, store = line(count), Sleep(0.0), None
    if world.rank == 0:
        store = SurfaceFile.open(Path(folder) / "s.h5", grid, measures={"loss": (measure.fields, measure.settings)})
    began, used = time.perf_counter(), cpu()
    survey(measure, grid, world=world, store=store, rank_0="deals")
    if store is not None:
        wall, busy = time.perf_counter() - began, cpu() - used
        print(json.dumps({"points_per_s": count / wall, "cpu_us_per_point": 1e6 * busy / count}))
        store.close()


def efficiency(world: World, count: int, mean: float) -> None:
    """Role: the dispatched survey."""
    seconds = costs(count * world.size, mean)
    world.sum(0)
    began = time.perf_counter()
    survey(Sleep(seconds), line(seconds.size), world=world)
    if world.rank == 0:
        wall, computing = time.perf_counter() - began, len(world.team_ranks())
        values = {"computing": computing, "efficiency": seconds.sum() / (computing * wall)}
        values |= {"of_all": seconds.sum() / (world.size * wall), "best": greedy_efficiency(seconds, computing)}
        print(json.dumps(values))


def greedy_efficiency(seconds: np.ndarray, ranks: int) -> float:
    """The efficiency of dispatching without overhead: each point to the rank that is free first."""
    free = [0.0] * ranks
    for cost in seconds:
        heapq.heapreplace(free, free[0] + cost)
    return float(seconds.sum() / (ranks * max(free)))


def lockstep(world: World, count: int, mean: float) -> None:
    """Role: a static split into equal parts, and an Allreduce of the whole array after each point."""
    seconds = costs(count * world.size, mean)
    mine = np.split(seconds, world.size)
    array = np.zeros(seconds.size)
    world.sum(0)
    began = time.perf_counter()
    for step in range(count):
        time.sleep(mine[world.rank][step])
        world.channel.comm.Allreduce(array.copy(), array)
    if world.rank == 0:
        wall = time.perf_counter() - began
        best = seconds.sum() / (world.size * np.array(mine).max(axis=0).sum())
        print(json.dumps({"efficiency": seconds.sum() / (world.size * wall), "best": best}))


def waiting(world: World, seconds: float) -> None:
    """Role: one point that sleeps long; all but one rank wait."""
    world.sum(0)
    began, used = time.perf_counter(), cpu()
    measure = Sleep(seconds)
    survey(measure, line(1), world=world, rank_0="deals")
    busy = (cpu() - used) / (time.perf_counter() - began)
    every = world.gather((measure.number, busy))
    if world.rank == 0:
        idle = [share for rank, (number, share) in enumerate(every) if rank and not number]
        print(json.dumps({"waiting": float(np.mean(idle)), "worst": max(idle), "rank_0": every[0][1]}))


def million(side: int, folder: str) -> None:
    """Role: a large grid in one process, sampled ten times on the way."""
    grid, path = Grid.square(count=side), Path(folder) / "s.h5"
    samples: list[tuple[int, float, int, int]] = []

    def sample(number: int) -> None:
        if number % (side * side // 10) == 0:
            memory = int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])
            journal = os.path.getsize(f"{path}.journal")
            samples.append((number, time.perf_counter(), memory, journal))

    measure = Sleep(0.0, sample)
    with SurfaceFile.open(path, grid, measures={"loss": (measure.fields, measure.settings)}) as store:
        began = time.perf_counter()
        survey(measure, grid, store=store)
        closing = time.perf_counter()
    print(json.dumps({
        "points": side * side,
        "seconds": closing - began,
        "closing": time.perf_counter() - closing,
        "rates": [
            (b[0] - a[0]) / (b[1] - a[1]) for a, b in zip([(0, began, 0, 0), *samples[:-1]], samples, strict=True)
        ],
        "memory_mb": [sample[2] / 1024 for sample in samples],
        "journal_bytes_per_point": samples[-1][3] / samples[-1][0],
        "file_bytes_per_point": path.stat().st_size / side**2,
    }))  # fmt: skip


class Instant:
    """A channel to workers that answer each point at once."""

    def __init__(self, workers: int) -> None:
        reading = {"train_loss": 1.0, "train_acc": 1.0}
        self.answer = lambda index: (0, DONE, index, reading, 1.0)
        self.waiting = deque((rank, (0, HELLO, "host")) for rank in range(1, workers + 1))

    def send(self, message: tuple, rank: int) -> None:
        if message[1] == POINTS:
            self.waiting.extend((rank, self.answer(index)) for index, _ in message[2])

    def receive(self) -> tuple | None:
        return self.waiting.popleft() if self.waiting else None

    def dead(self) -> frozenset:
        return frozenset()


def workers(number: int, folder: str) -> None:
    """Role: the dispatcher alone, with this number of workers, each of which gets twenty points."""
    grid, measure = line(20 * number if number > 1000 else 20_000), Sleep(0.0)
    with SurfaceFile.open(Path(folder) / "s.h5", grid, measures={"loss": (measure.fields, measure.settings)}) as store:
        recorder = Recorder(store, "loss", grid, None, number, None, False)
        ranks = [(rank,) for rank in range(1, number + 1)]
        dispatcher = Dispatcher(
            Instant(number), WorkQueue(recorder.order, number), ranks, recorder, stop=Stop(), point_timeout=60.0
        )
        used = cpu()
        while not dispatcher.is_over:
            dispatcher.step()
        print(json.dumps({"cpu_us_per_point": 1e6 * (cpu() - used) / len(grid)}))


ROLES = {"rate": rate, "efficiency": efficiency, "lockstep": lockstep, "waiting": waiting}


def started(role: str, *args: object, ranks: int = 0) -> dict:
    """The output of a role on this number of ranks."""
    command = [sys.executable, __file__, "--role", json.dumps([role, *args])]
    if ranks:
        mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        command = [str(mpirun), "-n", str(ranks), *command]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **ENVIRONMENT, "TMPDIR": folder}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ended.returncode:
        raise RuntimeError(f"{role} on {ranks} ranks ended with {ended.returncode}:\n{ended.stderr}")
    return json.loads(ended.stdout.strip().splitlines()[-1])


def report_rate(quick: bool, ranks_to_run: list[int] | None) -> None:
    """Dispatching rate for some numbers of workers."""
    for count in [1, 4] if quick else [1, 4, 16]:
        values = started("rate", 5_000 if quick else 100_000, ranks=count + 1)
        print(
            f"rate: {count:2d} workers, points without cost: {values['points_per_s']:,.0f} points/s, "
            f"{values['cpu_us_per_point']:.0f} us of rank 0's CPU each: at most "
            f"{1e6 / values['cpu_us_per_point']:,.0f} points/s",
            flush=True,
        )


def report_workers(quick: bool, ranks_to_run: list[int] | None) -> None:
    """CPU time per point for some numbers of workers without MPI."""
    for number in [10, 100] if quick else [10, 100, 1_000, 10_000]:
        values = started("workers", number)
        price = f"{values['cpu_us_per_point']:.0f} us of rank 0's CPU per point, without MPI"
        print(f"workers: {number:6,}: {price}", flush=True)


def report_efficiency(quick: bool, ranks_to_run: list[int] | None) -> None:
    """Efficiency of dispatching and of a lockstep."""
    count, mean = (10, 0.05) if quick else (40, 0.25)
    print(f"efficiency: {count} points per rank, {mean:g} s on average, costs from 1 to 10")
    for ranks in ranks_to_run or ([2, 8] if quick else [2, 4, 8, 16, 32, 64]):
        dispatched, lockstepped = (started(role, count, mean, ranks=ranks) for role in ("efficiency", "lockstep"))
        print(
            f"efficiency: {ranks:2d} ranks, of which {dispatched['computing']} compute: dispatched "
            f"{100 * dispatched['efficiency']:.1f} % of those (at best {100 * dispatched['best']:.1f} %), "
            f"{100 * dispatched['of_all']:.1f} % of all; lockstep {100 * lockstepped['efficiency']:.1f} % (at best "
            f"{100 * lockstepped['best']:.1f} %)",
            flush=True,
        )


def report_waiting(quick: bool, ranks_to_run: list[int] | None) -> None:
    """CPU of waiting ranks."""
    for ranks in [4] if quick else [4, 16]:
        values = started("waiting", 2.0 if quick else 10.0, ranks=ranks)
        print(
            f"waiting: {ranks} ranks: {100 * values['waiting']:.1f} % of a core each while they wait (worst "
            f"{100 * values['worst']:.1f} %), rank 0 {100 * values['rank_0']:.1f} %",
            flush=True,
        )


def report_million(quick: bool, ranks_to_run: list[int] | None) -> None:
    """A grid of a million points."""
    values = started("million", 100 if quick else 1000)
    memory, rates = values["memory_mb"], values["rates"]
    print(
        f"million: {values['points']:,} points in {values['seconds']:.0f} s, closed in {values['closing']:.1f} s; "
        f"{rates[0]:,.0f} points/s in the first tenth, {rates[-1]:,.0f} in the last; memory {memory[0]:.0f} MB "
        f"after a tenth, {memory[-1]:.0f} MB at the end; journal {values['journal_bytes_per_point']:.0f} and file "
        f"{values['file_bytes_per_point']:.0f} bytes a point"
    )


REPORTS = {
    "rate": report_rate,
    "workers": report_workers,
    "efficiency": report_efficiency,
    "waiting": report_waiting,
    "million": report_million,
}


def main() -> None:
    """Run the selected parts and print their results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", default=list(REPORTS), choices=list(REPORTS))
    parser.add_argument("--ranks", nargs="+", type=int)
    parser.add_argument("--role", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        role, *args = options.role
        if role in ("million", "workers"):
            return {"million": million, "workers": workers}[role](*args, os.environ["TMPDIR"])
        world = World.start()
        ROLES[role](world, *args, *([os.environ["TMPDIR"]] if role == "rate" else []))
        world.leave()
        return None
    for part in REPORTS:
        if part in options.only:
            REPORTS[part](options.quick, options.ranks)
    return None


if __name__ == "__main__":
    main()
