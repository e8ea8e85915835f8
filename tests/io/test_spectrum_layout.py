"""Spectra in files: groups found again by label, errors in a sentence."""

import numpy as np
import pytest

from lossmap.geometry.grid import Grid
from lossmap.io.read import SurfaceFile
from lossmap.io.spectrum_layout import group_name, group_of, layers_in, spectra_in


class Value:
    def __init__(self, label="net", **arrays):
        self.label, self.arrays = label, {k: np.asarray(v) for k, v in arrays.items()}

    def stored(self):
        return self.arrays, {"label": self.label, "verdict": "fine", "nothing": None}


def test_a_group_leaves_out_what_is_not_there():
    group = group_of(Value(top=[1.0]))
    assert "nothing" not in group.attributes and group["top"] == [1.0]


def test_labels_with_slashes_stay_one_level_deep():
    assert group_name("spectrum", "run/a") == "spectrum/run_a"
    assert group_name("spectrum", "") == "spectrum/whole"


def test_a_file_gives_back_what_was_put_into_it(tmp_path):
    store = SurfaceFile.open(tmp_path / "s.h5", Grid(np.arange(2)), measures={})
    store.put(group_name("spectrum", "net"), group_of(Value(top=[2.0, 1.0])))
    store.put(group_name("layers", "net"), group_of(Value(block=np.array(["a"], dtype=object))))
    store.close()
    found = spectra_in(tmp_path / "s.h5")
    assert list(found) == ["net"] and found["net"]["top"].tolist() == [2.0, 1.0]
    assert layers_in(str(tmp_path / "s.h5"))["net"]["block"].tolist() == ["a"]


def test_values_and_mappings_are_sources_too():
    assert list(spectra_in(Value(top=[1.0]))) == ["net"]
    assert list(spectra_in({"a": Value(top=[1.0]), "b": group_of(Value(top=[1.0]))})) == ["a", "b"]


def test_what_holds_no_spectrum_and_no_layers_says_how_to_make_them(tmp_path):
    SurfaceFile.open(tmp_path / "s.h5", Grid(np.arange(2)), measures={}).close()
    with pytest.raises(ValueError, match="holds no spectrum"):
        spectra_in(tmp_path / "s.h5")
    with pytest.raises(ValueError, match="holds no layers"):
        layers_in(Value(top=[1.0]))
