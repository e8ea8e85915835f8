"""Values that travel: pickled into another process, saved and read back equal, given to xarray, shown in a notebook."""

import base64
import pickle
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lossmap
from lossmap.data.batches import Streamed
from lossmap.data.loaders import of_dataset
from lossmap.io import read as io_read
from lossmap.io.surface import Failure, Group
from lossmap.linalg.eigenpairs import EigenPairs
from lossmap.results import CLASSES, Results, class_named, decode, encode

X, Y = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
LOAD = """
import pickle, sys, torch
point, measures, products, problems = pickle.load(open(sys.argv[1], "rb"))
out = [m(point) for m in measures] + [(p @ torch.ones(p.size)).tolist() for p in products]
import lossmap
line = lambda p: lossmap.random_plane(p.model, axes=1, seed=0)
plan = {"batch_size": 30}
out += [lossmap.losses(p, line(p), plan=plan)(point)["train_loss"] for p in problems]
pickle.dump(out, open(sys.argv[1] + ".out", "wb"))
"""


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def supervised():
    return lossmap.Problem.supervised(net(), "crossentropy", (X, Y))


def test_problems_measures_and_operators_work_in_another_process(tmp_path):
    model, point = net(), (0.3,)
    dataset = TensorDataset(X, Y)
    streamed = Streamed(of_dataset(dataset, torch.utils.data.default_collate).fetch, range(30), 10)
    weighted = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))
    problems = [
        lossmap.Problem.supervised(model, "crossentropy", (X, Y)),
        lossmap.Problem.supervised(model, weighted, DataLoader(dataset, 10)),
        lossmap.Problem.supervised(model, F.cross_entropy, (X, Y)),
        replace(lossmap.Problem.supervised(model, "crossentropy", (X, Y)), data=streamed),
        lossmap.Problem.custom(model, energy, X),
    ]
    line = lossmap.random_plane(model, axes=1, seed=0)
    plan = {"batch_size": 30}
    measures = [
        lossmap.losses(problems[0], line, plan=plan),
        lossmap.EigenvalueMap(problems[0], line, backend="linearized", certify="none"),
    ]
    products = [
        lossmap.hessian(problems[0], backend=backend) for backend in ("double-backward", "linearized", "retained-graph")
    ]
    products.append(lossmap.gauss_newton(problems[0], backend="linearized"))
    expected = [m(point) for m in measures] + [(p @ torch.ones(p.size)).tolist() for p in products]
    expected += [lossmap.losses(p, line, plan=plan)(point)["train_loss"] for p in problems]
    file = tmp_path / "things"
    file.write_bytes(pickle.dumps((point, measures, products, problems)))
    subprocess.run([sys.executable, "-c", LOAD, str(file)], check=True, timeout=120, env=environment())
    results = pickle.loads((tmp_path / "things.out").read_bytes())
    for ours, theirs in zip(expected, results, strict=True):
        if isinstance(ours, dict):
            ours, theirs = ([d[k] for k in ("train_loss", "max_eig") if k in d] for d in (ours, theirs))
        assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-6)


def energy(model, batch):
    return (model(batch) ** 2).mean()


def environment():
    import os
    from pathlib import Path

    here = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": f"{here}:{Path(__file__).parent}"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One of each kind of result."""
    problem, folder = supervised(), tmp_path_factory.mktemp("run")
    operator = lossmap.hessian(problem)
    for step in range(3):
        torch.save({k: t * (1 + step) for k, t in problem.model.state_dict().items()}, folder / f"step{step}.pt")
    plane = lossmap.random_plane(problem.model, seed=0)
    eigenmap = lossmap.EigenvalueMap(problem, plane, "top:2", backend="double-backward", certify="none")
    return {
        "surface": lossmap.survey(lossmap.losses(problem, plane), lossmap.Grid.square(-1, 1, 3)),
        "eigenmap": lossmap.survey(eigenmap, lossmap.Grid.square(-1, 1, 2), path=folder / "eigen.h5"),
        "spectrum": lossmap.spectrum(problem, top=2, dense=0, density_steps=8, density_probes=2),
        "layers": lossmap.layer_spectra(problem, "module", dense=16, second=("inputs",)),
        "singular values": lossmap.singular_values(problem.model),
        "density": lossmap.spectral_density(operator, steps=8, probes=2),
        "eigenpairs": lossmap.eigenpairs(operator, "top:2"),
        "trace": lossmap.trace(operator, products=8),
        "dynamics": lossmap.run_dynamics([folder], problem, path=folder / "run.h5", top=2, backend="double-backward"),
        "diagnosis": lossmap.diagnose(problem),
        "plane": plane,
    }


