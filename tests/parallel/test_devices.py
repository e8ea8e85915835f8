"""Which GPU a rank takes, tested where there is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossmap.cli import device
from lossmap.cli.setting_groups import RunSettings
from lossmap.cli.surface import COMMAND
from lossmap.parallel.devices import assign_devices, device_for, node_rank, visible_devices

ALL = ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, (0, 1)),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "SLURM_LOCALID": "0"}, (2, 4)),
        ({"MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, (1, 2)),
        ({"SLURM_LOCALID": "3", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, (3, 4)),
        ({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "2,1"}, (0, 2)),
        ({"SLURM_LOCALID": "1"}, (1, 2)),
        ({"PALS_LOCAL_RANKID": "1"}, (1, 2)),
    ],
)
def test_the_place_on_the_node_is_read_from_the_launcher_and_slurms_comes_last(environ, place):
    assert node_rank(environ) == place


@pytest.mark.parametrize(
    ("environ", "count", "names"),
    [
        ({}, 2, ("0", "1")),
        ({"CUDA_VISIBLE_DEVICES": "3, 1"}, 2, ("3", "1")),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, ()),
        ({"CUDA_VISIBLE_DEVICES": "GPU-5f,GPU-6a,GPU-7b"}, 2, ("GPU-5f", "GPU-6a")),
    ],
)
def test_cuda_visible_devices_is_respected(environ, count, names):
    assert visible_devices(environ, count) == names


def test_ranks_that_see_all_gpus_divide_them():
    assert assign_devices([ALL] * 4) == [0, 1, 2, 3]


def test_ranks_that_see_one_gpu_each_take_it():
    assert assign_devices([("0",), ("1",), ("2",), ("3",)]) == [0, 0, 0, 0]


def test_a_rank_moves_over_for_one_that_sees_less():
    assert assign_devices([("0", "1"), ("0",)]) == [1, 0]


def test_a_rank_that_needs_no_gpu_takes_none():
    assert assign_devices([(), ALL, ALL]) == [-1, 0, 1]
    assert device_for([(), ALL], 0) == "cpu" and device_for([(), ALL], 1) == "cuda:0"


def test_two_ranks_share_a_gpu_only_on_request():
    with pytest.raises(ValueError, match=r"3 ranks on this node need a GPU, and it has 2 GPUs: .* --ranks-per-gpu 2"):
        assign_devices([("0", "1")] * 3)
    assert sorted(assign_devices([("0", "1")] * 3, per_gpu=2)) in ([0, 0, 1], [0, 1, 1])


def test_ranks_take_gpus_by_the_settings_of_a_run_one_each_if_nothing_is_said():
    here = [("0", "1")] * 2
    assert [device.device_of(here, place, RunSettings()) for place in range(2)] == ["cuda:0", "cuda:1"]
    assert device.device_of([()], 0, RunSettings()) == "cpu"
    with pytest.raises(ValueError, match=r"2 ranks on this node need a GPU, and it has 1 GPU: .* --ranks-per-gpu 2"):
        device.device_of([("0",)] * 2, 1, RunSettings())
    two = COMMAND.parse(["--ranks-per-gpu", "2"]).run
    assert device.device_of([("0",)] * 2, 1, two) == "cuda:0"


@given(st.lists(st.lists(st.sampled_from(ALL), unique=True, min_size=1).map(tuple), max_size=8), st.integers(1, 3))
def test_no_device_is_taken_by_more_ranks_than_allowed(masks, per_gpu):
    try:
        chosen = assign_devices(masks, per_gpu)
    except ValueError:
        return
    taken = [masks[rank][place] for rank, place in enumerate(chosen)]
    assert all(taken.count(name) <= per_gpu for name in ALL)


def test_the_device_is_named_as_torch_names_it():
    masks = [("0", "1"), ("0", "1")]
    assert device_for(masks, 1) == "cuda:1"
    assert device_for(masks, 1, device="cpu") == "cpu"
    assert device_for(masks, 0, device="cuda") == "cuda:0"
    assert device_for(masks, 0, per_gpu=2, device="cuda:1") == "cuda:1"
    assert device_for([()], 0) == "cpu"


@pytest.mark.parametrize(
    ("masks", "asked", "text"),
    [
        ([()], "cuda", "--device cuda, but this rank sees no GPU"),
        ([("0",)], "cuda:1", "--device cuda:1, but this rank sees 1 GPU$"),
        ([("0",)], "gpu", "--device must be auto, cpu, cuda, or cuda:0, cuda:1 and so on; got 'gpu'"),
        ([("0",)], "cuda:x", "--device must be auto"),
        ([("0", "1")] * 2, "cuda:1", "--device cuda:1 puts 2 ranks on one GPU: .* --ranks-per-gpu 2"),
    ],
)
def test_a_device_that_cannot_be_had_is_one_message(masks, asked, text):
    with pytest.raises(ValueError, match=text):
        device_for(masks, 0, device=asked)
