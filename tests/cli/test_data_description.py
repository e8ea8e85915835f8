"""What `--dry-run` says of data: the numbers are those of the tensors."""

from collections import UserDict, namedtuple

import torch

from lossmap.cli.data_description import description_of
from lossmap.data.batch_structure import open_batch
from lossmap.data.batches import FixedBatches, Resident, Streamed
from lossmap.data.loaders import as_batches


def test_inputs_and_targets_of_samples_in_memory():
    x = torch.stack([torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 2.0), torch.ones(2, 3)])
    assert description_of(Resident((x, torch.tensor([0, 1, 1, 4])), 2)) == [
        "4 samples",
        "inputs: float32, 2 x 3 each, 0 to 2, mean 1, standard deviation 0.7071",
        "targets: int64, 3 classes, 0 to 4, 1 to 2 of each",
    ]


def test_pairs_that_a_loader_makes_lists_of_are_inputs_and_targets():
    samples = torch.utils.data.TensorDataset(torch.zeros(4, 3), torch.tensor([0, 1, 1, 4]))
    lines = description_of(as_batches(torch.utils.data.DataLoader(samples, 2)))
    assert [line.partition(":")[0] for line in lines] == ["4 samples", "inputs", "targets"]


def test_dicts_regression_and_complex_numbers():
    lines = description_of(
        Resident({"ids": torch.arange(6).view(2, 3), "z": torch.zeros(2, 4, dtype=torch.complex64)}, 2)
    )
    assert lines == ["2 samples", "ids: int64, 3 each, 0 to 5", "z: complex64, 4 each"]
    (_, single) = description_of(Resident(torch.tensor([1.0, 3.0]), 2))
    assert single.endswith("float32, 1 to 3, mean 2, standard deviation 1")


def test_streams_and_batches_as_given_are_described_by_their_first_batch():
    streamed = Streamed(lambda rows: (torch.ones(len(rows), 2), torch.zeros(len(rows), dtype=torch.int64)), range(9), 4)
    assert description_of(streamed)[0] == "9 samples, read as they are needed"
    assert description_of(streamed)[2] == "targets: int64, 1 class, 0 to 0, 4 of each in the first batch"
    given = FixedBatches(((torch.ones(3, 2), "left", torch.arange(3)), (torch.ones(5, 2), "right", torch.arange(5))))
    assert description_of(given)[0] == "2 batches as given, never cut; 8 samples"
    assert description_of(given)[1].startswith("batch[0]: float32, 2 each")


def test_the_parts_of_a_batch_are_no_inputs_and_targets_where_the_loss_is_of_model_and_batch():
    given = FixedBatches(((torch.linspace(0, 1, 16)[:, None], torch.tensor([[0.0], [1.0]])),))
    head, *lines = description_of(given, of_pairs=False)
    assert head == "1 batch as given, never cut; 1 sample"
    assert [line.partition(":")[0] for line in lines] == ["batch[0]", "batch[1]"]


class Graph:
    """As a user has it."""

    def __init__(self, nodes):
        self.nodes = torch.zeros(nodes, 2)


class Entries(dict):
    """A dict of a class of its own."""


Pair = namedtuple("Pair", "x y")


def test_parts_of_objects_and_mappings_of_any_class_have_their_names():
    x = torch.ones(3, 2)
    for batch, names in (
        ([Graph(3), Graph(4)], ["batch[0].nodes", "batch[1].nodes"]),
        (UserDict(ids=x), ["ids"]),
        (Entries(ids=x), ["ids"]),
        (Pair(x, x[:2]), ["batch.x", "batch.y"]),
    ):
        _, *lines = description_of(FixedBatches((open_batch(batch),)))
        assert [line.partition(":")[0] for line in lines] == names
    many = description_of(FixedBatches((open_batch([Graph(n) for n in range(1, 21)]),)))
    assert len(many) == 14 and many[-1] == "and 8 tensors more"