KINDS = (
    "surface", "eigenmap", "spectrum", "layers", "singular values", "density", "eigenpairs", "trace", "dynamics",
    "diagnosis", "plane",
)  # fmt: skip
DRAWN = ("surface", "eigenmap", "spectrum", "layers", "density", "dynamics", "diagnosis")


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_comes_back_equal_from_a_file_from_a_pickle_and_by_its_class(results, kind, tmp_path):
    result = results[kind]
    path = result.save(tmp_path / "r.h5")
    assert result.equals(lossmap.read(path)) and lossmap.read(path).equals(result)
    assert result.equals(lossmap.read(path, type(result)))
    assert repr(lossmap.read(path)).replace(str(path), "") == repr(result).replace(str(getattr(result, "path", "")), "")
    assert pickle.loads(pickle.dumps(result)).equals(result)
    others = [results[other] for other in KINDS if type(results[other]) is not type(result)]
    assert not any(result.equals(other) or other.equals(result) for other in others)
    with pytest.raises(FileExistsError, match="exists"):
        result.save(path)
    result.save(path, overwrite=True)


def test_a_difference_anywhere_is_seen(results):
    spectrum, surface = results["spectrum"], results["surface"]
    moved = replace(spectrum.top, values=spectrum.top.values + 1e-12)
    assert not spectrum.equals(replace(spectrum, top=moved))
    assert not spectrum.equals(replace(spectrum, label="other"))
    assert not surface.equals(replace(surface, fields={**surface.fields, "train_loss": surface["train_loss"] + 1e-12}))
    assert not surface.equals(replace(surface, settings={"file": {"a": 1}}))


@pytest.mark.parametrize("kind", KINDS)
def test_xarray_has_all_that_a_result_holds(results, kind):
    pytest.importorskip("xarray")
    result = results[kind]
    tree = result.to_xarray()
    surface = result.as_surface() if kind not in ("surface", "eigenmap") else result
    for name, values in surface.fields.items():
        np.testing.assert_array_equal(tree[name].to_numpy(), values)
    for measure, states in surface.status.items():
        np.testing.assert_array_equal(tree[f"{measure}_status"].to_numpy(), states)
    assert set(surface.attributes) <= set(tree.attrs) and "settings" in tree.attrs
    for name, group in surface.groups.items():
        assert set(group.attributes) <= set(tree[name].attrs)
        for key, array in group.arrays.items():
            np.testing.assert_array_equal(tree[name][key].to_numpy(), array)
    if kind not in ("surface", "eigenmap"):  # the value itself can be made again of what xarray has
        node = tree["values/result"]
        arrays = {key: node[key].to_numpy() for key in node.data_vars}
        assert decode(Group(arrays, dict(node.attrs))).equals(result)


