"""Which GPU a rank takes, tested where there is none."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossmap.cli import device
from lossmap.cli.setting_groups import RunSettings
from lossmap.cli.surface import COMMAND
from lossmap.parallel.devices import (
    assign_devices,
    device_for,
    identities,
    node_rank,
    pci_address,
    shown_names,
    visible_devices,
)
from lossmap.parallel.world import World

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


@pytest.mark.parametrize(
    ("environ", "count", "names"),
    [
        ({}, 2, ("0", "1")),
        ({"ROCR_VISIBLE_DEVICES": "3"}, 1, ("3",)),
        ({"HIP_VISIBLE_DEVICES": "2,1", "CUDA_VISIBLE_DEVICES": "0"}, 2, ("2", "1")),
        ({"CUDA_VISIBLE_DEVICES": "5"}, 1, ("5",)),
        ({"ROCR_VISIBLE_DEVICES": "4,6,7", "HIP_VISIBLE_DEVICES": "2,0"}, 2, ("7", "4")),
        ({"ROCR_VISIBLE_DEVICES": "4,GPU-6a", "CUDA_VISIBLE_DEVICES": "1"}, 1, ("GPU-6a",)),
        ({"ROCR_VISIBLE_DEVICES": "4", "HIP_VISIBLE_DEVICES": ""}, 0, ()),
    ],
)
def test_the_two_masks_of_amds_gpus_are_read_one_within_the_other(environ, count, names):
    assert visible_devices(environ, count, rocm=True) == names


def test_masks_of_amds_gpus_say_nothing_of_nvidias():
    assert visible_devices({"ROCR_VISIBLE_DEVICES": "3", "HIP_VISIBLE_DEVICES": "1"}, 2) == ("0", "1")


def test_cards_of_one_uuid_are_told_apart_by_their_pci_addresses():
    cards = [SimpleNamespace(pci_domain_id=0, pci_bus_id=bus, pci_device_id=0) for bus in (0xC1, 0xC6)]
    addresses = [pci_address(card) for card in cards]
    assert addresses == ["0000:c1:00", "0000:c6:00"] and pci_address(SimpleNamespace(uuid="5f00")) is None
    for uuid in (None, "00000000-0000-0000", "58580000"):  # also that of all AMD's cards without a serial number
        masks = [identities(("0",), (uuid,), (address,)) for address in addresses]
        assert assign_devices(masks) == [0, 0]
        assert (
            len({name for names in shown_names([dict.fromkeys(m, "0") for m in masks]) for name in names.values()}) == 2
        )
        with pytest.raises(ValueError, match="it has 1 GPU"):
            assign_devices([masks[0], masks[0]])
    assert identities(("0",), (None,), (addresses[0],)) == ("PCI-0000:c1:00",)
    assert identities(("MIG-1",), ("5f00",), (addresses[0],)) == ("MIG-1",)


def test_a_gpu_is_told_by_its_uuid_whatever_a_rank_calls_it():
    assert identities(("0", "GPU-5f"), ("5f00", "6a00")) == ("GPU-5f00", "GPU-6a00")
    assert identities(("0",), ("GPU-5f00",)) == ("GPU-5f00",)
    assert identities(("0",), (None,)) == ("0",)
    assert identities(("MIG-1", "MIG-2"), ("5f00", "5f00")) == ("MIG-1", "MIG-2")


def test_four_tasks_that_each_see_their_own_gpu_as_0_take_four_cards():
    masks = [identities(("0",), (f"{card}f00",)) for card in range(4)]
    assert assign_devices(masks) == [0, 0, 0, 0]
    assert [device_for(masks, rank) for rank in range(4)] == ["cuda:0"] * 4


def test_one_card_under_two_names_counts_once():
    masks = [identities(("0",), ("5f00",)), identities(("GPU-5f00",), ("5f00",))]
    with pytest.raises(ValueError, match="2 ranks on this node need a GPU, and it has 1 GPU: "):
        assign_devices(masks)


def test_the_log_calls_gpus_by_number_only_where_a_number_is_one_card():
    assert shown_names([{"GPU-5f": "0", "GPU-6a": "1"}, {"GPU-6a": "1"}]) == [
        {"GPU-5f": "0", "GPU-6a": "1"}, {"GPU-6a": "1"}
    ]  # fmt: skip
    own = [{"GPU-5f000000-1111": "0"}, {"GPU-6a000000-2222": "0"}, {}]
    assert shown_names(own) == [{"GPU-5f000000-1111": "GPU-5f000000"}, {"GPU-6a000000-2222": "GPU-6a000000"}, {}]
    twice = [{"GPU-5f000000-1111": "0"}, {"GPU-5f000000-1111": "GPU-5f000000-1111"}]
    assert shown_names(twice) == [{"GPU-5f000000-1111": "GPU-5f000000"}] * 2


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
        ([("0",)], "gpu", "--device must be auto, cpu, cuda, xpu, mps, or cuda:0, cuda:1 and so on; got 'gpu'"),
        ([("0",)], "cuda:x", "--device must be auto"),
        ([("0", "1")] * 2, "cuda:1", "--device cuda:1 puts 2 ranks on one GPU: .* --ranks-per-gpu 2"),
    ],
)
def test_a_device_that_cannot_be_had_is_one_message(masks, asked, text):
    with pytest.raises(ValueError, match=text):
        device_for(masks, 0, device=asked)


class Ranks:
    """Worlds of several ranks in threads of one process, each of which sees the GPUs of its own mask."""

    def __init__(self, monkeypatch, masks, cards):
        self.here, self.masks = threading.local(), masks
        self.meeting, self.values = threading.Barrier(len(masks)), [None] * len(masks)
        self.current = [None] * len(masks)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(self.seen()))
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: self.current.__setitem__(self.here.rank, device))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: cards[self.seen()[device.index]])
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=self.seen()[i]))
        monkeypatch.setattr(device.devices, "visible_devices", lambda _, count, **kind: tuple(map(str, range(count))))
        monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)

    def seen(self):
        return self.masks[self.here.rank]

    def gather(self, value):
        self.values[self.here.rank] = value
        self.meeting.wait(20)
        values = list(self.values)
        self.meeting.wait(20)
        return values

    def machine(self, rank, run):
        """The rank's machine, or the sentence with which it ends."""
        self.here.rank = rank
        world = World()
        world.host, world.rank, world.size, world.crowding, world.gather = (
            "node",
            rank,
            len(self.masks),
            1.0,
            self.gather,
        )
        try:
            return device.prepare_machine(run, world)
        except (ValueError, RuntimeError) as error:
            return str(error)

    def machines(self, run):
        with ThreadPoolExecutor(len(self.masks)) as threads:
            return list(threads.map(lambda rank: self.machine(rank, run), range(len(self.masks))))


