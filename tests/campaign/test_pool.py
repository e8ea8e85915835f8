"""One pool of ranks for all members: by the files, and by a log of every evaluation that was begun."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lossmap.campaign.folder import CampaignFolder
from lossmap.io.read import read
from lossmap.parallel.work_queue import PREFETCH_SECONDS

PROGRAMS = Path(__file__).resolve().parents[1] / "programs"
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
ENVIRONMENT = {
    **os.environ,
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_btl": "^ofi",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(PROGRAMS.parents[1]),
}
RANKS = 4
SHORTEST = 0.02  # seconds of a point that is killed
MAX_IN_FLIGHT = 2 + int(PREFETCH_SECONDS / SHORTEST)  # points that a rank holds
needs_mpi = pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun here")


def start(folder, *args, ranks=RANKS, program="campaign"):
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    words = [sys.executable, str(PROGRAMS / f"{program}.py"), str(folder), *map(str, args)]
    return subprocess.Popen(
        [MPIRUN, "-n", str(ranks), *words],
        env={**ENVIRONMENT, "TMPDIR": str(folder / "tmp")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process, seconds=200):
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"hangs; it said\n{out}\n{err}")
    assert out.strip(), err
    return json.loads(out.strip().splitlines()[-1])


def rank_0_of(process):
    """The process id of rank 0 below mpirun, once it is there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if os.getsid(int(entry.name)) not in (process.pid, os.getsid(process.pid)):
                    continue
                words = (entry / "environ").read_bytes().split(b"\0")
                if b"OMPI_COMM_WORLD_RANK=0" in words and b"campaign.py" in (entry / "cmdline").read_bytes():
                    return int(entry.name)
            except OSError:
                continue
        time.sleep(0.05)
    pytest.fail("rank 0 was not started")


def evaluations(folder):
    """How often the evaluation of each point was begun."""
    return Counter((folder / "log").read_text().splitlines())


@pytest.mark.ranks
@pytest.mark.slow
@needs_mpi
def test_no_rank_idles_while_another_has_work_though_costs_spread_twentyfold(tmp_path):
    """Ranks are as long at their points, but for those in flight at the end: a member's points go to whoever is free.

    The share of the time in which they measure depends on the machine: benchmarks/farm.py has it.
    """
    told = ended(start(tmp_path, 0.04, 10))
    assert told["outcomes"] == ["complete"] and told["done"] == 250
    assert set(evaluations(tmp_path).values()) == {1}
    measured = sum(float(np.sum(read(path)["loss_seconds"])) for path in CampaignFolder(tmp_path).members.glob("*.h5"))
    assert measured == pytest.approx(told["seconds"])
    busy = Counter()
    for line in (tmp_path / "log.seconds").read_text().splitlines():
        process, seconds = line.split()
        busy[process] += float(seconds)
    assert len(busy) == RANKS
    assert max(busy.values()) - min(busy.values()) < 0.15 * max(busy.values()), busy


@pytest.mark.ranks
@needs_mpi
def test_killing_rank_0_repeats_the_points_in_flight_alone(tmp_path):
    process = start(tmp_path, SHORTEST, 12)
    rank_0 = rank_0_of(process)
    log, deadline = tmp_path / "log", time.monotonic() + 60
    while not (log.exists() and len(log.read_text().splitlines()) > 80) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(rank_0, signal.SIGKILL)
    process.communicate(timeout=60)
    before = evaluations(tmp_path)
    assert 80 < len(before) < 300
    told = ended(start(tmp_path, SHORTEST, 12))
    assert told["outcomes"] == ["complete"] and told["done"] == 300
    after = evaluations(tmp_path)
    repeated = [point for point, count in after.items() if count > 1]
    assert len(after) == 300 and max(after.values()) <= 2
    assert 0 < len(repeated) <= RANKS * MAX_IN_FLIGHT
    assert set(repeated) <= set(before)


