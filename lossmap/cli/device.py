"""The device, threads and precision of this process, agreed between all ranks."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from lossmap.cli.setting_groups import RunSettings
from lossmap.cli.settings import UsageError
from lossmap.parallel import devices
from lossmap.parallel.world import World

NODES = 8  # whose GPUs are named in the log


@dataclass(frozen=True)
class Machine:
    """Where a rank computes, and how.

    device    of this rank
    dtype     of parameters and data
    autocast  a lower precision for the layers that bear it, or none
    threads   of this rank
    every     of each rank that computes: its host, its GPU by the number or name that the node gives it, or none,
              and what kind of device that is
    """

    device: torch.device
    dtype: torch.dtype
    autocast: torch.dtype | None
    threads: int
    every: tuple[tuple[str, str, str], ...]

    def describe(self) -> str:
        """The names of the devices of all ranks, as people know them, each with its ranks where there are several."""
        counts = Counter(name for _, _, name in self.every)
        if len(self.every) == 1:
            return self.every[0][2]
        return ", ".join(f"{name} ({n} rank{'s' if n > 1 else ''})" for name, n in counts.items())

    def sentence(self) -> str:
        """On what is computed, for the log; of GPUs also which, node by node, as far as one line bears it."""
        nodes: dict[str, list[str]] = {}
        for host, gpu, _ in self.every:
            nodes.setdefault(host, []).extend([gpu] if gpu else [])
        gpus = [f"{host} GPU {' '.join(took)}" for host, took in nodes.items() if took]
        which = f": {', '.join(gpus[:NODES])}" if gpus else ""
        more = f" and {len(gpus) - NODES} more nodes" if len(gpus) > NODES else ""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"computing on {self.describe()}{which}{more}; {threads}{' each' if len(self.every) > 1 else ''}"


def machine(run: RunSettings, world: World) -> Machine:
    """Make this process ready: its device, its threads, its precision; no TF32 unless asked. All ranks call it."""
    measures = world.computes(run.rank_0, run.team)
    # CUDA counts its devices without starting; a rank that only deals wants none
    count = 0 if run.device == "cpu" or not measures else torch.cuda.device_count()
    shown = world.gather((world.host, devices.visible_devices(os.environ, count)))
    here = [mask for host, mask in shown if host == world.host]
    place = sum(host == world.host for host, _ in shown[: world.rank])
    device = device_of(here, place, run) if measures else "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bound = cores < (os.cpu_count() or 1)  # the launcher gave this rank cores of its own
    said = os.environ.get("OMP_NUM_THREADS", "")
    threads = run.threads or (int(said) if said.isdigit() else 0) or max(1, cores if bound else cores // len(here))
    torch.set_num_threads(threads)
    keep_freed_memory()
    there = torch.device(device)
    tf32 = run.precision == "tf32"
    if tf32 and there.type != "cuda":
        raise UsageError("--precision tf32 is a mode of GPUs; on a CPU use float32")
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    dtype = torch.float64 if run.precision == "float64" else torch.float32
    gpu = shown[world.rank][1][there.index or 0] if there.type == "cuda" else ""
    name = torch.cuda.get_device_name(there) if gpu else "cpu"
    told = world.gather((world.host, gpu, name) if measures else None)
    every = tuple(one for one in told if one is not None)
    return Machine(there, dtype, torch.bfloat16 if run.precision == "bfloat16" else None, threads, every)


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed, since every batch takes as much again; elsewhere nothing happens.

    By default large tensors are given back to the system and taken anew, page by page, at each operation.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim, pad, mapped = -1, -2, -3  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD of malloc.h
        for option, size in ((mapped, 32 << 20), (trim, 1 << 30), (pad, 64 << 20)):  # 32 MiB is the most it takes
            mallopt(option, size)


def device_of(masks: Sequence[tuple[str, ...]], place: int, run: RunSettings) -> str:
    """The device of the rank at this place of its node."""
    return devices.device_for(masks, place, run.ranks_per_gpu, run.device)