CARDS = {f"{card}f000000-1111": kind for card, kind in enumerate(["H100", "H100", "H200"])}


def test_each_rank_computes_on_its_own_card_where_each_sees_it_as_number_0(monkeypatch):
    ranks = Ranks(monkeypatch, [[uuid] for uuid in CARDS], CARDS)
    machines = ranks.machines(RunSettings(rank_0="computes"))
    assert [str(machine.device) for machine in machines] == ["cuda:0"] * 3 == list(map(str, ranks.current))
    assert [machine.ranks_sharing for machine in machines] == [1, 1, 1]
    told = "computing on H100 (2 ranks), H200 (1 rank): node GPU GPU-0f000000 GPU-1f000000 GPU-2f000000; "
    assert all(machine.sentence().startswith(told) for machine in machines)


def test_a_card_for_too_many_ranks_ends_all_of_them_also_that_which_only_dispatches(monkeypatch):
    one = next(iter(CARDS))
    ranks = Ranks(monkeypatch, [[one]] * 3, CARDS)
    told = ranks.machines(RunSettings(rank_0="deals"))
    assert all("2 ranks on this node need a GPU, and it has 1 GPU: start fewer ranks" in text for text in told)
    assert ranks.current == [None] * 3
    machines = ranks.machines(RunSettings(rank_0="deals", ranks_per_gpu=2))
    assert [str(machine.device) for machine in machines] == ["cpu", "cuda:0", "cuda:0"]
    assert [machine.ranks_sharing for machine in machines] == [1, 2, 2]


def test_a_driver_that_fails_on_one_rank_ends_all_of_them(monkeypatch):
    ranks = Ranks(monkeypatch, [[uuid] for uuid in CARDS], CARDS)
    properties = torch.cuda.get_device_properties

    def fails(i):
        if ranks.here.rank == 1:
            raise RuntimeError("CUDA unknown error")
        return properties(i)

    monkeypatch.setattr(torch.cuda, "get_device_properties", fails)
    told = ranks.machines(RunSettings(rank_0="computes"))
    assert told[0] == told[2] == "rank 1 on node: RuntimeError: CUDA unknown error"


@pytest.mark.parametrize(
    ("device", "reason"), [("mps", "it is for Apple's"), ("xpu:1", "look at ZE_AFFINITY_MASK and")]
)
def test_gpus_of_every_kind_that_are_not_there_are_missed_by_name(device, reason):
    with pytest.raises(ValueError, match=f"--device {device}, but this rank sees no GPU: {reason}"):
        device_for([()], 0, 1, device)


def test_the_kind_of_gpu_that_is_there_is_taken():
    masks = [("GPU-a", "GPU-b")] * 2
    assert [device_for(masks, rank, kind="xpu") for rank in (0, 1)] == ["xpu:0", "xpu:1"]
    assert device_for(masks, 1, device="xpu", kind="xpu") == "xpu:1"
    assert device_for([("0",)], 0, device="mps", kind="mps") == "mps:0"


@pytest.mark.parametrize(
    ("environ", "count", "names"),
    [
        ({}, 2, ("0", "1")),
        ({"ZE_AFFINITY_MASK": "3,1"}, 2, ("1", "3")),  # devices keep their own order
        ({"ZE_AFFINITY_MASK": "1.0, 1.1"}, 2, ("1.0", "1.1")),  # each tile is a device
        ({"ZE_AFFINITY_MASK": "0.0,0.1,2.1"}, 2, ("0.0+0.1", "2.1")),  # each card is one
        ({"ZE_AFFINITY_MASK": "2,5,7", "ONEAPI_DEVICE_SELECTOR": "level_zero:0,2"}, 2, ("2", "7")),
        ({"ONEAPI_DEVICE_SELECTOR": "*:1"}, 1, ("1",)),
        ({"ONEAPI_DEVICE_SELECTOR": "opencl:cpu", "ZE_AFFINITY_MASK": "4"}, 1, ("4",)),
        ({"CUDA_VISIBLE_DEVICES": "7"}, 1, ("0",)),
    ],
)
def test_the_masks_of_intels_gpus_are_read(environ, count, names):
    assert visible_devices(environ, count, kind="xpu") == names