def module():
    spec = importlib.util.spec_from_file_location("campaign_program", PROGRAMS / "campaign.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(PROGRAMS))
    try:
        spec.loader.exec_module(loaded)
    finally:
        sys.path.remove(str(PROGRAMS))
    return loaded


@needs_mpi
def test_a_rank_that_hangs_at_a_point_of_a_member_holds_up_nobody(tmp_path):
    told = ended(start(tmp_path, ranks=3, program="a_member_hangs"), seconds=40)
    assert told == {"outcomes": ["complete"] * 3, "done": [25] * 3} and (tmp_path / "log.hung").exists()


def test_what_is_there_is_not_computed_again_and_what_is_added_is(tmp_path):
    from lossmap.campaign.run import run_campaign

    members = module().members(tmp_path, 0.0, count=4)
    table = run_campaign(members[:3], tmp_path, progress=False)
    assert table["outcome"] == ["complete"] * 3 and table["train_loss_min"] == [0.0, 1.0, 2.0]
    before = evaluations(tmp_path)
    table = run_campaign(members, tmp_path, progress=False)
    after = evaluations(tmp_path)
    assert table["done"] == [25] * 4 and len(after) == 100 and set(after.values()) == {1} and before < after


def test_members_are_added_while_it_runs(tmp_path, monkeypatch):
    from lossmap.campaign import recorder
    from lossmap.campaign.run import run_campaign

    monkeypatch.setattr(recorder, "REFRESH_INTERVAL", 0.0)
    members = module().members(tmp_path, 0.002, count=3)
    table = run_campaign(members[:1], tmp_path, progress=False, refresh=lambda: members)
    assert table["outcome"] == ["complete"] * 3


def test_equal_members_are_computed_once_and_each_has_its_row(tmp_path):
    from dataclasses import replace

    from lossmap.campaign.run import run_campaign

    (member,) = module().members(tmp_path, 0.0, count=1)
    table = run_campaign([member, replace(member, name="again", labels={"copy": 2})], tmp_path, progress=False)
    assert table["done"] == [25, 25] and table["copy"] == [None, 2]
    assert len(list(CampaignFolder(tmp_path).members.glob("*.h5"))) == 1


def test_a_stop_leaves_what_is_done_and_the_next_run_goes_on(tmp_path):
    from lossmap.campaign.run import run_campaign

    program = module()
    members = program.members(tmp_path, 0.0005, count=4)
    table = run_campaign(
        members, tmp_path, progress=False, stop=lambda: (tmp_path / "log").exists() and len(evaluations(tmp_path)) > 40
    )
    assert "unfinished" in table["outcome"] or "new" in table["outcome"]
    table = run_campaign(members, tmp_path, progress=False)
    assert table["outcome"] == ["complete"] * 4
    assert sum(evaluations(tmp_path).values()) == 100


def fails():
    raise ValueError("there is no such net")


def test_a_member_that_cannot_be_begun_is_a_failure_of_its_own_and_is_tried_again_on_request(tmp_path):
    from lossmap.campaign.member import Member
    from lossmap.campaign.run import run_campaign

    good = module().members(tmp_path, 0.0, count=1)
    bad = Member("bad", fails, {"depth": -1.0})
    table = run_campaign([bad, *good], tmp_path, progress=False)
    assert table["outcome"] == ["failed", "complete"]
    assert table["reason"][0] == "ValueError: there is no such net"
    mended = Member("bad", good[0].build, {"depth": -1.0})
    assert mended.digest == bad.digest
    assert run_campaign([mended], tmp_path, progress=False)["outcome"] == ["failed"]
    assert run_campaign([mended], tmp_path, progress=False, retry_failed=True)["outcome"] == ["complete"]


def test_a_member_that_another_process_computes_is_left_out(tmp_path):
    from lossmap.campaign.run import run_campaign
    from lossmap.io.read import SurfaceFile

    members = module().members(tmp_path, 0.0, count=2)
    folder = CampaignFolder(tmp_path)
    folder.create()
    measure, grid = members[0].build()
    with SurfaceFile.open(folder.result(members[0].digest), grid, measures={"loss": (measure.fields, {})}):
        table = run_campaign(members, tmp_path, progress=False)
    assert table["outcome"] == ["unfinished", "complete"]
