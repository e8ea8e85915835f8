"""Worlds and teams in one process; those of several ranks are tested as programs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lossmap.parallel import world as world_module
from lossmap.parallel.launcher import arrange_teams, check_size, launched
from lossmap.parallel.messages import WorkerLost
from lossmap.parallel.mpi_channel import MpiChannel
from lossmap.parallel.team import PeerFailed, Team
from lossmap.parallel.world import World
from lossmap.parallel.world_exit import finalize


def test_one_rank_alone_needs_no_mpi():
    script = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "from lossmap.parallel.world import Team, World\n"
        "world = World.start()\n"
        "assert (world.rank, world.size, world.team(1).size, Team.alone().sum(3)) == (0, 1, 1, 3)\n"
    )
    environ = {"PATH": "/usr/bin"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environ, cwd=Path(world_module.__file__).parents[2])


def test_alone_everything_is_what_it_was():
    world, team = World(), Team.alone()
    tensor = torch.arange(3.0)
    assert team.sum(tensor) is tensor and world.sum(2) == 2
    assert team.agreed(bool) is bool
    assert team.any(True) and not team.any(False) and team.settle(3) == 3 and team.leads
    assert world.broadcast("x") == "x" == team.broadcast("x")
    assert world.gather(1) == [1] == team.gather(1)
    assert world.together(lambda: 5) == 5 == world.once_per_node(lambda: 5)
    assert world.check_same("abc") is None
    assert world.dead() == frozenset() and world.leave(3) == 3
    with world as same:
        assert same is world


def test_alone_errors_are_raised_as_they_are():
    def fails():
        raise KeyError("as it is")

    for together in (World().together, World().once_per_node):
        with pytest.raises(KeyError, match="as it is"):
            together(fails)


@pytest.mark.parametrize(
    ("size", "team", "rank_0", "teams"),
    [
        (1, 1, "auto", [(0,)]),
        (3, 1, "auto", [(0,), (1,), (2,)]),
        (3, 1, "deals", [(1,), (2,)]),
        (4, 2, "auto", [(0, 1), (2, 3)]),
        (5, 2, "auto", [(1, 2), (3, 4)]),
        (5, 2, "deals", [(1, 2), (3, 4)]),
        (6, 3, "computes", [(0, 1, 2), (3, 4, 5)]),
    ],
)
def test_ranks_are_arranged_in_teams(size, team, rank_0, teams):
    assert arrange_teams(size, team, rank_0) == teams


def test_rank_0_only_dispatches_where_there_are_many_ranks():
    assert arrange_teams(32)[0] == (0,) and arrange_teams(33)[0] == (1,)


@pytest.mark.parametrize(
    ("size", "team", "rank_0", "text"),
    [
        (5, 3, "auto", "teams of 3 do not divide 5 computing ranks; start 3 or 6 ranks in all"),
        (
            5,
            3,
            "deals",
            r"teams of 3 do not divide 4 computing ranks \(rank 0 only dispatches\); start 4 or 7 ranks",
        ),
        (1, 2, "auto", "teams of 2 do not divide 1 computing ranks; start 2 ranks in all"),
        (4, 0, "auto", "a team must have at least one rank; got 0"),
        (4, 1, "sleeps", "--rank-0 must be computes, deals or auto; got 'sleeps'"),
        (1, 1, "deals", "--rank-0 deals needs a second rank to compute; there is one rank"),
    ],
)
def test_an_arrangement_that_cannot_be_names_the_nearest_that_can(size, team, rank_0, text):
    with pytest.raises(ValueError, match=text):
        arrange_teams(size, team, rank_0)


@pytest.mark.parametrize(
    ("environ", "ranks"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
        ({"PMI_SIZE": "3"}, 3),
        ({"SLURM_STEP_NUM_TASKS": "8"}, 8),
        ({"SLURM_NTASKS": "8"}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2"}, 1),
    ],
)
def test_a_launcher_is_known_by_its_variables(environ, ranks):
    assert launched(environ) == ranks


def test_tasks_that_see_only_themselves_are_an_error():
    with pytest.raises(ValueError, match=r"srun started 4 tasks, but MPI sees one rank: .* srun --mpi="):
        check_size(1, {"SLURM_STEP_NUM_TASKS": "4"})
    check_size(1, {"SLURM_STEP_NUM_TASKS": "1"})
    check_size(4, {"SLURM_STEP_NUM_TASKS": "4"})
    check_size(1, {"SLURM_STEP_NUM_TASKS": "2", "OMPI_COMM_WORLD_SIZE": "1"})


@pytest.mark.parametrize(("variable", "launcher"), [("PMI_SIZE", "MPICH"), ("OMPI_COMM_WORLD_SIZE", "Open MPI")])
def test_an_mpirun_of_another_mpi_than_that_of_mpi4py_is_an_error(variable, launcher):
    with pytest.raises(ValueError, match=rf"the mpirun of {launcher}.* started 4 ranks, .* mpi4py uses Some MPI here"):
        check_size(1, {variable: "4"}, "Some MPI")
    check_size(4, {variable: "4"})
    check_size(1, {variable: "1"})


def test_a_launcher_without_mpi4py_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setattr(world_module, "_world", None)
    with pytest.raises(ImportError, match=r"a launcher started 4 ranks, but mpi4py is not installed .*lossmap\[mpi\]"):
        World.start(environ={"OMPI_COMM_WORLD_SIZE": "4"})


def test_a_team_of_several_ranks_needs_its_world():
    class Two:
        rank, size = 0, 2

    with pytest.raises(ValueError, match="a team of several ranks needs the channel of its world"):
        Team(comm=Two()).sum(1.0)


class Pair:
    """A communicator of two ranks, of which this is the first; the other says what `other` does."""

    rank, size = 0, 2

    def __init__(self, other):
        self.other = other

    def Iallgather(self, mine, heads):
        heads[0], heads[1] = mine, self.other

    def Iallreduce(self, _, result):
        result *= 2


class Waiting:
    class mpi:
        IN_PLACE = None

    def wait(self, request, ranks=None):
        pass


def pair(code=0.0, size=0.0, *numbers):
    head = np.zeros(32)
    head[:2] = code, size
    head[2 : 2 + len(numbers)] = numbers
    return Team(Waiting(), Pair(head), (0, 1))


def test_small_sums_travel_in_one_message_and_large_ones_by_another():
    assert pair(0, 2, 10.0, 20.0).sum(np.array([1.0, 2.0])).tolist() == [11.0, 22.0]
    assert pair(0, 1, 10.0).sum(1.0) == 11.0
    assert pair(0, 40).sum(np.ones(40)).tolist() == [2.0] * 40
    assert pair(0, 3).sum(np.array([1, 2, 3])).tolist() == [2, 4, 6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bfloat16, torch.float16])
def test_tensors_of_every_kind_are_summed_and_come_back_as_they_were(dtype):
    for shape in ((), (3,), (5, 8)):
        value = torch.ones(shape, dtype=dtype)
        numbers = [1.0] * value.numel() if dtype == torch.float64 else []
        total = pair(0, value.numel(), *numbers[:30]).sum(value)
        assert total.dtype == dtype and total.shape == value.shape and (total == 2).all() and (value == 1).all()


def test_a_stop_is_agreed_by_the_whole_team():
    assert pair(0, 1, 1.0).agreed(lambda: False)() and not pair(0, 1, 0.0).agreed(lambda: False)()


def test_a_member_that_has_raised_makes_the_others_fall():
    with pytest.raises(PeerFailed, match="another rank of the team could not go on") as caught:
        pair(3.0).sum(1.0)
    assert caught.value.code == 3 and caught.value.reason is None
    assert pair(2.0).settle(1) == 2 and pair(0.0, -1.0).settle(0) == 0


def test_members_that_disagree_about_what_comes_next_fall():
    with pytest.raises(PeerFailed, match=r"sum different things, of \[1, 2\] numbers"):
        pair(0.0, 2.0).sum(1.0)
    with pytest.raises(PeerFailed, match="disagree about what comes next: one sums, another has finished"):
        pair(0.0, 2.0).settle(0)


class Silence:
    """A channel on which nobody answers; rank 2 has died."""

    rank, size, collectives = 0, 3, 0

    def receive(self):
        return None

    def dead(self):
        return frozenset({2})


def test_who_dies_after_the_first_death_is_not_waited_for():
    world = World()
    world.channel, world.size, world.dead_ranks = Silence(), 3, frozenset({1})
    with pytest.raises(WorkerLost, match="rank 2 has died"):
        world.gather("here")


class ProcessFailed(Exception):
    """As mpi4py's, with the class of a failed process."""

    def Get_error_class(self):
        return self.args[0]


