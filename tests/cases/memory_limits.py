"""The memory of a job: the limit of its control group (v2 in its own folder, v1), and SLURM's, not that of the machine.

Simulated: pathlib's, os.path's and open()'s looks at /proc/self/cgroup and /sys/fs/cgroup go to a made-up tree. Every function of the
package that says how much is free must say the same.
"""

import builtins
import io
import pathlib

from product import *

GIB = 2**30
here = folder()
rows = []


def with_tree(files, environment, ask):
    """Ask while these files stand in for those of the system, and these variables for SLURM's."""
    held = {}
    for name, text in files.items():
        held[name] = here / name.strip("/").replace("/", "_")
        held[name].write_text(text)
    real_open, real_read, real_exists, real_environ = (
        builtins.open,
        pathlib.Path.read_text,
        pathlib.Path.exists,
        dict(os.environ),
    )
    faked = lambda p: str(p).startswith(("/sys/fs/cgroup", "/proc/self/cgroup", "/proc/meminfo"))

    def opened(path, *a, **k):
        if faked(path):
            if str(path) not in held:
                raise FileNotFoundError(2, "no such file", str(path))
            path = held[str(path)]
        return real_open(path, *a, **k)

    def text(path, *a, **k):
        if faked(path):
            if str(path) not in held:
                raise FileNotFoundError(2, "no such file", str(path))
            path = held[str(path)]
        return real_read(path, *a, **k)

    there, real_is, real_os = (
        lambda p, **k: str(p) in held if faked(p) else real_exists(p, **k),
        pathlib.Path.is_file,
        os.path.exists,
    )
    builtins.open, io.open, pathlib.Path.read_text, pathlib.Path.exists = opened, opened, text, there
    pathlib.Path.is_file = lambda p, **k: str(p) in held if faked(p) else real_is(p, **k)
    os.path.exists = lambda p: str(p) in held if faked(p) else real_os(p)
    os.environ.update(environment)
    try:
        return {name: attempt(f) for name, f in ask.items()}
    finally:
        builtins.open, io.open, pathlib.Path.read_text, pathlib.Path.exists = (
            real_open,
            real_open,
            real_read,
            real_exists,
        )
        pathlib.Path.is_file, os.path.exists = real_is, real_os
        for key in environment:
            os.environ.pop(key, None)
            if key in real_environ:
                os.environ[key] = real_environ[key]


machine = {"/proc/meminfo": f"MemTotal: {64 * GIB // 1024} kB\nMemAvailable: {60 * GIB // 1024} kB\n"}
job = "/system.slice/slurmstepd.scope/job_7/step_0/user/task_0"
situations = {
    "no limit": ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "max\n"}, {}, None),
    "cgroup v2, at the root (a container)": (
        {
            "/proc/self/cgroup": "0::/\n",
            "/sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
            "/sys/fs/cgroup/memory.current": f"{GIB}\n",
            "/sys/fs/cgroup/memory.stat": "inactive_file 0\n",
        },
        {},
        3 * GIB,
    ),
    "cgroup v2, the job's own folder": (
        {
            "/proc/self/cgroup": f"0::{job}\n",
            "/sys/fs/cgroup/memory.max": "max\n",
            f"/sys/fs/cgroup{job}/memory.max": f"{4 * GIB}\n",
            f"/sys/fs/cgroup{job}/memory.current": f"{GIB}\n",
            f"/sys/fs/cgroup{job}/memory.stat": "inactive_file 0\n",
        },
        {},
        3 * GIB,
    ),
    "cgroup v2, a folder above holds the limit": (
        {
            "/proc/self/cgroup": f"0::{job}\n",
            f"/sys/fs/cgroup{job}/memory.max": "max\n",
            "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/memory.max": f"{4 * GIB}\n",
            "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/memory.current": f"{GIB}\n",
            "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/memory.stat": "inactive_file 0\n",
        },
        {},
        3 * GIB,
    ),
    "cgroup v1": (
        {
            "/proc/self/cgroup": "9:memory:/slurm/uid_1/job_7\n1:name=systemd:/\n",
            "/sys/fs/cgroup/memory/slurm/uid_1/job_7/memory.limit_in_bytes": f"{4 * GIB}\n",
            "/sys/fs/cgroup/memory/slurm/uid_1/job_7/memory.usage_in_bytes": f"{GIB}\n",
            "/sys/fs/cgroup/memory/slurm/uid_1/job_7/memory.stat": "total_inactive_file 0\n",
        },
        {},
        3 * GIB,
    ),
    "SLURM_MEM_PER_NODE alone": (
        {"/proc/self/cgroup": "0::/\n"},
        {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "4096"},
        4 * GIB,
    ),
}
for name, (files, environment, limit) in situations.items():
    for where, (got, error) in with_tree(machine | files, environment, free_memory_functions()).items():
        right = error is None and (got <= limit if limit is not None else got > 8 * GIB)
        rows.append(
            (
                f"{name}: {where.split('lossmap.')[-1]}, GiB",
                error or got / GIB,
                "that of the machine" if limit is None else f"<= {limit / GIB:g}",
                right,
            )
        )
judged(rows)
