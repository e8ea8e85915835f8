"""Free memory: the limit of a job's control group (v2 and v1, its own or one above) and SLURM's, on a made-up tree."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lossmap import memory
from lossmap.data import batches, datasets, loaders
from lossmap.memory import free_memory, ranks_on_host, sample_budget

GIB = 2**30
MEMINFO = {"proc/meminfo": f"MemTotal: {64 * GIB // 1024} kB\nMemAvailable: {60 * GIB // 1024} kB\n"}
JOB = "system.slice/slurmstepd.scope/job_7/step_0/user/task_0"
CGROUP = "sys/fs/cgroup"


def v2(folder, limit=f"{4 * GIB}", used=GIB, inactive=0, name="memory.max"):
    return {
        f"{folder}/{name}": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 1\nactive_file 7\ninactive_file {inactive}\n",
    }


def v1(folder, limit=4 * GIB):
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{GIB}\n",
        f"{folder}/memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB // 4}\n",
    }


V2_JOB = {"proc/self/cgroup": f"0::/{JOB}\n"}
ABOVE = f"{CGROUP}/system.slice/slurmstepd.scope/job_7"
V1_JOB = {"proc/self/cgroup": "9:memory:/slurm/uid_1/job_7\n1:name=systemd:/\n"}
SLURM = {"SLURM_JOB_ID": "7"}
RESIDENT = {"proc/self/status": f"VmPeak: 9 kB\nVmRSS:\t{GIB // 1024} kB\n"}
SITUATIONS = {
    "no files at all but meminfo": ({}, {}, 60 * GIB),
    "v2 without a limit": ({"proc/self/cgroup": "0::/\n", f"{CGROUP}/memory.max": "max\n"}, {}, 60 * GIB),
    "v2 at the root, as in a container": ({"proc/self/cgroup": "0::/\n"} | v2(CGROUP), {}, 3 * GIB),
    "v2 in the job's folder": (V2_JOB | {f"{CGROUP}/memory.max": "max\n"} | v2(f"{CGROUP}/{JOB}"), {}, 3 * GIB),
    "v2 in a folder above": (V2_JOB | v2(f"{CGROUP}/{JOB}", "max") | v2(ABOVE), {}, 3 * GIB),
    "v2, the lower of two": (V2_JOB | v2(f"{CGROUP}/{JOB}", 3 * GIB) | v2(f"{CGROUP}/system.slice"), {}, 2 * GIB),
    "v2 memory.high": (V2_JOB | v2(f"{CGROUP}/{JOB}", name="memory.high"), {}, 3 * GIB),
    "v2, inactive file caches are free": (V2_JOB | v2(f"{CGROUP}/{JOB}", inactive=GIB // 2), {}, 7 * GIB // 2),
    "v2, more used than allowed": (V2_JOB | v2(f"{CGROUP}/{JOB}", used=5 * GIB), {}, 0),
    "v2, of a host outside the container": ({"proc/self/cgroup": "0::/docker/0ab\n"} | v2(CGROUP), {}, 3 * GIB),
    "v2, of a group outside the namespace": ({"proc/self/cgroup": "0::/../other\n"} | v2(CGROUP), {}, 3 * GIB),
    "v2 beside v1": ({"proc/self/cgroup": "9:cpu:/\n0::/a\n"} | v2(f"{CGROUP}/unified/a"), {}, 3 * GIB),
    "v1": (V1_JOB | v1(f"{CGROUP}/memory/slurm/uid_1/job_7"), {}, 13 * GIB // 4),
    "v1 in a folder above": (V1_JOB | v1(f"{CGROUP}/memory/slurm"), {}, 13 * GIB // 4),
    "v1, two controllers in one": (
        {"proc/self/cgroup": "4:cpu,memory:/a\n"} | v1(f"{CGROUP}/cpu,memory/a"), {}, 13 * GIB // 4
    ),
    "v1 without a limit": (V1_JOB | v1(f"{CGROUP}/memory", 2**63 - 4096), {}, 60 * GIB),
    "SLURM by node": ({}, SLURM | {"SLURM_MEM_PER_NODE": "4096"}, 4 * GIB),
    "SLURM by node, with a unit": ({}, SLURM | {"SLURM_MEM_PER_NODE": "4G"}, 4 * GIB),
    "SLURM by node, less what is used": (
        RESIDENT, SLURM | {"SLURM_MEM_PER_NODE": "4096"}, 3 * GIB
    ),
    "SLURM, all of the node": ({}, SLURM | {"SLURM_MEM_PER_NODE": "0"}, 60 * GIB),
    "SLURM by CPU": ({}, SLURM | {"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "8"}, 8 * GIB),
    "SLURM by CPU, by node": ({}, SLURM | {"SLURM_MEM_PER_CPU": "1G", "SLURM_JOB_CPUS_PER_NODE": "8(x2),4"}, 8 * GIB),
    "SLURM by CPU, of unknown number": ({}, SLURM | {"SLURM_MEM_PER_CPU": "1024"}, GIB),
    "SLURM by GPU": ({}, SLURM | {"SLURM_MEM_PER_GPU": "8192", "SLURM_GPUS_ON_NODE": "2"}, 16 * GIB),
    "SLURM by GPU of a kind": ({}, SLURM | {"SLURM_MEM_PER_GPU": "8192", "SLURM_GPUS_PER_NODE": "a100:2"}, 16 * GIB),
    "SLURM's variables without a job": ({}, {"SLURM_MEM_PER_NODE": "4096"}, 60 * GIB),
    "a group's limit below SLURM's": (V2_JOB | v2(f"{CGROUP}/{JOB}"), SLURM | {"SLURM_MEM_PER_NODE": "8192"}, 3 * GIB),
}  # fmt: skip


def tree(root, files):
    for name, text in (MEMINFO | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_smallest_limit_of_the_job_is_found(tmp_path, situation):
    files, environ, free = SITUATIONS[situation]
    assert free_memory(root=tree(tmp_path, files), environ=environ) == free


def test_ranks_divide_what_is_free_in_one_place(tmp_path):
    root = tree(tmp_path, {"proc/self/status": f"VmRSS: {GIB // 2048} kB\n"})
    assert free_memory("cpu", 4, root=root, environ={}) == 15 * GIB
    # all four ranks are taken to use as much as this one
    assert free_memory("cpu", 4, root=root, environ=SLURM | {"SLURM_MEM_PER_NODE": "10240"}) == 2 * GIB
    with pytest.raises(ValueError, match="ranks_sharing must be >= 1; got 0"):
        free_memory("cpu", 0)


@pytest.mark.parametrize(
    ("environ", "ranks"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_SIZE": "8"}, 4),
        ({"MPI_LOCALNRANKS": "2"}, 2),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),8"}, 8),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "none"}, 1),
    ],
)
def test_a_library_call_under_a_launcher_takes_its_part_of_the_host(tmp_path, environ, ranks):
    root = tree(tmp_path, {})
    assert ranks_on_host(environ) == ranks
    assert free_memory(root=root, environ=environ) == free_memory(root=root, environ={}) // ranks


def test_ranks_of_a_host_spread_over_its_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * GIB, 8 * GIB))
    for devices, free in ((1, 1), (4, 3), (8, 6)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda devices=devices: devices)
        assert free_memory("cuda:0", environ={"OMPI_COMM_WORLD_LOCAL_SIZE": "6"}) == free * GIB


def test_the_memory_of_this_machine_is_read():
    assert 1 << 20 < free_memory("cpu") < 1 << 50
    assert free_memory(torch.device("cpu"), 1000) < free_memory("cpu") // 500


def test_a_gpu_is_asked_by_cuda_and_divided(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (6 * GIB, 8 * GIB))
    assert free_memory("cuda:1", 3) == 2 * GIB and asked == [torch.device("cuda:1")]


def test_every_reader_of_samples_divides_by_the_ranks(monkeypatch, tmp_path):
    monkeypatch.setattr(
        memory, "free_memory", lambda device="cpu", ranks_sharing=None: 4 * 10_000 // (ranks_sharing or 1)
    )
    assert sample_budget() == 10_000 and sample_budget(ranks_sharing=4) == 2_500
    x, y = torch.zeros(100, 8), torch.zeros(100, dtype=torch.long)  # 4000 bytes
    loader = DataLoader(TensorDataset(x, y), batch_size=50)
    small = DataLoader(TensorDataset(x, y), batch_size=10)  # 20 tensors, which take 10,000 bytes beside their numbers
    assert isinstance(loaders.as_batches(small), batches.Streamed)
    for ranks, kind in ((1, batches.Resident), (4, batches.Streamed)):
        assert isinstance(loaders.as_batches(loader, ranks_sharing=ranks), kind)
        assert isinstance(datasets.load("digits", samples=30, ranks_sharing=ranks), kind)  # 7920 bytes
    for read in (
        lambda ranks: batches.read_into_memory(iter(loader), ranks_sharing=ranks),
        lambda ranks: loaders.source_of(iter(loader), "loader", ranks),
    ):
        assert read(1).samples == 100
        with pytest.raises(ValueError, match="more than the memory for samples"):
            read(4)
    (tmp_path / "own.py").write_text(
        "import torch\n\ndef data(split):\n"
        "    return iter([(torch.zeros(100, 8), torch.zeros(100, dtype=torch.long))])\n"
    )
    name = f"{tmp_path / 'own.py'}:data"
    assert datasets.load(name).samples == 100
    with pytest.raises(ValueError, match="more than the memory for samples"):
        datasets.load(name, ranks_sharing=4)
