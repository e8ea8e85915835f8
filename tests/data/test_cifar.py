"""CIFAR in both formats and CIFAR-10-C, from small files written here as the published ones are."""

import collections
import pickle

import numpy as np
import pytest
import torch

from lossmap.data import cifar
from lossmap.data.batches import Resident, Streamed
from lossmap.data.datasets import load

MEAN = np.array([125.3, 123.0, 113.9]) / 255
STD = np.array([63.0, 62.1, 66.7]) / 255


@pytest.fixture
def planes():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (25, 3, 32, 32)).astype(np.uint8), rng.integers(0, 10, 25)


def binary(folder, x, y):
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.concatenate([y[:, None].astype(np.uint8), x.reshape(len(x), -1)], 1)
    for i in range(5):
        rows[5 * i : 5 * i + 5].tofile(folder / f"data_batch_{i + 1}.bin")
    rows[:3].tofile(folder / "test_batch.bin")


def pickled(folder, x, y, labels="labels", files=None, protocol=2):
    folder.mkdir(parents=True, exist_ok=True)
    files = files or [(f"data_batch_{i + 1}", slice(5 * i, 5 * i + 5)) for i in range(5)] + [("test_batch", slice(3))]
    for name, part in files:
        content = {"batch_label": name, labels: y[part].tolist(), "data": x[part].reshape(-1, 3072), "filenames": ["a"]}
        (folder / name).write_bytes(pickle.dumps(content, protocol))


def test_both_formats_give_the_same_images(tmp_path, planes):
    x, y = planes
    binary(tmp_path / "a" / "cifar-10-batches-bin", x, y)
    pickled(tmp_path / "b" / "cifar-10-batches-py", x, y)
    for folder in (tmp_path / "a", tmp_path / "b", tmp_path / "a" / "cifar-10-batches-bin"):
        got, labels = cifar.images("cifar10", "train", folder)
        assert np.array_equal(got, x) and np.array_equal(labels, y)
        assert np.array_equal(cifar.images("cifar10", "test", folder)[0], x[:3])


def test_files_written_by_python_2_are_read(tmp_path, planes):
    x, y = planes
    # what Python 2 wrote: str as bytes, and the array's bytes as a str
    content = {b"data": x[:5].reshape(5, 3072), b"labels": y[:5].tolist()}
    for i in range(5):
        (tmp_path / f"data_batch_{i + 1}").write_bytes(pickle.dumps(content, 2))
    assert len(cifar.images("cifar10", "train", tmp_path)[0]) == 25


def test_cifar100_has_its_fine_labels(tmp_path, planes):
    x, _ = planes
    fine = np.arange(25) * 4
    rows = np.concatenate([np.full((25, 1), 7), fine[:, None], x.reshape(25, -1)], 1).astype(np.uint8)
    (tmp_path / "cifar-100-binary").mkdir()
    rows.tofile(tmp_path / "cifar-100-binary" / "train.bin")
    pickled(tmp_path / "py", x, fine, "fine_labels", [("train", slice(None)), ("test", slice(2))])
    for folder in (tmp_path, tmp_path / "py"):
        got, labels = cifar.images("cifar100", "train", folder)
        assert np.array_equal(got, x) and np.array_equal(labels, fine)


def test_images_are_normalised_as_the_published_nets_were_trained(tmp_path, planes):
    x, y = planes
    binary(tmp_path, x, y)
    got, labels = load("cifar10", data_path=tmp_path).tensors
    expected = (x / 255 - MEAN[:, None, None]) / STD[:, None, None]
    np.testing.assert_allclose(got, expected, atol=2e-6)
    assert got.dtype == torch.float32 and labels.tolist() == y.tolist()
    np.testing.assert_allclose(load("cifar10", data_path=tmp_path, raw=True).tensors[0], x / 255, atol=1e-7)
    np.testing.assert_allclose(load("cifar10", data_path=tmp_path, normalize="0/2").tensors[0], x / 510, atol=1e-7)


def test_corrupted_cifar_is_that_of_its_bytes(tmp_path, planes):
    from lossmap.images.corruptions import corrupt

    x, y = planes
    binary(tmp_path, x, y)
    got = load("cifar10+contrast:5", data_path=tmp_path, raw=True).tensors[0]
    expected = corrupt(x.transpose(0, 2, 3, 1), "contrast", 5).transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(got, expected, atol=1e-7)


