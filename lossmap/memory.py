"""Free memory of host and device, within the limits of the job: control groups (v2 and v1) and SLURM's.

    free = min over the limits L of (L - used + inactive file caches)        bytes

One function says how much is free, `free_memory`, and it alone divides by the ranks that share the memory; everything
else in the package asks it. A GPU is asked by its driver. A host is the smallest of

    the machine        MemAvailable of /proc/meminfo
    control group v2   memory.max and memory.high of the group in /proc/self/cgroup and of every group above it
    control group v1   memory.limit_in_bytes of the same
    SLURM              SLURM_MEM_PER_NODE, _PER_CPU or _PER_GPU, in MiB; it may be enforced by polling, without a group

since the kernel enforces every limit on the way up, and a job's own group is rarely the root that a look at
/sys/fs/cgroup/memory.max would see. File caches that are not in active use are given back under pressure and count as
free. Price: some ten small files, below 1 ms.

Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst, man 5 proc; sbatch's output
environment variables (slurm.schedmd.com/sbatch.html).
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from lossmap import accelerators

SAMPLE_SHARE = 0.25  # of what is free, for the samples of one problem
UNLIMITED = 1 << 62  # bytes; what is "free" under a limit that is not there
MIB = 1 << 20
LARGE_MODEL = 64 * MIB  # of weights, and of freed gradients
# variables by which a launcher says how many of its ranks are on this host: Open MPI, MPICH and Intel MPI, MVAPICH
_LOCAL_SIZE_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")
_UNITS = {"": MIB, "K": 1 << 10, "M": MIB, "G": 1 << 30, "T": 1 << 40}  # SLURM's numbers without a suffix are MiB


def return_freed_memory(model: torch.nn.Module) -> None:
    """Give back to the system what glibc keeps of freed tensors; for a large model, and elsewhere nothing happens.

    The checks move and differentiate a model once. Blocks of a few MiB each, between which others live, would stay with
    the process: one copy of a language model's weights. Price: some milliseconds.
    """
    if sum(p.nbytes for p in model.parameters()) >= LARGE_MODEL:
        trim_heap()


def trim_heap() -> None:
    """Give back to the system all that glibc keeps of what was freed; elsewhere nothing happens."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def memory_now(model: torch.nn.Module) -> int:
    """Bytes that this process has taken at most so far: on the model's GPU, where it has one, else in main memory."""
    device = next(iter(model.parameters())).device
    peak = accelerators.peak_bytes(device)
    if peak is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024  # of getrusage
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def sample_budget(device: torch.device | str = "cpu", ranks_sharing: int | None = None) -> int:
    """The bytes that the samples of one problem may take on a device; see `free_memory` for the arguments."""
    return int(SAMPLE_SHARE * free_memory(device, ranks_sharing))


def free_memory(
    device: torch.device | str = "cpu",
    ranks_sharing: int | None = None,
    *,
    root: Path = Path("/"),
    environ: Mapping[str, str] | None = None,
) -> int:
    """The bytes of free memory on a device, for each of the ranks that share it.

    device         a GPU is asked by its driver; any other counts as the host, whose memory Apple's GPUs share
    ranks_sharing  ranks on this host (or this GPU) that are to divide what is free, this one included; by default those
                   that the launcher has started on this host, spread over its GPUs
    root           the folder that holds /proc and /sys, for tests
    environ        the environment variables; os.environ by default

    Raises ValueError where ranks_sharing < 1. A file that is missing or cannot be read sets no limit.
    """
    device = torch.device(device)
    variables = os.environ if environ is None else environ
    if ranks_sharing is None:
        devices = accelerators.count(device.type)
        ranks_sharing = -(-ranks_on_host(variables) // max(devices, 1))
    if ranks_sharing < 1:
        raise ValueError(f"ranks_sharing must be >= 1; got {ranks_sharing}")
    free = accelerators.free_bytes(device)
    if free is None or device.type == "mps":
        slurm = _free_under_slurm(variables, _resident_size(root) * ranks_sharing)
        limits = (_free_on_machine(root), _free_in_groups(root), slurm)
        free = min(limits if free is None else (free, *limits))
    return free // ranks_sharing


def ranks_on_host(environ: Mapping[str, str]) -> int:
    """How many ranks the launcher has started on this host, by its variables; 1 without a launcher."""
    for name in _LOCAL_SIZE_VARIABLES:
        if environ.get(name, "").isdigit():
            return max(int(environ[name]), 1)
    # "2(x3),1": two tasks on each of three hosts, one on the fourth. A rank cannot tell from here which host this is
    tasks = [int(n) for n in re.findall(r"(?:^|,)(\d+)", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))]
    return max(tasks, default=1)


