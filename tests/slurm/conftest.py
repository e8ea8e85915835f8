"""A real SLURM for the tests: munged, one slurmctld, two virtual nodes, no systemd, no accounting.

All state lies in one folder with a short name, since sockets want short paths. Nothing is ended but what was started
here, by its process id. Needs root and Debian's slurm-wlm, munge and libpmix2; the tests are skipped by name elsewhere.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "unshare", "setpriv")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={top}/sock/munge,cred_expire=5
StateSaveLocation={top}/state
SlurmdSpoolDir={top}/spool/%n
TmpFS={top}/tmp/%n
SlurmctldPidFile={top}/run/slurmctld.pid
SlurmdPidFile={top}/run/slurmd.%n.pid
SlurmctldLogFile={top}/log/slurmctld
SlurmdLogFile={top}/log/slurmd.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
MpiDefault=none
ReturnToService=2
MinJobAge=300
KillWait=30
SwitchType=switch/none
MailProg={top}/mail
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
"""


@dataclass(frozen=True)
class Cluster:
    """What the tests ask of it."""

    environment: dict[str, str]
    top: Path

    def mails(self, job: str) -> list[str]:
        """The subjects of the mails about a job, in order."""
        path = self.top / "mails"
        return [line for line in path.read_text().splitlines() if f"Job_id={job} " in line] if path.exists() else []

    def ask(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        words = self.ask("scontrol", "show", "job", "--oneliner", number).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def start_now(self, job: str, seconds: float = 60) -> None:
        """Let a job that was requeued start at once: SLURM lets one wait for two minutes after a preemption."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.job(job).get("JobState") == "PENDING" and self.job(job).get("Reason") == "BeginTime":
                self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
                return
            if self.job(job).get("JobState") == "RUNNING" and self.job(job).get("Restarts") != "0":
                return
            time.sleep(0.2)
        raise AssertionError(f"job {job} was not requeued in {seconds} s:\n{self.ask('squeue', '-l', check=False)}")

    def wait(self, *numbers: str, until: tuple[str, ...] = (), seconds: float = 90) -> None:
        """Poll the queue until none of the jobs is left in it, or all are in one of the states `until`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.ask("squeue", "-h", "-r", "-o", "%A %F %T", check=False).splitlines()
            states = [line.split()[2] for line in found if set(line.split()[:2]) & set(numbers)]
            if (until and states and all(s in until for s in states)) or (not until and not states):
                return
            time.sleep(0.2)
        queue = self.ask("squeue", "-l", check=False)
        raise AssertionError(f"{numbers} did not get to {until or 'their end'} in {seconds} s:\n{queue}")


@pytest.fixture(scope="session")
def cluster():
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    libraries = sorted(Path("/usr/lib").glob("*/pmix2/lib/libpmix.so.2"))
    if missing or not libraries or os.geteuid() != 0:
        pytest.skip(f"a SLURM of our own wants root, slurm-wlm, munge and libpmix2; not here: {missing or 'libpmix2'}")
    link = libraries[0].with_name("libpmix.so")  # by this name SLURM's plugin opens it
    if not link.exists():
        link.symlink_to("libpmix.so.2")
    top = Path(tempfile.mkdtemp(prefix="lm", dir="/tmp"))
    try:
        yield Cluster(_up(top), top)
    finally:
        _down(top)


def _up(top, nodes=("node1", "node2")):
    for name in ("munge", "sock", "state", "spool", "log", "run", "tmp"):
        (top / name).mkdir()
    top.chmod(0o711)
    owner = pwd.getpwnam("munge")
    (top / "munge" / "key").write_bytes(os.urandom(1024))
    (top / "munge" / "key").chmod(0o400)
    (top / "munge").chmod(0o700)
    (top / "sock").chmod(0o755)
    for path in (top / "munge" / "key", top / "munge", top / "sock"):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    munge = top / "munge"
    _run(
        *("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--force"),
        *(f"--key-file={munge}/key", f"--socket={top}/sock/munge", f"--pid-file={top}/sock/munged.pid"),
        *(f"--log-file={munge}/log", f"--seed-file={munge}/seed"),
    )
    host, ports = socket.gethostname().split(".")[0], _free(1 + len(nodes))
    lines = [CONFIGURATION.format(host=host, port=ports[0], top=top)]
    lines += [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 State=UNKNOWN\n"
        for node, port in zip(nodes, ports[1:], strict=True)
    ]
    shared = f"Nodes={','.join(nodes)} MaxTime=60 OverSubscribe=NO"
    lines.append(f"PartitionName=main {shared} Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE\n")
    lines.append(f"PartitionName=urgent {shared} State=UP PriorityTier=9 PreemptMode=OFF\n")
    lines.append(f"PartitionName=closed {shared} State=DOWN\n")
    (top / "mail").write_text(f'#!/bin/sh\n# mail -s SUBJECT ADDRESS\necho "$2" >>{top}/mails\n')
    (top / "mail").chmod(0o755)
    (top / "slurm.conf").write_text("".join(lines))
    environment = _environment(top)
    _run("slurmctld", "-c", env=environment)
    for node in nodes:
        (top / "tmp" / node).mkdir()
        (top / "spool" / node).mkdir()
        _run("unshare", "--uts", "sh", "-c", f"hostname {node} && exec slurmd -N {node}", env=environment)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        idle = subprocess.run(
            ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"], env=environment, capture_output=True, text=True
        )
        if len(set(idle.stdout.split())) == len(nodes):
            return environment
        time.sleep(0.1)
    raise AssertionError("".join(path.read_text()[-2000:] for path in (top / "log").iterdir()))


def _environment(top):
    """This process's, without what a launcher may have left in it; one thread a rank; several ranks as root."""
    left = ("SLURM", "SBATCH", "OMPI_COMM", "PMIX_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left)}
    return kept | {
        "SLURM_CONF": str(top / "slurm.conf"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_btl": "^ofi",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
    }


def _run(*command, env=None):
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def _free(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _down(top):
    if (top / "slurm.conf").exists():
        environment = os.environ | {"SLURM_CONF": str(top / "slurm.conf")}
        ask = {"env": environment, "capture_output": True, "text": True, "timeout": 30}
        jobs = subprocess.run(["squeue", "-h", "-o", "%A"], **ask).stdout.split()
        if jobs:
            subprocess.run(["scancel", "--signal=KILL", "--full", *jobs], **ask)
            subprocess.run(["scancel", *jobs], **ask)
            time.sleep(1)
    pids = [int(path.read_text()) for folder in ("run", "sock") for path in (top / folder).glob("*.pid")]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 10
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.1)
    shutil.rmtree(top, ignore_errors=True)