class Trap:
    def __reduce__(self):
        return print, ("trap",)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (pickle.dumps({"data": Trap()}), "is no batch of cifar10: it asks for .*print, which could run code"),
        (pickle.dumps([1]), "is no batch of cifar10: it holds a list"),
        (pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]}), r"its data must have shape \(N, 3072\)"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}), "2 images and 1 labels"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}), "2 images and 0 labels"),
        (
            pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": np.zeros((2, 1), int)}),
            r"2 images and labels of shape \(2, 1\)",
        ),
        (
            pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": np.array([1 << 63], np.uint64)}),
            "labels are no classes: 9223372036854775808 is among them",
        ),
        (
            pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0.0, 1.5]}),
            "labels are no classes: they are of dtype float64",
        ),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [11]}), "the label 11; cifar10 has 10 classes"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]})[:300], "is no batch of cifar10"),
        (b"text", "is no batch of cifar10"),
    ],
)
def test_a_damaged_python_batch_is_reported_in_one_message(tmp_path, content, text, capsys):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=text):
        cifar.images("cifar10", "test", tmp_path)
    assert "trap" not in capsys.readouterr().out


def test_a_binary_file_that_is_cut_off_is_reported_in_one_message(tmp_path, planes):
    binary(tmp_path, *planes)
    (tmp_path / "test_batch.bin").write_bytes((tmp_path / "test_batch.bin").read_bytes()[:-1])
    with pytest.raises(ValueError, match="holds 9218 bytes, no whole number of records of 3073: it is cut off"):
        cifar.images("cifar10", "test", tmp_path)


def test_missing_files_are_reported_with_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = "needed cifar-10-batches-bin/data_batch_1.bin or cifar-10-batches-py/data_batch_1; unpack it there"
    with pytest.raises(FileNotFoundError, match=expected):
        load("cifar10")


@pytest.fixture
def cifar10c(tmp_path):
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 256, (50, 32, 32, 3)).astype(np.uint8), np.tile(np.arange(10), 5)
    np.save(folder / "fog.npy", x)
    np.save(folder / "labels.npy", y.astype(np.uint8))
    return collections.namedtuple("Held", "folder x y")(folder, x, y)


def test_a_severity_of_cifar10c_is_its_fifth_of_the_rows(cifar10c):
    for path in (cifar10c.folder, cifar10c.folder.parent):
        x, y = cifar.corrupted("fog", 3, path)
        assert isinstance(x, np.memmap) and np.array_equal(x, cifar10c.x[20:30]) and y.tolist() == list(range(10))
    here = load("cifar10c:fog:3", "test", data_path=cifar10c.folder)
    there = load("cifar10c:fog:3", "test", data_path=cifar10c.folder, budget=0, batch_size=4)
    assert isinstance(here, Resident) and isinstance(there, Streamed)
    assert torch.equal(torch.cat([b[0] for b in there]), here.tensors[0])
    expected = (cifar10c.x[20:30].transpose(0, 3, 1, 2) / 255 - MEAN[:, None, None]) / STD[:, None, None]
    np.testing.assert_allclose(here.tensors[0], expected, atol=2e-6)


def test_wrong_questions_to_cifar10c_get_their_sentence(cifar10c, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "CIFAR-10-C")
    with pytest.raises(ValueError, match="has test images alone; ask for the split test"):
        load("cifar10c:fog:3")
    with pytest.raises(ValueError, match="the severity of CIFAR-10-C must be 1 to 5; got 6"):
        load("cifar10c:fog:6", "test")
    with pytest.raises(FileNotFoundError, match=r"there is no frost\.npy; the folder holds fog"):
        load("cifar10c:frost:1", "test")
    with pytest.raises(FileNotFoundError, match=r"CIFAR-10-C is not in .*nowhere: needed labels\.npy and fog\.npy"):
        load("cifar10c:fog:1", "test", data_path="nowhere")
    np.save("frost.npy", np.zeros((10, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"frost\.npy has shape \(10, 8, 8, 3\) of uint8.*CIFAR-10-C has \(50000, 32"):
        load("cifar10c:frost:1", "test")
    (cifar10c.folder / "fog.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"fog\.npy or the labels beside it cannot be read"):
        load("cifar10c:fog:1", "test")


def test_cifar10c_is_downloaded_only_on_request_and_where_missing(cifar10c, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def fetched(folder):
        asked.append(str(folder))
        return cifar10c.folder

    monkeypatch.setattr("lossmap.download.fetch_cifar10c", fetched)
    for path in (cifar10c.folder, tmp_path):
        assert load("cifar10c:fog:1", "test", data_path=path, download=True).samples == 10
    assert not asked
    assert load("cifar10c:fog:1", "test", data_path="away", download=True).samples == 10
    assert load("cifar10c:fog:1", "test", download=True).samples == 10
    assert asked == ["away", "data"]
    with pytest.raises(ValueError, match="only cifar10c:NAME:LEVEL can be downloaded; got 'digits'"):
        load("digits", download=True)
