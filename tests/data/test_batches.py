"""Batches: any cut and any shares hold the same samples in the same order."""

from itertools import chain, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from lossmap.data.batches import Resident, Streamed, join_batches, move_batch, read_into_memory, shared_range
from lossmap.data.sample_count import samples_in


def resident(samples, size=4):
    x = torch.arange(float(samples))
    return Resident((torch.stack([x, -x], 1), x.long()), size)


def streamed(samples, size=4):
    held = resident(samples).tensors
    return Streamed(lambda rows: tuple(t[list(rows)] for t in held), range(samples), size)


def labels(batches):
    return torch.cat([y for _, y in batches]).tolist()


@given(samples=st.integers(1, 60), size=st.integers(1, 70), again=st.integers(1, 70), kind=st.booleans())
def test_any_cut_holds_the_same_samples_in_the_same_order(samples, size, again, kind):
    batches = (resident if kind else streamed)(samples, size)
    assert labels(batches) == labels(batches) == labels(batches.rebatched(again)) == list(range(samples))
    assert [samples_in(b) for b in batches.rebatched(again)][:-1] == [again] * ((samples - 1) // again)
    assert batches.samples == samples and batches.rebatched(again).batch_size == again


@given(samples=st.integers(1, 60), ranks=st.integers(1, 9), kind=st.booleans())
def test_shares_cover_all_samples_once_and_differ_by_one_at_most(samples, ranks, kind):
    ranges = [shared_range(samples, rank, ranks) for rank in range(ranks)]
    assert ranges[0][0] == 0 and ranges[-1][1] == samples
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    sizes = [stop - start for start, stop in ranges]
    assert max(sizes) - min(sizes) <= 1
    if samples >= ranks:
        batches = (resident if kind else streamed)(samples)
        assert list(chain(*(labels(batches.share(rank, ranks)) for rank in range(ranks)))) == list(range(samples))


def test_only_floating_point_tensors_change_their_type():
    for batches in (resident(5), streamed(5)):
        x, y = next(iter(batches.to("cpu", torch.float64)))
        assert x.dtype == torch.float64 and y.dtype == torch.int64
        assert next(iter(batches.to()))[0].dtype == torch.float32
    there = streamed(5).to("cpu", torch.float64).to(None, None)
    assert (there.device, there.dtype) == ("cpu", torch.float64)
    assert move_batch({"a": torch.ones(2), "name": "text"}, None, torch.float16)["name"] == "text"


def test_a_loader_is_read_once_in_its_order():
    x, y = torch.randn(10, 3), torch.arange(10)
    got = read_into_memory(DataLoader(TensorDataset(x, y), batch_size=4))
    assert isinstance(got, Resident) and got.batch_size == 4 and got.samples == 10
    assert torch.equal(got.tensors[0], x) and torch.equal(got.tensors[1], y)


@pytest.mark.parametrize(
    "batches",
    [
        [{"ids": torch.ones(2, 3), "labels": torch.zeros(2)}, {"ids": torch.ones(1, 3), "labels": torch.zeros(1)}],
        [
            ((torch.ones(2, 1), torch.ones(2, 2)), torch.zeros(2)),
            ((torch.ones(1, 1), torch.ones(1, 2)), torch.zeros(1)),
        ],
        [torch.ones(2, 4), torch.ones(1, 4)],
    ],
    ids=["dict", "nested tuple", "tensor"],
)
def test_batches_of_any_structure_are_joined(batches):
    got = read_into_memory(iter(batches))
    assert got.samples == 3 and [samples_in(b) for b in got] == [2, 1]
    spec = torch.utils._pytree.tree_flatten(batches[0])[1]
    assert torch.utils._pytree.tree_flatten(next(iter(got)))[1] == spec


def test_tensors_are_taken_as_they_are():
    x, y = torch.ones(300, 2), torch.ones(300)
    assert read_into_memory((x, y)).batch_size == 256 and read_into_memory((x, y)).tensors[0] is x
    assert read_into_memory(x, batch_size=7).batch_size == 7
    assert read_into_memory({"x": x, "y": y}).samples == 300
    assert read_into_memory(resident(5)).batch_size == 4 and read_into_memory(streamed(5), 2).batch_size == 2


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: Resident((torch.ones(3), torch.ones(2)), 1),
            r"the same number of samples; got first dimensions \[2, 3\]",
        ),
        (lambda: Resident((torch.ones(3), torch.tensor(1.0)), 1), "the same number of samples"),
        (lambda: Resident((torch.ones(0),), 1), "the data must hold at least one sample"),
        (lambda: Resident((torch.ones(1),), 0), "batch_size must be >= 1; got 0"),
        (lambda: read_into_memory([]), "the loader must yield at least one batch"),
        (lambda: join_batches([torch.ones(2), (torch.ones(2), torch.ones(2))]), "they differ in structure"),
        (lambda: samples_in("text"), "a batch must hold at least one tensor"),
        (lambda: shared_range(5, 3, 3), "rank must be >= 0 and < 3"),
    ],
)
def test_what_does_not_fit_is_reported_in_one_message(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_an_object_with_targets_counts_by_them():
    class Graphs:
        def __init__(self, nodes, graphs):
            self.x, self.y = torch.zeros(nodes, 3), torch.zeros(graphs)

    torch.utils._pytree.register_pytree_node(
        Graphs, lambda g: ([g.x, g.y], None), lambda leaves, _: Graphs(len(leaves[0]), len(leaves[1]))
    )
    assert samples_in(Graphs(17, 5)) == 5 and samples_in((torch.zeros(3, 2), torch.zeros(3))) == 3
