"""Surveys over MPI: programs under mpirun, judged by what they print and by the file."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lossmap.io.read import read

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
pytestmark = [pytest.mark.ranks, pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun here")]


class Run:
    """A program under mpirun, or alone with ranks=0."""

    def __init__(self, folder, program, *args, ranks=3, ft=False, **environment):
        command = [sys.executable, str(PROGRAMS / f"{program}.py"), *map(str, args)]
        if ranks:
            command = [MPIRUN, *(["--with-ft", "ulfm"] if ft else []), "-n", str(ranks), *command]
        folder.joinpath("tmp").mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            command,
            env={**ENVIRONMENT, "TMPDIR": str(folder / "tmp"), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ended(self, seconds=40):
        try:
            self.out, self.err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.out, self.err = self.process.communicate()
            pytest.fail(f"hangs; it said\n{self.out}\n{self.err}")
        self.code = self.process.returncode
        return self

    @property
    def told(self):
        """What rank 0 says at the end."""
        assert self.out.strip(), self.err
        return json.loads(self.out.strip().splitlines()[-1])

    def ranks(self):
        """{rank: process id} of the Python processes below mpirun."""
        found, look = {}, [self.process.pid]
        while look:
            pid = look.pop()
            try:
                for task in os.listdir(f"/proc/{pid}/task"):
                    look += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
                words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
                told = dict(word.split("=", 1) for word in words if "=" in word)
                python = "python" in os.path.basename(os.readlink(f"/proc/{pid}/exe"))
            except OSError:
                continue
            if python and "OMPI_COMM_WORLD_RANK" in told:
                found[int(told["OMPI_COMM_WORLD_RANK"])] = pid
        return found


@pytest.fixture
def run(tmp_path):
    def start(*args, **kinds):
        return Run(tmp_path, *args, **kinds).ended()

    return start


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The surface that one process makes, to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    Run(folder, "undisturbed", folder / "s.h5", ranks=0).ended()
    return read(folder / "s.h5")


def same_bits(surface, other):
    return all(
        surface[name].tobytes() == other[name].tobytes() and (surface.status["loss"] == 1).all()
        for name in ("train_loss", "train_acc")
    )


@pytest.mark.parametrize(
    ("ranks", "rank_0", "environment"),
    [
        (2, "auto", {}),
        (3, "auto", {}),
        (3, "deals", {}),
        (3, "computes", {"LOSSMAP_MPI_THREADS": "single"}),
    ],
)
def test_any_number_of_ranks_gives_the_same_bits(run, tmp_path, undisturbed, ranks, rank_0, environment):
    ended = run("undisturbed", tmp_path / "s.h5", 0.004, rank_0, ranks=ranks, **environment)
    assert ended.code == 0, ended.err
    assert ended.told["ranks"] == list(range(1 if rank_0 == "deals" else 0, ranks))
    assert same_bits(read(tmp_path / "s.h5"), undisturbed)
    assert not (tmp_path / "s.h5.journal").exists()


def test_large_readings_of_a_slow_rank_hold_up_nobody(run):
    told = run("large_readings").told
    assert told["outcome"] == "complete" and told["sums"]
    assert told["points"][1] > 4 * told["points"][0]


def test_two_ranks_both_compute_about_equally(run, tmp_path):
    ended = run("undisturbed", tmp_path / "s.h5", 0.01, ranks=2)
    mine, others = np.bincount(read(tmp_path / "s.h5")["loss_rank"].astype(int).ravel())
    assert ended.code == 0 and 0.5 < mine / others < 2


def test_a_killed_worker_is_survived_where_the_mpi_allows_it(run, tmp_path, undisturbed):
    ended = run("a_rank_is_killed", tmp_path / "s.h5", 2, ft=True)
    assert ended.told["outcome"] == "complete"
    assert "rank 2 on" in ended.told["notes"][0] and "has died; points dispatched again" in ended.told["notes"][0]
    assert same_bits(read(tmp_path / "s.h5"), undisturbed)


@pytest.mark.parametrize(("rank", "ft"), [(0, True), (0, False), (2, False)])
def test_a_death_that_ends_the_job_loses_nothing(run, tmp_path, undisturbed, rank, ft):
    died = run("a_rank_is_killed", tmp_path / "s.h5", rank, ft=ft)
    assert died.code != 0 and not died.out
    if not ft:
        assert f"process rank {rank} with PID" in died.err and "signal 9 (Killed)" in died.err
    else:
        assert "rank 0 has died; leaving" in died.err
    before = read(tmp_path / "s.h5").counts("loss")["done"]
    assert before >= 5
    again = run("undisturbed", tmp_path / "s.h5", ft=ft)
    assert again.told["outcome"] == "complete"
    assert same_bits(read(tmp_path / "s.h5"), undisturbed)
    assert int(read(tmp_path / "s.h5").attributes["restarts"]) == 1


@pytest.mark.parametrize("ft", [True, False])
def test_a_death_while_the_ranks_meet_keeps_nobody_waiting_for_ever(run, tmp_path, ft):
    ended = run("a_rank_dies_at_the_start", tmp_path / "s.h5", ft=ft, LOSSMAP_MPI_START="2")
    assert ended.code != 0 and not (tmp_path / "s.h5").exists()
    assert "Traceback" not in ended.err and "most recent call first" not in ended.err
    assert ("MPI has not started within 2 s" if ft else "signal 9 (Killed)") in ended.err


def test_a_crash_while_the_ranks_meet_is_one_sentence_and_no_success(run, tmp_path):
    ended = run("a_crash_at_the_start", tmp_path / "s.h5", ft=True, PYTHONFAULTHANDLER="1")
    assert ended.code == signal.SIGSEGV and not (tmp_path / "s.h5").exists()
    *before, line = ended.err.splitlines()
    assert "was killed, or crashed, while MPI was starting; nothing is lost" in line
    assert not before or "ucs_handle_error" in ended.err  # UCX of Open MPI 5.0.8 prints stacks of its own
    assert "Python error" not in ended.err and "Current thread" not in ended.err


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_death_while_the_problem_is_set_up_is_one_sentence_and_no_success(run, tmp_path, rank):
    ended = run("setup_kills", tmp_path / "s.h5", ranks=2, ft=True, DIES=rank)
    sentences = {
        "0": "rank 0 has died; ",  # its worker leaves, or hears of it in what the ranks do together: both say so
        "1": "lossmap: rank 1 has died; what has been measured is safe: run the same command again to go on",
    }
    assert ended.code == 70 and sentences[rank] in ended.err and "Traceback" not in ended.err


@pytest.mark.parametrize("ft", [True, False])
def test_ranks_that_hang_while_the_problem_is_set_up_end_the_job_with_one_sentence(run, ft):
    ended = run("setup_hangs", 1, 2, ft=ft, LOSSMAP_SETUP_TIMEOUT="1.5")
    assert ended.code == 70 and not ended.out, ended.err
    said = [line for line in ended.err.splitlines() if line.startswith("lossmap: ")]
    assert 1 <= len(said) <= 2, ended.err  # two where the launcher, on a busy machine, is slow to end the other
    for sentence in said:
        assert re.match(
            r"lossmap: rank [12] on \S+ has done nothing for \d+ s at setup_hangs.py, line 17, in net, ", sentence
        )


def test_a_point_that_kills_every_rank_fails_and_the_others_are_read(run, tmp_path, undisturbed):
    ended = run("one_point_kills", tmp_path / "s.h5", ranks=5, ft=True)
    assert (ended.told["outcome"], ended.told["failed"]) == ("failed", 1)
    surface = read(tmp_path / "s.h5")
    assert "3 ranks were lost while they measured this point" in surface.failures[0].text
    rest = surface.status["loss"] == 1
    assert np.array_equal(surface["train_loss"][rest], undisturbed["train_loss"][rest])


def test_when_all_workers_have_died_rank_0_continues_alone(run, tmp_path):
    ended = run("one_point_kills", tmp_path / "s.h5", ranks=2, ft=True)
    assert ended.told["outcome"] == "complete", ended.err
    assert "no other rank is left; rank 0 goes on alone" in ended.told["notes"]
    assert ended.told["ranks"][0] == 0


@pytest.mark.parametrize("ranks", [0, 2, 3])
def test_a_point_that_raises_is_tried_elsewhere_and_then_fails(run, tmp_path, undisturbed, ranks):
    ended = run("one_point_raises", tmp_path / "s.h5", ranks=ranks)
    surface = read(tmp_path / "s.h5")
    assert (ended.code, ended.told["failed"], ended.told["outcome"]) == (3, 1, "failed")
    (failure,) = surface.failures
    assert failure.index == 0 and failure.reason == "ArithmeticError: no loss at this corner"
    assert failure.host == os.uname().nodename and "in __call__" in failure.text
    tried = [note for note in ended.told["notes"] if note.startswith("point 0 failed on rank")]
    assert len(tried) == 2 and "it is tried once more" in tried[0]
    if ranks:
        assert tried[0].split()[5] != tried[1].split()[5]
    corner = surface["train_loss"][0, -1], surface.status["loss"][0, -1]
    assert corner == (undisturbed["train_loss"][0, -1], 1)


def test_nan_and_infinity_are_results(run, tmp_path):
    run("one_point_raises", tmp_path / "s.h5", ranks=2)
    surface = read(tmp_path / "s.h5")
    assert surface.status["loss"][-1, 0] == 1
    assert np.isnan(surface["train_loss"][-1, 0]) and surface["train_acc"][-1, 0] == np.inf


def test_a_rank_without_memory_makes_its_batches_smaller_and_continues(run, tmp_path, undisturbed):
    ended = run("memory_runs_out", tmp_path / "s.h5", ranks=2)
    told = ended.told
    assert (told["outcome"], told["failed"], told["ranks"]) == ("failed", 1, [0, 1])
    notes = read(tmp_path / "s.h5").attributes["loss_notes"].splitlines()
    assert any("rank 1 on" in n and "batches of 2 from here on" in n for n in notes), notes
    assert any("batches of 1 from here on" in n and "can't allocate memory" in n for n in notes), notes
    assert read(tmp_path / "s.h5").failures[0].index == 0


@pytest.mark.parametrize(("seconds", "ft"), [(1.2, False), (600, True), (600, False)])
def test_a_stuck_rank_is_reported_and_its_point_dispatched_again(run, tmp_path, undisturbed, seconds, ft):
    ended = run("a_rank_is_stuck", tmp_path / "s.h5", seconds, 1, ft=ft)
    assert ended.told["outcome"] == "complete"
    assert any("rank 1 on" in n and "has not answered for 0.5 s at point" in n for n in ended.told["notes"])
    assert same_bits(read(tmp_path / "s.h5"), undisturbed)


def test_rank_0_that_is_stuck_ends_the_job_once_the_others_have_done_its_point(run, tmp_path, undisturbed):
    ended = run("a_rank_is_stuck", tmp_path / "s.h5", 600, 0, ft=True)
    assert (ended.code, ended.out) == (75, "")
    assert ended.err.count("lossmap:") == 1 and "rank 1" not in ended.err
    assert "rank 0 on " in ended.err and "all points are settled by now" in ended.err
    again = run("a_rank_is_stuck", tmp_path / "s.h5", 600, 0)
    assert (again.code, again.told["outcome"], again.told["measured"]) == (0, "complete", 0)
    assert same_bits(read(tmp_path / "s.h5"), undisturbed)


def test_a_point_that_hangs_a_process_alone_has_failed_and_the_next_attempt_goes_on(run, tmp_path):
    ended = run("a_rank_is_stuck", tmp_path / "s.h5", 600, 0, ranks=0)
    assert (ended.code, ended.out) == (75, "")
    (sentence,) = ended.err.splitlines()
    assert sentence.startswith("lossmap: a point has not ended within 0.5 s (--point-timeout), and has failed by that")
    assert read(tmp_path / "s.h5").counts("loss") == {"done": 2, "failed": 1, "left": 153}
    again = run("undisturbed", tmp_path / "s.h5", ranks=0)
    assert (again.code, again.told["done"], again.told["failed"]) == (3, 155, 1)
    assert "has not answered for 0.5 s at point 2 (--point-timeout)" in read(tmp_path / "s.h5").failures[0].text


def test_a_point_during_which_the_job_is_suspended_has_not_failed(run, tmp_path):
    ended = run("a_job_is_suspended", tmp_path / "s.h5", ranks=0)
    assert (ended.code, ended.told["outcome"], ended.told["failed"]) == (0, "complete", 0)


def test_rank_0_that_is_stuck_ends_the_job_where_mpi_allows_no_threads(run, tmp_path, undisturbed):
    ended = run("a_rank_is_stuck", tmp_path / "s.h5", 600, 0, ranks=2, LOSSMAP_MPI_THREADS="funneled")
    assert ended.code != 0 and ended.err.count("lossmap: a point has not ended within 0.5 s (--point-timeout)") == 1
    again = run("undisturbed", tmp_path / "s.h5", ranks=2, LOSSMAP_MPI_THREADS="funneled")
    assert (again.told["outcome"], again.told["failed"]) == ("failed", 1)


def test_a_full_disk_is_one_message_and_loses_nothing(run, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here without being root")
    try:
        ended = run("the_disk_fills", disk / "s.h5", ranks=2)
        assert "is full" in ended.err and "Traceback" not in ended.err
        before = read(disk / "s.h5").counts("loss")["done"]
        assert before >= 10
        (disk / "ballast").unlink()
        again = run("undisturbed", disk / "s.h5", 0, "auto", 40, ranks=2)
        assert again.told["outcome"] == "complete"
    finally:
        subprocess.run(["umount", disk], check=True)


def test_signals_in_a_storm_stop_in_good_order(tmp_path, undisturbed):
    chance = random.Random(0)
    started = Run(tmp_path, "undisturbed", tmp_path / "s.h5", 0.05)
    until = time.monotonic() + 20
    while time.monotonic() < until and not (tmp_path / "s.h5.journal").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    for _ in range(60):
        for rank, pid in started.ranks().items():
            if chance.random() < 0.5 or rank == 1:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, chance.choice([signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP]))
        time.sleep(0.005)
    ended = started.ended()
    assert ended.told["outcome"] == "unfinished" and ended.told["left"] > 20
    assert ended.code == 75
    again = Run(tmp_path, "undisturbed", tmp_path / "s.h5").ended()
    assert again.told["outcome"] == "complete" and again.told["measured"] < 13 * 12
    assert same_bits(read(tmp_path / "s.h5"), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_one_worker_stops_all(tmp_path, number):
    started = Run(tmp_path, "undisturbed", tmp_path / "s.h5", 0.05)
    while 2 not in (ranks := started.ranks()) or not (tmp_path / "s.h5.journal").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(ranks[2], number)
    ended = started.ended()
    assert ended.code == 75
    assert ended.told["asked"] == f"{number.name} on rank 2"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_time_ends_at_once(tmp_path, number, code):
    started = Run(tmp_path, "undisturbed", tmp_path / "s.h5", 30, ranks=0)
    while not (tmp_path / "s.h5.journal").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    for pause in (0.1, 1.1, 0):
        assert started.process.poll() is None
        os.kill(started.process.pid, number)
        time.sleep(pause)
    assert started.ended(5).code == code
    assert read(tmp_path / "s.h5").outcome == "unfinished"


@pytest.mark.parametrize("ranks", [0, 3])
def test_points_in_progress_are_taken_up_again_where_they_were_left(run, tmp_path, ranks):
    left = 0
    for _ in range(20):
        ended = run("points_are_left", tmp_path / "s.h5", 13, ranks=ranks)
        left += ended.err.count("leaves at step")
        if ended.code == 0:
            break
        assert ended.code == 75, ended.err
    assert ended.told["outcome"] == "complete" and left > 1
    exact = sum(1 / (i + 1) for i in range(20))
    assert (read(tmp_path / "s.h5")["train_acc"] == exact).all()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_teams_of_any_size_give_the_same_sums(run, size):
    ended = run("shares", size, ranks=6 if size == 3 else 2 * size)
    told = ended.told
    numbers = np.random.default_rng(1).integers(-1000, 1000, size=1001).astype(float)
    points = np.arange(-10.0, 11.0)
    assert ended.code == 0
    assert told["train_loss"] == [(x * numbers).sum() / 1001 for x in points]
    assert told["ranks"] == [0, size]
    vector = np.arange(200.0) * numbers.sum()
    assert told["test_loss"] == [float(vector @ vector)] * 21


@pytest.mark.slow
def test_the_losses_of_a_net_are_equal_however_its_samples_are_shared(run):
    alone, shared = run("shares_of_torch", 1, ranks=0).told, run("shares_of_torch", 3, ranks=3).told
    assert np.allclose(shared["loss"], alone["loss"], rtol=1e-13, atol=0)
    assert np.allclose(shared["acc"], alone["acc"], rtol=1e-13, atol=0)


def test_a_member_that_raises_fails_the_point_and_hangs_nobody(run):
    told = run("shares", 3, "raises", ranks=6).told
    assert told["outcome"] == "failed"
    ((index, text),) = told["failures"]
    assert index == 10 and "on rank 2 of the team" in text and "only this member sees it" in text


def test_members_that_sum_different_things_fail_the_point(run):
    told = run("shares", 2, "uneven", ranks=2).told
    ((index, text),) = told["failures"]
    assert index == 10 and text == "the ranks of a team sum different things, of [3, 2] numbers"


def test_a_member_without_memory_makes_the_batches_of_its_team_smaller(run):
    told = run("shares", 2, "memory", ranks=2).told
    assert told["outcome"] == "complete" and told["batch"] == 1
    assert [note.partition(" on ")[0] for note in told["notes"]] == ["rank 1", "rank 1"]
    assert all("MemoryError" in n and f"batches of {b}" in n for n, b in zip(told["notes"], (2, 1), strict=True))


def test_a_death_in_a_team_ends_the_team_and_its_point_is_dispatched_again(run):
    told = run("shares", 2, "killed", ranks=4, ft=True).told
    assert told["outcome"] == "complete"
    assert any("rank 3" in note and "has died" in note for note in told["notes"])


def test_what_ranks_do_together_at_the_start(run):
    lines = run("together", ranks=3).out.splitlines()
    node = [eval(line) for line in lines]
    by_name = {}
    for rank, told in enumerate(node):
        by_name.setdefault(told[0], []).append(told[1:])
        assert rank % 3 == len(by_name[told[0]]) - 1
    total = int(np.arange(100_000).sum())
    assert by_name["read"] == [(1, total), (0, total), (0, total)]
    assert by_name["broadcast"] == [("from 0",)] * 3
    assert by_name["sum"] == [(6, [1.5, 1.5, 1.5])] * 3
    assert by_name["together"] == [(0,), (1,), (2,)]
    assert by_name["first fails"][0] == ("FileNotFoundError: no such checkpoint",)
    assert by_name["first fails"][1] == ("ValueError: no such checkpoint",)
    assert "rank 2 on" in by_name["last fails"][0][0] and "KeyError: 'lost'" in by_name["last fails"][0][0]
    assert by_name["last fails"][2] == ("KeyError: 'lost'",)
    assert all("the disk is gone" in told[0] for told in by_name["node fails"])
    assert by_name["same"] == [(None,)] * 3
    differ = "the directions differ between the ranks: xyz on rank 0, abc on rank 1"
    assert all(differ in told[0] for told in by_name["other"])
    assert [told[:2] for told in by_name["node"]] == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize(("ranks", "environment"), [(3, {}), (2, {"ft": True, "DIES": "0"})])
def test_an_error_that_nobody_catches_ends_all_ranks(run, ranks, environment):
    ended = run("nobody_catches", ranks=ranks, **environment)
    assert ended.code == 1
    assert "rank 1 on" in ended.err and "a fault of the program's own" in ended.err


def test_surveys_may_follow_one_another_and_ranks_come_late(run):
    every = run("many_surveys").told
    assert every == [[["complete", 25], ["complete", 25], ["complete", 2], ["complete", 25]]] * 3


def test_a_rank_that_never_says_goodbye_leaves_no_other_waiting_for_ever(run):
    ended = run("stuck_at_the_end", ranks=4, ft=True)
    assert sorted(ended.out.split("\n")) == ["", "rank 0 leaves", "rank 1 leaves"]


@pytest.mark.parametrize("kind", ["dead", "stuck"])
def test_the_others_go_on_with_further_surveys_after_a_rank_is_gone(run, kind):
    told = run("after_a_death", kind, ranks=4, ft=True).told
    assert told == ["complete", "complete", "go on", [2], [0, 1, None, 3], [4.5, 7, 8]]


def test_ranks_die_with_their_launcher(tmp_path):
    started = Run(tmp_path, "undisturbed", tmp_path / "s.h5", 0.5)
    while len(ranks := started.ranks()) < 3 or not (tmp_path / "s.h5.journal").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    started.process.kill()
    until = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in ranks.values()):
        assert time.monotonic() < until, "ranks were left behind"
        time.sleep(0.05)
    assert started.ended().code == -signal.SIGKILL


@pytest.mark.parametrize("ranks", [0, 2])
def test_every_rank_gets_the_surface_that_the_readme_prints_and_draws(run, tmp_path, ranks):
    ended = run("readme_snippet", tmp_path, ranks=ranks)
    assert ended.code == 0, ended.err
    assert ended.out.count("Surface of 3 x 3 points") == max(ranks, 1)
    assert len(set(re.findall(r"loss .*", ended.out))) == 1
    assert sorted(p.name for p in tmp_path.glob("*.pdf")) == [f"surface-{rank}.pdf" for rank in range(max(ranks, 1))]


def test_every_rank_holds_the_same_values(run):
    everywhere, statuses = run("every_rank_has_the_surface").told
    assert len(everywhere) == 3 and all(one == everywhere[0] for one in everywhere)
    assert everywhere[0]["outcome"] == "failed" and everywhere[0]["failures"] == [[0, "ArithmeticError: no loss"]]
    assert [sorted(one["fields"]) for one in statuses] == [everywhere[0]["fields"], [], []]
    assert all(one["outcome"] == "failed" and one["counts"] == everywhere[0]["counts"] for one in statuses)


def test_an_error_of_the_store_is_raised_on_every_rank(run):
    assert run("the_store_raises").told == [["OSError", "the store is full"]] * 3


@pytest.mark.parametrize(("ranks", "team"), [(3, 1), (2, 2)])
def test_a_loss_that_changes_on_one_rank_is_known_to_all(run, ranks, team):
    each = run("a_loss_that_changes", team, ranks=ranks).told
    assert len(each) == ranks and all(outcomes == ["complete", "failed"] for *outcomes, _ in each)
    assert len({sentence for *_, sentence in each}) == 1 and "the loss changed during the run" in each[0][2]


def test_survivors_of_a_death_hold_the_same_values(run):
    told = run("every_rank_has_the_surface", "dies", ranks=4, ft=True).told
    here, gone = told[0][0], told[0][2]
    assert gone is None and all(one == here for one in (told[0][1], told[0][3]))
    assert here["outcome"] == "failed" and len(here["sum"]) == 16
