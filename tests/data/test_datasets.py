"""Data sets by name: digits, arrays, functions of one's own; cuts, subsets, memory, digests."""

import hashlib
import logging

import numpy as np
import pytest
import torch
from torch import nn

from lossmap.curvature.gradient import loss_and_gradient
from lossmap.data.batches import Resident, Streamed
from lossmap.data.checks import tried_on_samples
from lossmap.data.datasets import digest, labels_within, limited, load
from lossmap.data.loaders import source_of
from lossmap.data.loss_check import check_loss
from lossmap.data.problem import Problem


def everything(batches):
    parts = list(batches)
    return torch.cat([x for x, *_ in parts]), torch.cat([b[-1] for b in parts])


def own(tmp_path, code):
    """A file of one's own, and the name of its function `data`."""
    path = tmp_path / f"own_{abs(hash(code))}.py"
    path.write_text("import torch, numpy as np\nfrom torch.utils.data import *\n" + code)
    return f"{path}:data"


def test_the_digits_are_1437_and_360_real_images():
    train, test = load("digits"), load("digits", "test")
    assert (train.samples, test.samples) == (1437, 360)
    x, y = train.tensors
    assert x.shape == (1437, 1, 8, 8) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert float(x.min()) == 0.0 and float(x.max()) == 1.0
    assert torch.equal((16 * x).round(), 16 * x)
    assert y.bincount().tolist() == [139, 145, 130, 155, 139, 150, 144, 152, 144, 139]
    both = torch.cat([x, test.tensors[0]])
    assert len(both.flatten(1).unique(dim=0)) == 1797  # no image stands in both splits


def test_the_packaged_digits_are_those_of_the_repository():
    # SHA-256 of images and labels of scikit-learn 1.9.1's copy, load_digits(), in the order of default_rng(0)
    copied = "428ad214e900fe9343f94d9fedc8a16d461db8cd1bc0f61eecf448b8c5f16b35"
    (x, y), (x_test, y_test) = load("digits").tensors, load("digits", "test").tensors
    images, labels = 16 * torch.cat([x, x_test]), torch.cat([y, y_test])
    held = images.to(torch.uint8).numpy().tobytes() + labels.to(torch.uint8).numpy().tobytes()
    assert hashlib.sha256(held).hexdigest() == copied


def test_digits32_are_the_same_images_enlarged():
    small, large = load("digits").tensors[0], load("digits32").tensors[0]
    assert large.shape == (1437, 3, 32, 32)
    assert torch.equal(large[:, 0], large[:, 2])
    torch.testing.assert_close(large.mean((1, 2, 3)), small.mean((1, 2, 3)), atol=0.02, rtol=0)
    assert torch.equal((1024 * large).round(), 1024 * large)  # exact in float32, so the same on every machine


@pytest.mark.parametrize("name", ["digits", "digits32"])
def test_streamed_samples_are_the_resident_ones_bit_for_bit(name):
    here, there = load(name, samples=50, data_seed=4), load(name, samples=50, data_seed=4, budget=0, batch_size=7)
    assert isinstance(here, Resident) and isinstance(there, Streamed)
    for a, b in zip(everything(here), everything(there), strict=True):
        assert torch.equal(a, b)


def test_a_subset_is_fixed_by_its_seed_and_keeps_the_order():
    picks = [load("digits", samples=20, data_seed=s, budget=0).indices for s in (0, 0, 1)]
    assert picks[0] == picks[1] != picks[2]
    assert list(picks[0]) == sorted(set(picks[0])) and len(picks[0]) == 20
    assert load("digits", samples=5000).samples == 1437


def test_pieces_cover_all_samples_once():
    x, _ = everything(load("digits"))
    pieces = [everything(load("digits", pieces=4, piece=i))[0] for i in range(4)]
    assert torch.equal(torch.cat(pieces), x)
    with pytest.raises(ValueError, match="piece 4 of 4 pieces of 1437 samples: pieces are counted from 0"):
        load("digits", pieces=4, piece=4)


def test_data_have_the_requested_device_and_precision():
    x, y = load("digits", samples=4, dtype=torch.float64).tensors
    assert x.dtype == torch.float64 and y.dtype == torch.int64