def test_xarray_has_failures_further_dimensions_and_the_directions_that_stay_in_the_file(results):
    pytest.importorskip("xarray")
    surface = results["eigenmap"]
    tree = surface.to_xarray()
    assert tree["top_eig"].dims == ("ycoordinates", "xcoordinates", "top")
    assert tree["directions/x"]["0.weight"].shape == (5, 4)
    failed = replace(surface, failures=(Failure(1, 0, "host", "Error: broke", "eigen"),)).to_xarray()
    assert failed["failures"]["text"].to_numpy().tolist() == ["Error: broke"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_notebook_shows_the_report_and_the_picture_where_there_is_one(results, kind):
    result = results[kind]
    html = result._repr_html_()
    assert "white-space: pre-wrap" in html  # so that lines wrap to the width of the page
    if kind in DRAWN:
        picture = base64.b64decode(html.split("data:image/png;base64,")[1].split('"')[0])
        assert picture.startswith(b"\x89PNG") and len(picture) > 2000
    else:
        assert "<img" not in html


def test_a_surface_in_progress_draws_itself_and_one_without_a_value_does_not():
    grid = lossmap.Grid.square(-1, 1, 3)
    some = np.full((3, 3), np.nan)
    assert lossmap.Surface(grid, {"train_loss": some})._repr_png_() is None
    assert "no finite value" in lossmap.Surface(grid, {"train_loss": some})._repr_html_()
    some[:2] = 1.0
    some[0, 0] = 2.0
    assert lossmap.Surface(grid, {"train_loss": some})._repr_png_().startswith(b"\x89PNG")


def test_every_class_that_a_file_may_hold_is_where_the_table_says():
    assert all(class_named(kind).__name__ == kind for kind in CLASSES)


def test_a_value_keeps_its_types_and_what_cannot_be_kept_is_refused():
    half = torch.tensor([1.5, float("nan")], dtype=torch.bfloat16)
    pairs = EigenPairs(np.array([np.inf]), half[:, None], np.array([0.0]), (1.0, np.nan), 3, True, 1e-3, 1.0)
    kept = decode(encode(pairs))
    assert kept.equals(pairs) and kept.vectors.dtype == torch.bfloat16 and kept.converged is True
    texts = Group({"a": np.array(["x", "y"], dtype=object), "b": np.array([True, False])}, {"n": 1})
    assert decode(encode(texts)).arrays["b"].dtype == bool
    with pytest.raises(TypeError, match="a complex cannot be saved"):
        encode({"a": 1j})
    with pytest.raises(ValueError, match="newer version"):
        decode(replace(encode(pairs), attributes={**encode(pairs).attributes, "encoding": 99}))


@pytest.mark.parametrize(
    "structure",
    [
        "{",
        '{"kind": "Surgery", "fields": {}}',
        '{"kind": "EigenPairs", "fields": {}}',
        '{"array": "gone", "dtype": "<f8"}',
        '{"tensor": "values", "dtype": "load"}',
        '{"array": "values", "dtype": "no type"}',
        '{"map": 3}',
        "[" * 5000,
    ],
)
def test_a_stored_value_that_somebody_changed_is_refused_in_one_sentence(structure):
    group = Group({"values": np.zeros(2)}, {"kind": "EigenPairs", "encoding": 1, "structure": structure})
    with pytest.raises(ValueError, match="the stored EigenPairs cannot be put together"):
        decode(group)


def test_a_file_with_several_results_is_a_mapping_and_the_class_picks_one(results, tmp_path):
    both = Results({"spectrum/train": results["spectrum"], "layers/train": results["layers"]})
    path = both.save(tmp_path / "both.h5")
    assert lossmap.read(path).equals(both)
    with pytest.raises(ValueError, match=r"must hold one Diagnosis; it holds Results \(result\)"):
        lossmap.read(path, lossmap.Diagnosis)
    with pytest.raises(KeyError, match="there are: spectrum/train, layers/train"):
        both["health"]


# ---- open elsewhere


@pytest.fixture
def file(results, tmp_path):
    return results["surface"].save(tmp_path / "s.h5")


@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_result_that_this_process_has_open_in_h5py_is_read_drawn_and_written_beside(results, file, mode, tmp_path):
    with h5py.File(file, mode):
        assert lossmap.read(file).equals(results["surface"])
        lossmap.draw(str(file))
        lossmap.read(file).save(tmp_path / "copy.h5")
    assert lossmap.read(tmp_path / "copy.h5").equals(results["surface"])


def test_a_result_that_this_process_has_open_in_xarray_is_read_and_drawn(results, file):
    xarray = pytest.importorskip("xarray")
    with xarray.open_dataset(file, engine="h5netcdf") as data:
        assert float(data["train_loss"][1, 1]) == lossmap.read(file)["train_loss"][1, 1]
        lossmap.draw(str(file))


def test_only_a_file_that_is_damaged_is_called_so_and_no_other_error_advises_to_overwrite(file, monkeypatch):
    content = file.read_bytes()
    file.write_bytes(content[:3000])
    with pytest.raises(ValueError, match=r"is damaged: .*restore it from a backup, or name another file"):
        lossmap.read(file)
    file.write_bytes(content)
    with h5py.File(file, "w") as writing:  # nothing of it is on the disk yet
        writing["x"] = np.arange(1000)
        with pytest.raises(ValueError, match="is open in this process") as caught:
            lossmap.read(file)
        assert "overwrite" not in str(caught.value)

    def refuse(*_, **__):
        raise OSError("Unable to open file (something new)")

    file.write_bytes(content)
    monkeypatch.setattr("lossmap.io.hdf5_open.h5py.File", refuse)
    with pytest.raises(ValueError, match="cannot be opened by HDF5") as caught:
        io_read.read(file)
    assert "overwrite" not in str(caught.value) and "damaged" not in str(caught.value)


def test_an_operator_of_scipy_works_after_pickling():
    matrix = lossmap.hessian(supervised()).to_scipy()
    v = np.ones(matrix.shape[0], matrix.dtype)
    assert np.array_equal(pickle.loads(pickle.dumps(matrix)) @ v, matrix @ v)


@pytest.mark.parametrize("path", [".", "", "plain.txt/inside.h5"])
def test_a_path_that_can_be_no_file_is_refused_in_one_sentence(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.txt").write_text("text")
    with pytest.raises(OSError, match=r"is a folder; a surface is a file|there is no file plain.txt/inside.h5"):
        lossmap.read(path)


def test_a_field_whose_name_no_file_can_hold_is_refused():
    with pytest.raises(ValueError, match="must hold no '/'; got 'a/b'"):
        lossmap.Surface(lossmap.Grid.line(-1, 1, 3), {"a/b": np.zeros(3)})


def test_a_kind_that_is_no_class_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"must be a class, such as lossmap\.Surface; got 'Surface'"):
        lossmap.read(tmp_path / "s.h5", "Surface")


def test_a_result_without_a_figure_says_so():
    trace = lossmap.trace(lossmap.hessian(supervised()), products=10)
    with pytest.raises(ValueError, match=r"no figure of this result \(Trace\): print it"):
        lossmap.draw(trace)


@pytest.mark.parametrize("name", ["Problem", "Spectrum", "BlockSpectra", "Diagnosis"])
def test_a_constructor_names_the_nearest_keyword(name):
    with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword '.*'; did you mean"):
        getattr(lossmap, name)(
            **{{"Problem": "mdoel", "Diagnosis": "finding", "BlockSpectra": "block"}.get(name, "labl"): 1}
        )
