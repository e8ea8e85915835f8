"""Pickles read by a list of names."""

import io
import pickle
import warnings
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest
import torch

from lossmap import safe_unpickle


def read(content, protocol=2):
    return safe_unpickle.read(io.BytesIO(pickle.dumps(content, protocol)))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_and_plain_values_come_back(protocol):
    content = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 2], "x": np.float32(2.5), "b": b"\xff"}
    back = read(content, protocol)
    assert np.array_equal(back["data"], content["data"]) and back["data"].dtype == np.uint8
    assert (back["labels"], back["x"], back["b"]) == ([1, 2], 2.5, b"\xff")


@pytest.mark.parametrize("call", [eval, print, getattr, open])
def test_other_functions_are_refused(call):
    with pytest.raises(safe_unpickle.Refused, match="which could run code"):
        read({"f": call})


def test_an_array_of_objects_cannot_smuggle_one_in():
    with pytest.raises(safe_unpickle.Refused, match=r"it asks for (builtins|__builtin__)\.eval"):
        read(np.array([eval, 1], dtype=object))


TAGGED = torch.ones(3)
TAGGED.label = "weights of somebody's own"

BESIDE = {
    "shape": torch.Size([3, 2]),
    "device": torch.device("cpu"),
    "type": torch.bfloat16,
    "scheme": torch.per_tensor_affine,
    "layout": torch.sparse_coo,
    "sparse": torch.eye(3).to_sparse(),
    "eighths": torch.tensor([0.5, -2.0]).to(torch.float8_e5m2),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "number": 1 + 2j,
    "bytes": bytearray(b"ab"),
    "names": {"a", "b"},
    "tagged": TAGGED,
    "buffer": torch.nn.Buffer(torch.ones(2)) if hasattr(torch.nn, "Buffer") else torch.ones(2),
    "count": Counter("aab"),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("name", BESIDE)
def test_what_pytorch_keeps_beside_weights_is_read_in_every_protocol(name, is_zip, protocol):
    if name == "eighths" and not is_zip:
        pytest.skip("PyTorch cannot write it so")
    weights, value, file = torch.arange(4.0), BESIDE[name], io.BytesIO()
    torch.save({"weights": weights, name: value}, file, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    file.seek(0)
    back = safe_unpickle.load_tensors(file)
    assert torch.equal(back["weights"], weights)
    if isinstance(value, torch.Tensor):
        assert back[name].dtype == value.dtype and back[name].layout == value.layout
        assert torch.equal(back[name].to_dense().float(), value.to_dense().float())
    else:
        assert back[name] == value


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", ["u1", "<f4", ">i8", "U3", "S2", "?", "c8", "O"])
def test_what_is_damaged_ends_in_an_error_and_not_in_a_crash(kind, protocol):
    values = np.array([1, 0, 1], dtype=kind)
    assert np.array_equal(read(values, protocol), values)
    assert read(values, protocol).dtype == values.dtype.newbyteorder("=")
    content, draw = pickle.dumps([values, {"a": 1.5, "b": "text"}], protocol), np.random.default_rng(0)
    for _ in range(200):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[draw.integers(len(damaged), size=2)] = draw.integers(256, size=2)
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            repr(safe_unpickle.read(io.BytesIO(damaged.tobytes())))
    assert np.array_equal(read(values, protocol), values)  # nothing in this process was changed


OF_OBJECTS = np.empty((2, 3), object, order="F")
OF_OBJECTS[:] = [[1, "b", 3.0], [4, None, (6,)]]
SHARED = np.arange(3.0)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize(
    "values",
    [
        OF_OBJECTS,
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.moveaxis(np.arange(24.0).reshape(2, 3, 4), 0, 1),
        np.arange(48, dtype="f4").reshape(2, 2, 3, 4).transpose(3, 2, 0, 1),
        np.arange(24.0).reshape(2, 3, 4)[:, ::2, ::-1],
        np.zeros((0, 3), "f4"),
        np.array(2.5),
        np.array(["2026-11-30", "1999-01-01"], "datetime64[D]"),
        np.zeros(2, np.dtype("f4", metadata={"of": "somebody"})),
        np.array([(1.5, 2)], [("a", "f4"), ("b", "i4")]),
    ],
)
def test_arrays_of_every_form_come_back(values, protocol):
    back = read({"a": values, "again": [values, b""]}, protocol)
    assert np.array_equal(back["a"], values) and back["a"].shape == values.shape
    assert back["again"][0] is back["a"] and back["again"][1] == b""


def test_what_a_checkpoint_holds_beside_weights_is_read_in_the_usual_protocol(tmp_path):
    beside = {
        "classes": np.array(["cat", "dog"]),
        "losses": np.zeros(0),
        "z": np.complex64(1j),
        "big": np.ones(2, ">f8"),
    }
    torch.save({"state_dict": {"w": torch.ones(2)}, **beside}, tmp_path / "a.pt")
    back = safe_unpickle.load_tensors(tmp_path / "a.pt")
    assert back["classes"].tolist() == ["cat", "dog"] and back["losses"].shape == (0,) and back["z"] == 1j
    assert torch.equal(torch.as_tensor(back["big"]), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_beside_weights_come_back_in_every_protocol(protocol, is_zip, tmp_path):
    content = {
        "w": torch.eye(3).to_sparse(),
        "a": np.moveaxis(np.arange(24.0).reshape(2, 3, 4), 0, 1),
        "n": np.float64(0.5),
    }
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    for _ in range(2):
        back = safe_unpickle.load_tensors(tmp_path / "a.pt")
        assert np.array_equal(back["a"], content["a"]) and back["n"] == 0.5
        assert torch.equal(back["w"].to_dense(), torch.eye(3))


def test_a_file_that_was_refused_makes_no_other_one_damaged(tmp_path):
    outside = torch.sparse_coo_tensor([[0, 9]], [1.0, 2.0], (10,))
    raw = pickle.dumps([outside, print], 4).replace(np.array([0, 9]).tobytes(), np.array([0, 10**9]).tobytes())
    with pytest.raises(safe_unpickle.Refused):
        safe_unpickle.read(io.BytesIO(raw))
    torch.save({"w": torch.ones(2), "n": np.float64(0.5)}, tmp_path / "good.pt")
    assert torch.equal(safe_unpickle.load_tensors(tmp_path / "good.pt")["w"], torch.ones(2))


def test_weights_that_python_2_has_written_are_read():
    raw = np.array([1.5, -2.0], "<f8").tobytes()
    assert raw[-1] > 127  # no ASCII
    begin = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02t"
    dtype = b"cnumpy\ndtype\n(U\x02f8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    content = begin + dtype + b"\x89U\x10" + raw + b"tb."
    assert safe_unpickle.read(io.BytesIO(content)).tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    "content",
    [
        b"cnumpy\nndarray\n((K\x01tcnumpy\ndtype\n(X\x01\x00\x00\x00OtRC\x08\xff\xff\xff\xff\xff\xff\xff\xfftR.",
        b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x04\x00\x00\x00O,i4tRC\x0c\xff\xff\xff\xff\xff\xff\xff\xff0000tR.",
        b"ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsX\x01\x00\x00\x00xsb.",
        b"cbuiltins\nbytearray\n(\x8a\x06\x00\x00\x00\x00\x00\x02tR.",
    ],
)
def test_what_would_crash_or_take_all_memory_is_an_error(content):
    with pytest.raises((safe_unpickle.Refused, TypeError)):
        safe_unpickle.read(io.BytesIO(b"\x80\x04" + content))


def test_indices_of_a_sparse_tensor_that_lie_outside_are_an_error():
    sparse = torch.sparse_coo_tensor([[0, 9]], [1.0, 2.0], (10,))
    content, indices = pickle.dumps(sparse, 4), np.array([0, 9], np.int64).tobytes()
    assert torch.equal(safe_unpickle.read(io.BytesIO(content)).to_dense(), sparse.to_dense())
    assert indices in content
    with pytest.raises(RuntimeError, match="size is inconsistent with indices"):
        safe_unpickle.read(io.BytesIO(content.replace(indices, np.array([0, 10**9], np.int64).tobytes())))


@pytest.mark.parametrize("name", ["collections Counter", "argparse Namespace", "torch._utils _rebuild_tensor_v2"])
def test_no_class_and_no_function_of_this_process_is_changed(name):
    module, _, function = name.partition(" ")
    attributes = b"\x8c\x05label\x8c\x03abcs"  # {"label": "abc"}, set on what was asked for
    text = f"c{module}\n{function}\n".encode()
    for state in (b"}(" + attributes[:-1] + b"u", b"N}(" + attributes[:-1] + b"u\x86"):
        with pytest.raises(safe_unpickle.Refused, match=f"it changes {function}"):
            safe_unpickle.read(io.BytesIO(b"\x80\x04" + text + state + b"b."))
    assert not hasattr(safe_unpickle.Unpickler(io.BytesIO()).find_class(module, function), "label")


@pytest.mark.parametrize("call", ["load", "hub.load", "utils.cpp_extension.load", "nn.Linear", "_C"])
def test_nothing_else_of_torch_is_read(call):
    text = f"\x8c\x05torch\x8c{chr(len(call))}{call}\x93.".encode("latin-1")
    with pytest.raises(safe_unpickle.Refused, match=f"it asks for torch.{call}"):
        safe_unpickle.read(io.BytesIO(b"\x80\x04" + text))