def test_normalising_takes_off_the_mean_and_divides_by_the_deviation():
    x = load("digits", samples=9).tensors[0]
    torch.testing.assert_close(load("digits", samples=9, normalize="0.3/0.5").tensors[0], (x - 0.3) / 0.5)
    large = load("digits32", samples=9).tensors[0]
    got = load("digits32", samples=9, normalize="0.1,0.2,0.3/1,2,4").tensors[0]
    torch.testing.assert_close(got[:, 2], (large[:, 2] - 0.3) / 4)
    assert torch.equal(load("digits", samples=9, normalize="0.3/0.5", raw=True).tensors[0], x)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0.5", "must be mean/std, such as 0.5/0.25"),
        ("a/b", "must be mean/std"),
        ("1/2/3", "must be mean/std"),
        ("0.5/0", "as many means as standard deviations, and these > 0"),
        ("1,2/1,2,3", "as many means as standard deviations, and these > 0"),
        ("1,2/1,2", r"has 2 channels; the inputs have shape \(1, 8, 8\)"),
    ],
)
def test_a_wrong_normalisation_is_reported_in_one_message(text, wanted):
    with pytest.raises(ValueError, match=wanted):
        load("digits", samples=3, normalize=text)


def test_npz_arrays_are_taken_as_given(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 3)), rng.integers(0, 4, 6)
    np.savez(tmp_path / "a.npz", x=x, y=y, x_test=(255 * rng.random((2, 3))).astype(np.uint8), y_test=y[:2])
    got = load(f"npz:{tmp_path / 'a.npz'}")
    assert got.tensors[0].dtype == torch.float32 and got.tensors[1].tolist() == y.tolist()
    np.testing.assert_allclose(got.tensors[0], x, rtol=1e-6)
    assert load("npz:a.npz", "test", data_path=tmp_path).tensors[0].max() > 1
    assert load("npz:a.npz", data_path=tmp_path, normalize="1/2").samples == 6


@pytest.mark.parametrize(("dtype", "shape"), [("uint8", (4, 5, 5)), ("uint8", (4, 5, 5, 3)), ("int64", (4, 3, 5, 5))])
def test_images_of_whole_numbers_are_divided_by_255_and_that_is_said(tmp_path, caplog, dtype, shape):
    x = np.random.default_rng(1).integers(0, 256, shape).astype(dtype)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(4))
    name = f"npz:{tmp_path / 'a.npz'}"
    np.testing.assert_allclose(load(name).tensors[0], x.astype(np.float32) / 255, rtol=1e-6)
    assert "images of whole numbers" in caplog.text and "divided by 255" in caplog.text
    np.testing.assert_allclose(load(name, normalize="0.5/0.25").tensors[0], (x / 255 - 0.5) / 0.25, atol=1e-5)
    caplog.clear()
    assert load(name, raw=True).tensors[0].max() > 1
    assert not caplog.text
    with pytest.raises(ValueError, match="divide mean and std by 255 too"):
        load(name, normalize="125.3/63")


def test_integers_that_are_no_images_stay_as_they_are(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(0, 4000, 10).reshape(2, 2, 10, 10), y=np.arange(2))
    assert load(f"npz:{tmp_path / 'a.npz'}").tensors[0].dtype == torch.int64


def test_bytes_of_a_factory_are_taken_as_given_with_a_word(tmp_path, caplog):
    source_of((torch.full((2, 1, 3, 3), 200, dtype=torch.uint8), torch.arange(2)), "own.py:data")
    assert "own.py:data: the images are bytes (uint8), taken as 0 to 255" in caplog.text
    source_of((torch.full((2, 3), 200, dtype=torch.uint8), torch.arange(2)), "own.py:rows")
    assert "own.py:rows: the inputs are bytes (uint8), taken as 0 to 255" in caplog.text


