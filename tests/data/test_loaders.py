"""Data as people have them: in memory where they fit, else streamed in a fixed order."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from lossmap.data.batches import Resident, Streamed, read_into_memory
from lossmap.data.loaders import as_batches, source_of

X, Y = torch.arange(24.0).reshape(12, 2), torch.arange(12)


def rows(batches):
    return torch.cat([y for _, y in batches]).tolist()


@pytest.mark.parametrize(
    "data",
    [TensorDataset(X, Y), DataLoader(TensorDataset(X, Y), 5), DataLoader(TensorDataset(X, Y), 5, shuffle=True)],
    ids=["data set", "loader", "shuffled loader"],
)
def test_what_fits_is_kept_and_what_does_not_is_streamed_in_its_order(data):
    here, there = as_batches(data), as_batches(data, budget=100)
    assert isinstance(here, Resident) and isinstance(there, Streamed)
    assert rows(here) == rows(here) and sorted(rows(here)) == list(range(12))
    assert rows(there) == rows(there.rebatched(7)) == list(range(12))
    assert torch.equal(torch.cat([x for x, _ in there]), X)
    assert as_batches(data, 4).batch_size == as_batches(data, 4, budget=100).batch_size == 4


class AugmentedByItsOwn(Dataset):
    def __init__(self, chance):
        self.chance = chance

    def __len__(self):
        return 12

    def __getitem__(self, index):
        draws = self.chance.standard_normal if hasattr(self.chance, "standard_normal") else self.chance.random
        return X[index] + draws(), Y[index]


def made_by(name):
    chance = torch.Generator().manual_seed(3)
    if name == "loader":
        return DataLoader(TensorDataset(X, Y), 5, shuffle=True, generator=chance)
    if name == "sampler":
        return DataLoader(TensorDataset(X, Y), 5, sampler=SubsetRandomSampler(range(9), generator=chance))
    if name == "batch sampler":
        order = BatchSampler(RandomSampler(Y, generator=chance), 5, True)
        return DataLoader(TensorDataset(X, Y), batch_sampler=order)
    own = {"NumPy": np.random.default_rng(3), "old NumPy": np.random.RandomState(3), "Python": random.Random(3)}
    data = AugmentedByItsOwn(own[name])
    return DataLoader(Subset(data, range(8)), 5) if name == "Python" else data


@pytest.mark.parametrize("name", ["loader", "sampler", "batch sampler", "NumPy", "old NumPy", "Python"])
def test_a_training_reads_after_it_what_it_would_have_read_from_generators_of_its_own(name):
    data, other = made_by(name), made_by(name)
    as_batches(data)
    read = [each if isinstance(each, DataLoader) else DataLoader(each, 5) for each in (data, other)]
    for _ in range(2):
        for batch, expected in zip(*read, strict=True):
            assert all(map(torch.equal, batch, expected))


def test_arrays_are_taken_as_tensors_are():
    for data in ((X.numpy(), Y.numpy()), {"x": X.numpy(), "labels": Y.numpy()}):
        assert as_batches(data).samples == 12
    assert torch.equal(as_batches((X.numpy(), Y.numpy())).tensors[0], X)
    with pytest.raises(ValueError, match="the arrays of data must hold numbers; got <U1"):
        as_batches((np.array(["a"]), np.array([1])))


def test_what_cannot_be_streamed_and_is_too_large_says_so_instead_of_filling_memory():
    own = DataLoader(TensorDataset(X, Y), 5, sampler=SubsetRandomSampler([4, 1, 7, 8]))
    assert sorted(rows(as_batches(own))) == [1, 4, 7, 8]
    endless = ((X, Y) for _ in itertools.count())
    for data in (DataLoader(TensorDataset(X, Y), 1, sampler=SubsetRandomSampler(range(12))), endless):
        with pytest.raises(ValueError, match=r"batches are more than the memory for samples, .*; give a Dataset"):
            as_batches(data, budget=100)
    with pytest.raises(ValueError, match="the first 3 batches are more"):
        read_into_memory([(X, Y)] * 3, budget=3500)
    with pytest.raises(ValueError, match="the first 10 batches are more"):  # what tensors take beside their numbers
        read_into_memory([(X[:1, :1], Y[:1])] * 20, budget=10_000)


def test_a_loader_that_is_read_for_long_says_how_to_cut_an_endless_one(caplog, monkeypatch):
    monkeypatch.setattr("lossmap.data.batches.FIRST_REPORT", 0.0)
    with pytest.raises(ValueError, match=r"where they never end, give some \(itertools.islice"):
        read_into_memory(((X, Y) for _ in itertools.count()), budget=10_000)
    assert "1 batches so far" in caplog.text and "itertools.islice(loader, 100)" in caplog.text


def test_samples_that_a_loader_drops_are_reported(caplog):
    with caplog.at_level("WARNING", logger="lossmap"):
        assert as_batches(DataLoader(TensorDataset(X, Y), 5, drop_last=True)).samples == 10
        assert "left out 2 of 12 samples" in caplog.text
        caplog.clear()
        assert as_batches(DataLoader(TensorDataset(X, Y), 4, drop_last=True)).samples == 12
        assert not caplog.text


@pytest.mark.parametrize("read", [as_batches, lambda loader: source_of(loader, "data")])
def test_a_loader_of_one_ranks_share_is_named(caplog, read):
    data = TensorDataset(torch.randn(8, 2), torch.arange(8))
    read(DataLoader(data, 4, sampler=DistributedSampler(data, num_replicas=2, rank=1)))
    assert "(DistributedSampler) gives the share of rank 1 of 2, 4 of 8 samples: numbers are of these" in caplog.text
    caplog.clear()
    read(DataLoader(data, 4, sampler=DistributedSampler(data, num_replicas=1, rank=0)))
    assert not caplog.text


def test_a_loader_that_draws_with_repetitions_is_named(caplog):
    data = TensorDataset(torch.randn(8, 2), torch.arange(8))
    as_batches(DataLoader(data, 4, sampler=WeightedRandomSampler(torch.ones(8), 8)))
    assert "draws its samples by chance (WeightedRandomSampler): numbers are of one draw of 8 samples" in caplog.text
    caplog.clear()
    source_of(DataLoader(data, 4, sampler=WeightedRandomSampler(torch.ones(8), 8)), "data")
    assert "draws its samples by chance" in caplog.text
    caplog.clear()
    as_batches(DataLoader(data, 4, shuffle=True))
    assert not caplog.text


class Augmented(Dataset):
    """Samples that are moved at random by each of the three usual generators."""

    def __init__(self, own=None):
        self.own = own

    def __len__(self):
        return 12

    def __getitem__(self, i):
        noise = self.own.random() if self.own else torch.rand(2) + random.random() + np.random.rand()
        return X[i] + noise, Y[i]


def masked(samples):
    x, y = default_collate(samples)
    return x * (torch.rand(x.shape) > 0.5), y


@pytest.mark.parametrize("streamed", [False, True])
def test_a_data_set_that_draws_is_read_alike_by_all_and_named(streamed, caplog):
    budget = 100 if streamed else None
    state = torch.get_rng_state()
    found = []
    for loader in (DataLoader(Augmented(), 4), DataLoader(Augmented(), 5, shuffle=True), Augmented()):
        caplog.clear()
        batches = as_batches(loader, budget=budget)
        assert isinstance(batches, Streamed if streamed else Resident)
        assert "Augmented draws at random (augmentation, masking): each sample is drawn once" in caplog.text
        for _ in range(2):
            x, y = (torch.cat(part) for part in zip(*batches, strict=True))
            found.append(x[y.argsort()])
    assert all(torch.equal(x, found[0]) for x in found) and torch.equal(torch.get_rng_state(), state)
    moved = found[0] - X
    assert len(moved.unique()) == 24 and moved.min() > 0


def test_what_masks_at_random_masks_the_same_samples_alike(caplog):
    batches = [as_batches(DataLoader(TensorDataset(X + 1, Y), 4, collate_fn=masked)) for _ in range(2)]
    assert "the loader's collate_fn draws at random" in caplog.text and "each batch is drawn once" in caplog.text
    first, second = (torch.cat([x for x, _ in data]) for data in batches)
    zeros = (first == 0).view(3, 8)
    assert torch.equal(first, second) and 0 < int(zeros.sum()) < 24
    assert not torch.equal(zeros[0], zeros[1]) or not torch.equal(zeros[0], zeros[2])


def test_a_data_set_with_a_generator_of_its_own_and_samples_by_other_keys(caplog):
    as_batches(DataLoader(Augmented(np.random.default_rng(0)), 4))
    assert "gives other samples at each reading, by what it draws or keeps itself" in caplog.text
    caplog.clear()
    named = {"a": (X[0], Y[0]), "b": (X[1], Y[1])}
    assert rows(as_batches(DataLoader(named, sampler=["b", "a"]))) == [1, 0]
    with_nan = TensorDataset(X / 0, Y)
    assert as_batches(DataLoader(with_nan, 4, drop_last=True)).samples == 12 and not caplog.text


class Counting(Dataset):
    """Grows its samples by how many it has given, as a curriculum does."""

    def __init__(self):
        self.calls, self.rate = 2, 0.5

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        self.calls += 1
        return X[index] * self.calls, Y[index]


class CountingAndDrawing(Counting):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + torch.rand(()), y


def test_a_data_set_that_counts_its_reads_may_draw_as_well(caplog):
    data = CountingAndDrawing()
    first, second = (torch.cat([x for x, _ in as_batches(DataLoader(data, 4))]) for _ in range(2))
    assert torch.equal(first, second) and data.calls == 2
    assert "draws at random" in caplog.text and "counts its reads" in caplog.text


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_that_counts_its_reads_is_read_from_the_count_as_it_stands(within, workers, caplog):
    data = Counting()
    given = Subset(data, range(len(X))) if within else data
    for _ in range(2):
        found = torch.cat([x for x, _ in as_batches(DataLoader(given, 4, num_workers=workers))])
        assert torch.equal(found, X * 3)
        assert data.calls == 2
    name = "Subset" if within else "Counting"
    assert f"{name} counts its reads, and gives other samples by that (calls)" in caplog.text
    assert "by what it draws" not in caplog.text


def test_a_collate_that_leaves_samples_out_is_read_as_the_loader_gives_it():
    def valid(rows):
        return default_collate([row for row in rows if row[1] >= 0])

    x, y = torch.arange(12.0)[:, None], torch.tensor([-1.0, -1, -1, 3, 4, 5, 6, -1, 8, 9, 10, 11])
    loader = DataLoader(TensorDataset(x, y), 5, collate_fn=valid)
    assert torch.cat([batch[1] for batch in as_batches(loader)]).equal(y[y >= 0])
    source = source_of(loader, "data")
    assert source.samples == 8 and source.fetch(range(8))[1].equal(y[y >= 0])


@pytest.mark.parametrize("left_out", [[0], [0, 1, 2, 3], [4]])
@pytest.mark.parametrize("is_stacked", [False, True])
def test_a_collate_that_raises_where_it_leaves_all_out_is_read_as_the_loader_gives_it(left_out, is_stacked, caplog):
    def valid(rows):
        kept = [(x, y) for x, y in rows if int(y) not in left_out]
        if is_stacked:
            return tuple(map(torch.stack, zip(*kept, strict=True)))  # "not enough values to unpack", of whoever reads
        x, y = zip(*kept, strict=True)  # ValueError
        return torch.stack(x) + torch.rand(1), torch.stack(y)

    y = torch.arange(12)
    loader = DataLoader(TensorDataset(torch.zeros(12, 1), y), 6, collate_fn=valid)
    first, second = as_batches(loader), as_batches(loader)
    assert torch.cat([batch[1] for batch in first]).tolist() == [i for i in range(12) if i not in left_out]
    if len(left_out) == 1 and not is_stacked:  # what it draws is seen where some of the first samples are kept
        assert "the loader's collate_fn draws at random" in caplog.text
        assert all(a[0].equal(b[0]) for a, b in zip(first, second, strict=True))
    source = source_of(loader, "data")
    if left_out != [4]:  # the first samples show it
        assert source.samples == 12 - len(left_out)
        return
    for data in (source, as_batches(loader, budget=10)):  # 12 samples would share the loss of 11
        assert data.samples == 12
        with pytest.raises(ValueError, match=r"leaves samples out \(6 were put together into 5\)"):
            data.fetch(range(6))


def test_a_sample_that_raises_and_that_the_sampler_leaves_out_is_not_needed():
    class Broken(Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            if index == 0:
                raise OSError("cannot identify image file")
            return torch.zeros(2), index

    loader = DataLoader(Broken(), 3, sampler=range(1, 8))
    assert torch.cat([y for _, y in as_batches(loader)]).tolist() == list(range(1, 8))


def test_samples_drawn_many_at_once_are_drawn_once_and_stay_as_they_are_put_together(caplog):
    class Noisy(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            return torch.zeros(2), index

        def __getitems__(self, indices):
            return torch.rand(len(indices), 2), torch.tensor(indices)

    x, y = (
        [torch.cat(parts) for parts in zip(*as_batches(DataLoader(Noisy(), 5, collate_fn=tuple)), strict=True)]
        for _ in range(2)
    )
    assert x[0].equal(y[0]) and x[0].std() > 0.1 and x[1].tolist() == list(range(12))
    assert "Noisy draws at random" in caplog.text


class OfSeveralLengths(Dataset):
    def __init__(self):
        self.samples = [(X[:n], n % 2) for n in (3, 5, 4, 6)]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


class Stream(IterableDataset):
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


@pytest.mark.parametrize("read", [as_batches, lambda data: source_of(data, "data")])
def test_samples_of_different_shapes_are_batches_of_one_and_named_where_a_loader_cannot_collate_them(read):
    samples = OfSeveralLengths()
    for batches in (as_batches(samples), read(Stream(samples.samples))):
        assert [tuple(x.shape) for x, _ in batches] == [(1, 3, 2), (1, 5, 2), (1, 4, 2), (1, 6, 2)]
        assert torch.cat([y for _, y in batches]).tolist() == [1, 1, 0, 0] and batches.samples == 4
    for loader in (
        DataLoader(Stream(samples.samples), 2),
        DataLoader(samples, 2, sampler=SubsetRandomSampler(range(4))),
        DataLoader(samples, 2, sampler=range(4), num_workers=1),
    ):
        with pytest.raises(ValueError, match=r"cannot put samples of different shapes into one batch \(got \[\d, 2\]"):
            read(loader)


def test_what_a_stream_yields_is_said_to_be_taken_for_batches(caplog):
    assert as_batches(Stream([(X[:4], Y[:4]), (X[4:], Y[4:])])).samples == 12
    assert "what the Stream yields is taken for batches" in caplog.text
    caplog.clear()
    assert as_batches(Stream([(x, 1) for x in X]), 5).batch_size == 5 and not caplog.text
