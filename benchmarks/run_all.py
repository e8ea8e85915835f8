"""Run every benchmark, one after the other, and print its output. `make bench`; --quick for a smoke test.

Each row of RESULTS.md is copied from such a run, with the machine and the date. Nothing else should run meanwhile.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
ORDER = (
    "surface_point",
    "hvp",
    "eigenmap",
    "spectrum",
    "deflation",
    "dispatch",
    "estimate",
    "memory",
    "vocabulary",
    "callbacks",
    "checks",
    "identity",
    "draw",
    "interpolation",
    "refine",
    "farm",
    "planted",
    "trust",
    "coverage",
)


def machine():
    """The machine, in one line."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {date.today().isoformat()}"


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--quick", action="store_true")
    flags.add_argument("names", nargs="*", help=f"which: {', '.join(ORDER)}; all by default")
    options = flags.parse_args()
    print(machine(), flush=True)
    failed = []
    for name in options.names or ORDER:
        print(f"\n## {name}\n", flush=True)
        start = time.perf_counter()
        command = [sys.executable, str(HERE / f"{name}.py"), *(["--quick"] if options.quick else [])]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
        print(f"\n({time.perf_counter() - start:.0f} s)", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