def test_masks_stay_masks(tmp_path):
    y = np.array([[True, False], [False, True]])
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3), np.float32), y=y)
    masks = load(f"npz:{tmp_path / 'a.npz'}").tensors[1]
    assert masks.dtype == torch.bool
    net, x, labels = torch.nn.Linear(3, 2), torch.ones(2, 3), masks[:, 0]
    for loss in ("crossentropy", "mse"):
        values = [loss_and_gradient(Problem.supervised(net, loss, (x, t))).loss for t in (labels, labels.long())]
        assert values[0] == values[1]


def test_token_numbers_stay_whole(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(6, dtype=np.int64).reshape(3, 2), y=np.arange(3, dtype=np.uint16))
    x, y = load(f"npz:{tmp_path / 'a.npz'}").tensors
    assert x.dtype == y.dtype == torch.int64
    with pytest.raises(ValueError, match="whose x are floating-point numbers"):
        load(f"npz:{tmp_path / 'a.npz'}", normalize="0/1")


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": np.ones((3, 2))}, r"must hold x and y for the split train; it holds x"),
        (
            {"x": np.ones((3, 2)), "y": np.ones(2)},
            r"x of shape \(3, 2\) and y of shape \(2,\): there must be one y for each x",
        ),
        ({"x": np.array([[1.0, np.nan]]), "y": np.ones(1)}, "x has 1 entries that are not finite"),
        ({"x": np.array(["a"]), "y": np.ones(1)}, "must hold numbers; got <U1"),
        ({"x": np.ones((0, 2)), "y": np.ones(0)}, "holds no sample in its split train"),
    ],
)
def test_wrong_arrays_get_their_sentence(tmp_path, arrays, text):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=text):
        load(f"npz:{tmp_path / 'a.npz'}")