@pytest.fixture
def channel():
    class Mpi:
        Exception = ProcessFailed

    channel = object.__new__(MpiChannel)
    channel.mpi, channel._failure_classes, channel.rank, channel.size, channel.meanwhile = Mpi, {75}, 0, 3, None
    channel.tolerant, channel._dead, _last_check = False, frozenset({2}), 0.0
    return channel


def test_a_collective_without_one_of_its_ranks_is_given_up(channel):
    class Never:
        def Test(self):
            return False

    class Failing:
        def __init__(self, kind):
            self.kind = kind

        def Test(self):
            raise ProcessFailed(self.kind)

    with pytest.raises(WorkerLost, match="rank 2 has died"):
        channel.wait(Never())
    with pytest.raises(WorkerLost, match="rank 2 has died"):
        channel.wait(Failing(75))
    with pytest.raises(WorkerLost, match=r"rank \? has died"):
        channel.wait(Failing(75), ranks=[0, 1])
    with pytest.raises(ProcessFailed):
        channel.wait(Failing(3))


def test_a_death_while_the_others_end_mpi_is_no_error_of_theirs(channel, monkeypatch):
    """Open MPI's MPI_Finalize failed so in 2 of 699 jobs with kills: the survey was complete by then."""
    left = []

    def failing():
        raise ProcessFailed(75)

    channel.mpi.Finalize = failing
    monkeypatch.setattr("os._exit", left.append)
    finalize(channel, 3)
    assert left == [3]
