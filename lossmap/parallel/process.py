"""What a process uses of its machine: cores, threads and memory."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import MutableMapping
from contextlib import suppress

TURNS = 1000  # of a waiting thread's loop before it sleeps; GCC's own number where threads outnumber cores


def let_threads_sleep(environ: MutableMapping[str, str]) -> None:
    """Let threads of GCC's OpenMP that wait for others sleep soon, where PyTorch is not loaded yet and nothing is set.

    By default they turn in a loop for milliseconds. Beside a busy program on the same cores each operation would last
    as long (`benchmarks/beside_others.py`); on idle cores these turns suffice from one operation to the next.

    environ  the process's variables, which libgomp reads when it is loaded

    Source: GOMP_SPINCOUNT in the manual of libgomp.
    """
    if "torch" not in sys.modules and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environ.keys():
        environ["GOMP_SPINCOUNT"] = str(TURNS)


def available_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # of getrusage
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def threads_of_rank(threads: int | None, neighbours: int) -> int:
    """The threads of a rank: those that are set, else OMP_NUM_THREADS, else its share of the node's cores.

    threads     set by the person, if any
    neighbours  the ranks on this node, this one included
    """
    if threads:
        return threads
    variable = os.environ.get("OMP_NUM_THREADS", "")
    if variable.isdigit() and int(variable) > 0:
        return int(variable)
    all_cores = os.cpu_count() or 1
    cores = available_cores()
    if cores < all_cores:  # the launcher bound this rank to cores of its own
        return max(1, cores)
    return max(1, cores // neighbours)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, since every batch allocates as much again; elsewhere nothing happens.

    By default large tensors are given back to the system, and taken anew page by page at each operation.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim, pad, mapped = -1, -2, -3  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD of malloc.h
        for option, size in ((mapped, 32 << 20), (trim, 1 << 30), (pad, 64 << 20)):  # 32 MiB: glibc's upper limit
            mallopt(option, size)