def test_a_wrong_npz_file_is_reported_in_one_message(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(f"npz:{tmp_path / 'none.npz'}")
    np.savez(tmp_path / "a.npz", x=np.ones((300, 200)), y=np.ones(300))
    cut = (tmp_path / "a.npz").read_bytes()[:5000]
    (tmp_path / "cut.npz").write_bytes(cut)
    np.save(tmp_path / "one.npy", np.ones(3))
    np.savez(tmp_path / "objects.npz", x=np.array([None]), y=np.ones(1))
    for name in ("cut.npz", "one.npy", "objects.npz"):
        with pytest.raises(ValueError, match="is not an npz file of arrays x and y"):
            load(f"npz:{tmp_path / name}")


@pytest.mark.parametrize(
    "code",
    [
        "def data(split): return torch.arange(10.).view(5, 2), torch.arange(5)",
        "def data(split): return np.arange(10.).reshape(5, 2), np.arange(5)",
        "def data(split): return TensorDataset(torch.arange(10.).view(5, 2), torch.arange(5))",
        "d = TensorDataset(torch.arange(10.).view(5, 2), torch.arange(5))\n"
        "def data(split): return DataLoader(d, 2, shuffle=True)",
        "x, y = torch.arange(10.).view(5, 2), torch.arange(5)\n"
        "def data(split): return [(x[i:i + 2], y[i:i + 2]) for i in (0, 2, 4)]",
    ],
    ids=["tensors", "arrays", "dataset", "shuffling loader", "list of batches"],
)
@pytest.mark.parametrize("budget", [None, 0])
def test_whatever_a_function_returns_is_read_in_a_fixed_order(tmp_path, code, budget):
    x, y = everything(load(own(tmp_path, code), budget=budget, batch_size=2))
    assert torch.equal(x, torch.arange(10.0).view(5, 2)) and torch.equal(y, torch.arange(5))


def test_a_function_is_called_with_the_split(tmp_path):
    code = (
        "def data(split): return torch.ones(3 if split == 'train' else 2, 1), torch.ones(3 if split == 'train' else 2)"
    )
    name = own(tmp_path, code)
    assert (load(name).samples, load(name, "test").samples) == (3, 2)


def test_dict_batches_and_iterable_data_sets_are_read(tmp_path):
    code = (
        "class Words(Dataset):\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return {'ids': torch.tensor([i, i + 1]), 'labels': i}\n"
        "def data(split): return Words()\n"
    )
    batch = next(iter(load(own(tmp_path, code), batch_size=3)))
    assert batch["ids"].tolist() == [[0, 1], [1, 2], [2, 3]] and batch["labels"].tolist() == [0, 1, 2]
    code = "class S(IterableDataset):\n    def __iter__(self): return iter([(torch.ones(2), i) for i in range(3)])\n"
    assert load(own(tmp_path, code + "def data(split): return S()")).samples == 3


def test_a_loader_with_a_sampler_of_its_own_is_drained_as_it_is(tmp_path):
    code = (
        "def data(split):\n"
        "    d = TensorDataset(torch.arange(6.), torch.arange(6))\n"
        "    return DataLoader(d, 2, sampler=SubsetRandomSampler([4, 1]))\n"
    )
    assert sorted(everything(load(own(tmp_path, code)))[1].tolist()) == [1, 4]


def test_batches_made_by_a_function_are_kept(tmp_path):
    for kind in (
        "Resident((torch.ones(3, 2), torch.ones(3)), 2)",
        "Streamed(lambda i: (torch.tensor(i),) * 2, [5, 7], 1)",
    ):
        code = f"from lossmap.data.batches import Resident, Streamed\ndef data(split): return {kind}"
        assert load(own(tmp_path, code)).samples in (2, 3)


def test_augmentation_in_a_data_set_is_noticed(tmp_path, caplog):
    code = (
        "class A(Dataset):\n    def __len__(self): return 2\n    def __getitem__(self, i): return torch.rand(2), 0\n"
        "def data(split): return A()"
    )
    with caplog.at_level(logging.WARNING):
        first = everything(load(own(tmp_path, code)))[0]
    assert "draws at random (augmentation, masking): each sample is drawn once" in caplog.text
    assert torch.equal(first, everything(load(own(tmp_path, code)))[0])


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("def data(): return 1", r'is called with split="train" or "test", which it does not take'),
        (
            "def data(split): return 3",
            r"must return \(x, y\) tensors, a Dataset, a DataLoader or a list of batches; got int",
        ),
        ("def data(split): return torch.ones(3), torch.ones(2)", "one y for each x"),
        ("def data(split): return []", "the loader must yield at least one batch"),
    ],
)
def test_a_function_that_returns_something_else_is_reported_in_one_message(tmp_path, code, text):
    with pytest.raises(ValueError, match=text):
        load(own(tmp_path, code))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("digit", "no data set is named 'digit'; nearest: digits"),
        ("digits+fog", "must have the form digits\\+gaussian_noise:5"),
        ("mnist+fog:1", "no data set is named 'mnist\\+fog:1'|importing"),
        ("digits+fogg:1", "no corruption is named 'fogg'; nearest: fog"),
        ("digits+fog:5:imagenet-c", "imagenet-c has strengths here for gaussian_noise, .* alone; got fog"),
        ("digits+fog:5:imagenet", "strengths are those of cifar-10-c or imagenet-c; got 'imagenet'"),
        ("digits+fog:6", "the severity must be 1 to 5; got '6'"),
        ("cifar10c:fog", "must have the form cifar10c:gaussian_noise:5"),
    ],
)
def test_a_wrong_name_is_reported_in_one_message(name, text):
    with pytest.raises(ValueError, match=text):
        load(name)


def test_a_wrong_split_or_number_is_reported_in_one_message():
    with pytest.raises(ValueError, match="split must be train or test; got 'both'"):
        load("digits", "both")
    with pytest.raises(ValueError, match="samples must be >= 1; got 0"):
        load("digits", samples=0)
    with pytest.raises(ValueError, match="batch_size must be >= 1; got 0"):
        load("digits", batch_size=0)


@pytest.mark.parametrize(
    "name", ["digits+gaussian_noise:5", "digits+gaussian_noise:5:imagenet-c", "digits32+motion_blur:3"]
)
def test_a_corrupted_set_is_the_same_in_any_cut(name):
    whole = load(name, samples=40, data_seed=1).tensors[0]
    parts = load(name, samples=40, data_seed=1, budget=0, batch_size=7)
    assert torch.equal(everything(parts)[0], whole)
    clean = load(name.split("+")[0], samples=40, data_seed=1).tensors[0]
    assert not torch.equal(clean, whole) and whole.min() >= 0 and whole.max() <= 1
    assert not torch.equal(load(name, "test", samples=1).tensors[0], load(name, samples=1).tensors[0])


