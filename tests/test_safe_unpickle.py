"""Pickles read by a list of names."""

import io
import pickle

import numpy as np
import pytest

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
