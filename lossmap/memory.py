"""Memory that is free, and the share of it that samples may take; within the limits of a control group."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

SHARE = 0.25  # of what is free, for the samples of one problem


def room(device: torch.device | str = "cpu", neighbours: int = 1) -> int:
    """Bytes that samples may take on a device which so many ranks share."""
    return int(SHARE * free_memory(device) / neighbours)


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that are free on a device; on the CPU within the limits of the process's control group."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_machine_free(), _group_free(Path("/sys/fs/cgroup")))


def _machine_free() -> int:
    try:
        told = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        told = None
    if told:
        return int(told.group(1)) * 1024
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // 2  # no Linux: half of all


def _group_free(group: Path) -> int:
    """What a control group still allows; file caches count as free."""
    try:
        most = (group / "memory.max").read_text().strip()
        if most == "max":
            return 1 << 62
        used = int((group / "memory.current").read_text())
        caches = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
        return max(int(most) - used + (int(caches.group(1)) if caches else 0), 0)
    except (OSError, ValueError):
        return 1 << 62