def test_the_digest_does_not_depend_on_the_cut_but_on_every_sample():
    one = load("digits", samples=100)
    assert digest(one) == digest(one.rebatched(7)) == digest(load("digits", samples=100, batch_size=3))
    assert digest(one) != digest(load("digits", samples=100, data_seed=1))
    assert digest(one) != digest(load("digits", "test", samples=100))
    x, y = one.tensors
    changed = x.clone()
    changed[99, 0, 7, 7] += 1e-6
    assert digest(Resident((changed, y), 10)) != digest(one)
    assert digest(Resident((x.double(), y), 10)) != digest(one)


def test_the_digest_of_a_stream_depends_on_its_indices():
    a, b = (load("digits", samples=30, data_seed=s, budget=0) for s in (0, 1))
    assert digest(a) == digest(a.rebatched(4)) != digest(b)


def test_the_memory_budget_decides_whether_samples_are_streamed():
    each = 4 * 64 + 8
    assert isinstance(load("digits", samples=10, budget=10 * each), Resident)
    assert isinstance(load("digits", samples=10, budget=10 * each - 1), Streamed)


def test_labels_beyond_the_outputs_are_reported():
    batches = load("digits")
    labels_within(batches, 10)
    labels_within(load("digits", budget=0), 3)  # a stream is not read for it
    labels_within(Resident((torch.ones(2, 1), torch.tensor([0, -100])), 2), 1)
    labels_within(Resident((torch.ones(2, 1), torch.tensor([0, -1])), 2), 1, ignored=-1)
    labels_within(Resident((torch.ones(2, 1), torch.tensor([0.5, 7.0])), 2), 1)
    with pytest.raises(ValueError, match="the targets run from 0 to 9; the model has 5 outputs"):
        labels_within(batches, 5)


def test_a_target_that_the_loss_ignores_is_no_label_out_of_range():
    x, y = torch.randn(6, 3), torch.tensor([0, 1, -1, 1, -1, 0])
    problem = Problem.supervised(nn.Linear(3, 2), nn.CrossEntropyLoss(ignore_index=-1), (x, y))
    tried_on_samples(problem, "train")
    assert check_loss(problem).samples == 6
    with pytest.raises(ValueError, match="the targets run from -1 to 1"):
        tried_on_samples(Problem.supervised(nn.Linear(3, 2), nn.CrossEntropyLoss(), (x, y)), "train")


def test_a_problem_of_ones_own_is_limited_to_the_same_random_subset():
    x = torch.arange(50.0)[:, None]
    whole = Resident((x, torch.arange(50)), 8)
    few = limited(whole, 12, data_seed=3)
    assert few.samples == 12 and few.tensors[1].tolist() == sorted(few.tensors[1].tolist())
    again = limited(Streamed(lambda rows: (x[list(rows)], torch.as_tensor(list(rows))), range(50), 8), 12, data_seed=3)
    assert torch.cat([batch[1] for batch in again]).tolist() == few.tensors[1].tolist()
    assert limited(whole, 50) is whole and limited(whole, None) is whole
    assert limited(whole, None, pieces=2, piece=1).tensors[1].tolist() == list(range(25, 50))
    with pytest.raises(ValueError, match="in batches that are not cut; take fewer batches"):
        limited(whole.uncut(), 12)


@pytest.mark.parametrize(
    "names", [("x_train", "y_train"), ("X", "y"), ("train_images", "train_labels"), ("data", "target"), ("x", "labels")]
)
def test_arrays_of_other_names_in_use_are_read_and_said(tmp_path, caplog, names):
    x, y = np.random.default_rng(0).standard_normal((9, 4)).astype("float32"), np.arange(9) % 3
    np.savez(tmp_path / "d.npz", **dict(zip(names, (x, y), strict=True)), x_val=x[:2], y_val=y[:2], weights=x)
    loaded = load(f"npz:{tmp_path / 'd.npz'}")
    assert torch.equal(loaded.tensors[0], torch.tensor(x)) and loaded.tensors[1].tolist() == y.tolist()
    assert f"inputs are the array {names[0]}, targets the array {names[1]}" in caplog.text


