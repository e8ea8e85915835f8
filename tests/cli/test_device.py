"""The memory settings of a process, made before it computes."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from lossmap.parallel.process import keep_freed_memory

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        parts = [torch.ones(1_000_000) for _ in range(8)]
        del parts
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / rounds

keep_freed_memory()
faults(2)
print(faults(20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_memory_that_is_freed_and_taken_again_is_not_fetched_from_the_system_anew():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) < 100  # of the 7,800 pages that 32 MB are
