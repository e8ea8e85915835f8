"""The device, threads and precision of this process, agreed between all ranks."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lossmap import accelerators
from lossmap.cli.setting_groups import RunSettings
from lossmap.cli.settings import UsageError
from lossmap.numerics import ask_for_determinism, is_tf32, use_tf32
from lossmap.parallel import devices
from lossmap.parallel.crowding import measured_crowding
from lossmap.parallel.process import keep_freed_memory, threads_of_rank
from lossmap.parallel.world import World
from lossmap.process_state import also
from lossmap.sums import has_float64

also("TF32", is_tf32, use_tf32)  # each problem of a process has the precision that was asked for it
DTYPES = {"float64": torch.float64}  # by --precision, of parameters and data; float32 for all others
AUTOCAST = {"bfloat16": torch.bfloat16}
MAX_NODES_NAMED = 8  # in the line of the log that names GPUs


@dataclass(frozen=True)
class Machine:
    """Where a rank computes, and how.

    device    of this rank
    dtype     of parameters and data
    autocast  a lower precision for the layers that support it, or None
    threads   of this rank
    every     of each rank that computes: its host, its GPU by the number or name that the node gives it, or "", and
              the name of the device
    ranks_sharing  the ranks that divide the memory of this rank's device: of its GPU, or of its host
    """

    device: torch.device
    dtype: torch.dtype
    autocast: torch.dtype | None
    threads: int
    every: tuple[tuple[str, str, str], ...]
    ranks_sharing: int = 1

    def describe(self) -> str:
        """The names of the devices of all ranks, each with its number of ranks where there are several."""
        if len(self.every) == 1:
            return self.every[0][2]
        counts = Counter(name for _, _, name in self.every)
        return ", ".join(f"{name} ({_counted(n, 'rank')})" for name, n in counts.items())

    def sentence(self) -> str:
        """The devices for the log; of GPUs also which, node by node, as far as one line has room."""
        gpus_on: dict[str, list[str]] = {}
        for host, gpu, _ in self.every:
            if gpu:
                gpus_on.setdefault(host, []).append(gpu)
        nodes = [f"{host} GPU {' '.join(gpus)}" for host, gpus in gpus_on.items()]
        text = f"computing on {self.describe()}"
        if nodes:
            text += f": {', '.join(nodes[:MAX_NODES_NAMED])}"
        if len(nodes) > MAX_NODES_NAMED:
            text += f" and {len(nodes) - MAX_NODES_NAMED} more nodes"
        text += f"; {_counted(self.threads, 'thread')}"
        if len(self.every) > 1:
            text += " each"
        return text


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def prepare_machine(run: RunSettings, world: World) -> Machine:
    """Choose this process's device, threads and precision; no TF32 unless it is asked for. All ranks call it.

    Raises UsageError for a precision that the device has not, and ValueError as `parallel.devices` does.
    """
    computes = world.computes(run.rank_0, run.team)
    ask_for_determinism()
    # a rank that only dispatches needs no GPU, and leaves them alone
    kind, seen = world.together(lambda: _visible_gpus(devices.kind_of(run.device) if computes else "cpu"))
    visible = world.gather((world.host, seen))
    neighbours = [gpus for host, gpus in visible if host == world.host]
    place = sum(host == world.host for host, _ in visible[: world.rank])
    masks = [tuple(gpus) for gpus in neighbours]

    def taken() -> tuple[torch.device, str, str, str]:
        """The device of this rank, its identity, and what the log calls it and its kind."""
        device = torch.device(device_of(masks, place, run, kind) if computes else "cpu")
        if computes and run.precision == "tf32" and device.type != "cuda":
            raise UsageError(f"--precision tf32 is a mode of CUDA's GPUs; use float32 on {device.type}")
        if device.type == "cpu":
            return device, "", "", "cpu"
        _take(device)
        name = accelerators.name_of(device)
        if run.precision == "float64" and not has_float64(device):
            raise UsageError(
                f"--precision float64: {name} has no float64; take float32, whose sums and checks are made in float64 "
                "on the CPU, or --device cpu"
            )
        identity = masks[place][device.index or 0]
        return device, identity, devices.shown_names(neighbours)[place][identity], name

    device, identity, gpu, name = world.together(taken)
    threads = threads_of_rank(run.threads, len(neighbours))
    torch.set_num_threads(threads)
    keep_freed_memory()
    use_tf32(run.precision == "tf32")
    ranks = world.gather(((world.host, gpu, name), identity) if computes else None)
    every = [None if rank is None else rank[0] for rank in ranks]
    if world.crowding is None:
        computing = frozenset(rank for rank, one in enumerate(every) if one is not None)
        world.crowding = measured_crowding(world, computing, lambda: seconds_of_work(device))
    sharing = sum(rank is not None and (rank[0][0], rank[1]) == (world.host, identity) for rank in ranks)
    return Machine(
        device,
        DTYPES.get(run.precision, torch.float32),
        AUTOCAST.get(run.precision),
        threads,
        tuple(one for one in every if one is not None),
        max(1, sharing),
    )


def _take(device: torch.device) -> None:
    """Make a GPU the process's own, so that nothing that names no device starts another one of the node."""
    module = accelerators.module_of(device.type)
    if hasattr(module, "set_device"):  # Apple's is the only one
        module.set_device(device)


def _visible_gpus(kind: str) -> tuple[str, dict[str, str]]:
    """The GPUs of a kind that this process may use, by what tells them apart on its node: their names, in their order.

    kind  as `--device` names it: `auto` is whatever there is

    Returns the kind too.
    """
    if kind == "auto":
        kind = accelerators.automatic_kind() or "cpu"
    if kind == "cpu":
        return kind, {}
    module = accelerators.module_of(kind)
    rocm = kind == "cuda" and torch.version.hip is not None
    names = devices.visible_devices(os.environ, accelerators.count(kind), rocm=rocm, kind=kind)
    describe = getattr(module, "get_device_properties", lambda i: None)
    each = [describe(i) for i in range(len(names))]
    uuids = [getattr(properties, "uuid", None) for properties in each]
    addresses = [devices.pci_address(properties) for properties in each]
    identities = devices.identities(names, [None if uuid is None else str(uuid) for uuid in uuids], addresses)
    return kind, dict(zip(identities, names, strict=True))


def seconds_of_work(device: torch.device) -> float:
    """Seconds of some work on this device, by half arithmetic and by half memory traffic."""
    square, vector = torch.ones(256, 256, device=device), torch.ones(1 << 20, device=device)
    began = time.perf_counter()
    for _ in range(30):
        square = (square @ square).mul_(1 / 256)
        vector.mul_(1.0)
    float(square[0, 0] + vector[0])  # read on the host, so that a GPU has done it
    return time.perf_counter() - began


def refuse_bfloat16(machine: Machine) -> None:
    """Raise UsageError where curvature would be computed in bfloat16."""
    if machine.autocast is not None:
        raise UsageError("--precision bfloat16 is for losses; the precision of eigenvalues must be float32 or float64")


def device_of(masks: Sequence[tuple[str, ...]], place: int, run: RunSettings, kind: str = "cuda") -> str:
    """The device of the rank at this index among the ranks of its node, which sees GPUs of a kind."""
    return devices.device_for(masks, place, run.ranks_per_gpu, run.device, kind)