def test_arrays_of_which_several_may_be_meant_are_refused(tmp_path):
    x = np.ones((9, 4), dtype=np.float32)
    np.savez(tmp_path / "d.npz", images=x, features=x, labels=np.arange(9))
    with pytest.raises(ValueError, match="must hold x and y for the split train; it holds images, features, labels"):
        load(f"npz:{tmp_path / 'd.npz'}")


def test_unnamed_arrays_of_foreign_byte_order_are_read_and_said(tmp_path, caplog):
    x, y = np.random.default_rng(0).standard_normal((9, 4)), np.arange(9) % 3
    np.savez(tmp_path / "d.npz", x.astype(">f8"), y.astype(">i2"))
    loaded = load(f"npz:{tmp_path / 'd.npz'}")
    assert torch.equal(loaded.tensors[0], torch.tensor(x).float()) and loaded.tensors[1].tolist() == y.tolist()
    assert "inputs are the array arr_0, targets the array arr_1" in caplog.text
    with pytest.raises(
        ValueError, match=r'name its arrays so, as in np.savez\("d.npz", x_test=inputs, y_test=targets\)'
    ):
        load(f"npz:{tmp_path / 'd.npz'}", "test")


def test_whole_numbers_kept_as_floats_and_a_normalization_of_unit_values_do_not_pass_in_silence(tmp_path, caplog):
    x = np.random.default_rng(1).integers(0, 256, (4, 3, 5, 5)).astype(np.float32)
    for name, images in (("whole", x), ("unit", x / 255)):
        np.savez(tmp_path / f"{name}.npz", x=images, y=np.arange(4))
    load(f"npz:{tmp_path / 'unit.npz'}", normalize="0.5/0.25")
    load(f"npz:{tmp_path / 'whole.npz'}", normalize="128/64")
    load(f"npz:{tmp_path / 'whole.npz'}")
    assert not caplog.text
    load(f"npz:{tmp_path / 'whole.npz'}", normalize="0.5/0.25")
    assert "hold whole numbers up to 255 as float32" in caplog.text and "--normalize 0.5/0.25 is by" in caplog.text


FACTORY = """
import torch


def data(split="train"):
    return torch.arange(96).reshape(2, 3, 4, 4).to(torch.uint8), torch.arange(2)


def unit(split="train"):
    return data()[0] / 255, torch.arange(2)
"""


def test_bytes_of_a_users_function_and_a_normalization_of_unit_values_do_not_pass_in_silence(tmp_path, caplog):
    path = tmp_path / "images.py"
    path.write_text(FACTORY)
    for name, normalize in (("unit", "0.5/0.25"), ("data", "128/64")):
        load(f"{path}:{name}", normalize=normalize)
    assert "--normalize" not in caplog.text
    load(f"{path}:data", normalize="0.5/0.25")
    assert "whole numbers up to 95, and --normalize 0.5/0.25 is by values from 0 to 1" in caplog.text


@pytest.mark.parametrize("budget", [None, 1])
def test_pairs_that_a_loader_makes_lists_of_are_normalised_by_channel(budget, tmp_path, monkeypatch):
    (tmp_path / "loaders.py").write_text(
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\n"
        "X = torch.arange(10 * 2 * 3 * 3).reshape(10, 2, 3, 3).float()\n"
        "def data(split): return DataLoader(TensorDataset(X, torch.arange(10) % 2), batch_size=4)\n"
    )
    monkeypatch.chdir(tmp_path)
    x = torch.arange(10 * 2 * 3 * 3).reshape(10, 2, 3, 3).float()
    batches = load("loaders.py:data", normalize="1,2/2,4", budget=budget)
    got = torch.cat([batch[0] for batch in batches])
    torch.testing.assert_close(got, (x - torch.tensor([1.0, 2.0])[:, None, None]) / torch.tensor([[[2.0]], [[4.0]]]))