def _free_on_machine(root: Path) -> int:
    available = re.search(r"MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo"))
    if available:
        return int(available.group(1)) * 1024
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // 2  # no Linux: half of all


def _resident_size(root: Path) -> int:
    """The bytes of this process in memory."""
    resident = re.search(r"VmRSS:\s+(\d+) kB", _read(root / "proc/self/status"))
    if resident is None:
        return 0
    return int(resident.group(1)) * 1024


def _free_in_groups(root: Path) -> int:
    """What the control groups of this process still allow, of both versions."""
    free = [UNLIMITED]
    for line in _read(root / "proc/self/cgroup").splitlines() or ["0::/"]:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        mounts = root / "sys/fs/cgroup"
        if number == "0" and not controllers:
            for mount in (mounts, mounts / "unified"):  # the second where both versions are in use
                free += [_free_in_group_v2(group) for group in _groups(mount, path)]
        elif "memory" in controllers.split(","):
            for mount in dict.fromkeys((mounts / "memory", mounts / controllers)):
                free += [_free_in_group_v1(group) for group in _groups(mount, path)]
    return min(free)


def _groups(mount: Path, path: str) -> Iterator[Path]:
    """The folder of a control group and of every one above it.

    In a container the path may be the host's, of which only the last part, or nothing, is to be seen under the mount:
    folders that are not there set no limit, and the mount itself is always looked at.
    """
    names = [name for name in path.split("/") if name]
    if ".." in names:  # a group outside of the namespace: nothing of its way is visible
        names = []
    for depth in range(len(names), -1, -1):
        yield mount.joinpath(*names[:depth])


def _free_in_group_v2(group: Path) -> int:
    limits = [_number(group / name) for name in ("memory.max", "memory.high")]
    used, caches = _number(group / "memory.current"), _cached(group, "inactive_file")
    return _left_of(limits, used, caches)


def _free_in_group_v1(group: Path) -> int:
    used, caches = _number(group / "memory.usage_in_bytes"), _cached(group, "total_inactive_file")
    return _left_of([_number(group / "memory.limit_in_bytes")], used, caches)


def _left_of(limits: list[int | None], used: int | None, caches: int) -> int:
    limit = min((value for value in limits if value is not None), default=UNLIMITED)
    if limit >= UNLIMITED:  # v1 writes "none" as the largest multiple of a page below 2^63
        return UNLIMITED
    return min(max(limit - max((used or 0) - caches, 0), 0), limit)


def _cached(group: Path, name: str) -> int:
    """The bytes of file caches that the kernel would drop first."""
    caches = re.search(rf"^{name} (\d+)", _read(group / "memory.stat"), re.MULTILINE)
    if caches is None:
        return 0
    return int(caches.group(1))


def _free_under_slurm(environ: Mapping[str, str], used: int) -> int:
    """SLURM's limit for the job on this node, less the bytes that its ranks use."""
    if "SLURM_JOB_ID" not in environ:
        return UNLIMITED
    limits = [
        _slurm_bytes(environ.get("SLURM_MEM_PER_NODE", "")),
        _slurm_bytes(environ.get("SLURM_MEM_PER_CPU", ""))
        * _count(environ, "SLURM_CPUS_ON_NODE", "SLURM_JOB_CPUS_PER_NODE"),
        _slurm_bytes(environ.get("SLURM_MEM_PER_GPU", ""))
        * _count(environ, "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE"),
    ]
    limit = min((value for value in limits if value > 0), default=UNLIMITED)  # 0 stands for all of the node
    if limit == UNLIMITED:
        return UNLIMITED
    return max(limit - used, 0)


def _slurm_bytes(text: str) -> int:
    """Bytes of "4096" (MiB) or "4G"; 0 for anything else."""
    number = re.fullmatch(r"(\d+)([KMGT]?)B?", text.strip().upper())
    if number is None:
        return 0
    return int(number.group(1)) * _UNITS[number.group(2)]


def _count(environ: Mapping[str, str], *names: str) -> int:
    """The number of CPUs or GPUs on this node that the first of these variables states: "8", "8(x2)", "a100:4".

    1 where none does, so that the limit is too low rather than too high.
    """
    for name in names:
        number = re.match(r"(?:[\w.-]+:)?(\d+)", environ.get(name, ""))
        if number:
            return int(number.group(1))
    return 1


def _number(path: Path) -> int | None:
    """The number that a file holds; None for "max" and where there is no such file."""
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
