"""The page on the result file names what files hold: a file of each kind is written, and its names are compared."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import lossmap
from lossmap.callbacks import CurvatureMonitor
from lossmap.cli.__main__ import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "file-format.md"
NETCDF = {"DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME", "_Netcdf4Dimid", "_Netcdf4Coordinates", "_FillValue"}
FIELD = {"units", "long_name", "measure", "split"}  # the page describes them once, for every field
STATUS = {"flag_values", "flag_meanings", "long_name", "measure", "fields", "points"}
NET = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))

def fails(outputs, targets):
    loss = nn.functional.cross_entropy(outputs, targets)
    if loss > 3:
        raise RuntimeError("too large")
    return loss
"""
NETWORK = "--model net.py:net --dataset npz:data.npz --threads 1"
SQUARE = "--x=-1:1:2 --y=-1:1:2"
COMMANDS = (
    (0, f"train {NETWORK} --folder run --epochs 3 --batch-size 20"),
    (0, f"surface {NETWORK} {SQUARE} --surf-file surface.h5"),
    (0, f"eigenmap {NETWORK} {SQUARE} --surf-file surface.h5"),
    (0, f"health {NETWORK} --surf-file surface.h5"),
    (3, f"surface {NETWORK} --loss net.py:fails --x=-9:9:2 --y=-9:9:2 --surf-file failed.h5"),
    (0, f"eigenmap {NETWORK} --x=0:1:2 --parameters weights --which top:2,trace --certify none --surf-file top.h5"),
    (0, f"eigenmap {NETWORK} --x=0:1:2 --which bottom:2 --certify none --surf-file bottom.h5"),
    (0, f"eigenmap {NETWORK} --x=0:1:2 --which abs:2 --certify none --surf-file abs.h5"),
    (0, f"plane {NETWORK} --model-folder run --xdir pca:1 --ydir pca:2 --proj-file path.h5"),
    (0, f"surface {NETWORK} --model-folder run --dir-file path.h5 --proj-file path.h5 {SQUARE} --surf-file path2.h5"),
    (0, f"surface {NETWORK} --x=-1:1:13 --y=-1:1:13 --refine 0.1 --surf-file refined.h5"),
    (0, f"surface {NETWORK} {SQUARE} --loss-error 0.1 --surf-file sampled.h5"),
    (0, f"surface {NETWORK} {SQUARE} --shard 1/2 --surf-file shard.h5"),
    (0, f"dynamics run {NETWORK} --top 2 --full-spectrum --surf-file dynamics.h5"),
    (0, f"connect run/step_000000.pt run/step_000003.pt {NETWORK} --points 3 --align weights "
        "--curve bezier --curve-steps 3 --surf-file connect.h5"),
    (0, "topology surface.h5 -o minima.h5"),
    (0, "sharpness --model mlp --samples 20 --threads 1 --draws 2 --ascent-steps 1 --trace-products 6 --rescale 2 "
        "--surf-file sharpness.h5"),
    (0, f"spectrum {NETWORK} --parameters all --top 1 --dense-limit 10 --vectors --density-steps 4 --density-probes 1 "
        "--trace-products 6 --diagonal --layers tensor --layer-output-hessian both --singular-values --tail-mass 0.1 "
        "--l2 0.1 --surf-file spectrum.h5"),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a result file of each kind."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 4)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=x[:, :3].argmax(1))
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for code, words in COMMANDS:
            assert main(words.split()) == code, words
    torch.set_num_threads(threads)
    model = torch.nn.Linear(4, 3)
    problem = lossmap.Problem.supervised(
        model, "crossentropy", (torch.from_numpy(x), torch.from_numpy(x[:, :3].argmax(1)))
    )
    CurvatureMonitor(problem, torch.optim.SGD(model.parameters(), 0.1), path=folder / "training.h5").measure()
    return folder


@pytest.fixture(scope="module")
def names(folder):
    """Every name in the files, in the page's form."""
    found = set()
    for path in folder.glob("*.h5"):
        with h5py.File(path) as file:
            found |= {general(f"@{name}") for name in set(file.attrs) - NETCDF}
            items: list = []
            file.visititems(lambda name, item, items=items: items.append((name, item)))
            for name, item in items:
                found.update(names_of(name, item))
    return found


def names_of(name, item):
    """The name of a dataset, and those of the attributes of a dataset or group that the page lists one by one."""
    if re.search(r"(^|/)n[0-9]+(_other)*$", name):
        return
    own = set(item.attrs) - NETCDF
    if isinstance(item, h5py.Dataset):
        yield general(name)
        own -= STATUS if name.endswith("_status") else FIELD
    yield from (general(f"{name}/@{attribute}") for attribute in own)


def general(name):
    """A name with placeholders in the place of labels, tensors, blocks, measures and splits."""
    name = re.sub(r"^(spectrum|layers|sharpness)/(?!l2_path/)[^/]+", r"\1/LABEL", name)
    name = re.sub(r"^tasks/[^/]+/(block|leak)/[^/]+/.*", r"tasks/LABEL/\1/NAME", name)
    name = re.sub(r"^tasks/[^/]+/(average|worst)/[^/]+/.*", r"tasks/LABEL/\1/BALL", name)
    name = re.sub(
        r"^tasks/[^/]+/(largest|critical|density|whole|ends|trace|gradient|block_ends)/.*", r"tasks/LABEL/\1", name
    )
    name = re.sub(r"^(directions/(?:[xy]|bend)|weights/singular_values)/(?!@).*", r"\1/TENSOR", name)
    name = re.sub(r"^directions/y/@", "directions/x/@", name)
    name = re.sub(r"^values/[^/]+/(?!@).*", "values/NAME/ARRAY", name)
    name = re.sub(r"^values/[^/]+/@", "values/NAME/@", name)
    name = re.sub(r"^health/(?!@).*", "health/NUMBER", name)
    name = re.sub(r"^@(loss|eigen|spectrum|along|sharpness)_(took|estimate|notes)$", r"@MEASURE_\2", name)
    name = re.sub(r"^@code_(loss|eigen|spectrum|along|sharpness)$", "@code_MEASURE", name)
    name = re.sub(r"^@method_(eigen|audit)$", "@method_MEASURE", name)
    name = re.sub(r"^((?:connection/)?@?)(unaligned|curve)_.*", r"\1\2_NAME", name)
    name = re.sub(r"^@resolved_\w+", "@resolved_COMMAND", name)
    name = re.sub(r"^((?:connection/|refinement/|sampling/)?@?)(?:train|test)_(?!size)(\w+)$", r"\1SPLIT_\2", name)
    return re.sub(r":.*", ":NAME", name)


def rows():
    """The names of the page with the rest of their row."""
    for row in re.findall(r"^\| (`.+)$", PAGE.read_text(), re.MULTILINE):
        first, rest = row.split(" | ", 1)
        for name in re.findall(r"`([^`]+)`", first):
            yield name, rest


@pytest.mark.slow
def test_every_name_in_a_file_is_on_the_page(names):
    assert names - {name for name, _ in rows()} == set()


@pytest.mark.slow
def test_every_name_on_the_page_is_in_a_file(names):
    conditional = ("only ", "predicted")  # rows that say under which further condition a name is there
    listed = {name for name, rest in rows() if not name.startswith("FILE") and not any(c in rest for c in conditional)}
    assert listed - names == set()


@pytest.mark.slow
def test_the_arrays_of_each_task_are_on_the_page(folder):
    listed = dict(rows())
    with h5py.File(folder / "spectrum.h5") as file:
        for kind, group in file["tasks/train"].items():
            groups = list(group.values()) if kind in ("block", "leak", "density") else [group]
            text = listed[general(f"tasks/train/{kind}/x/x")] + listed["tasks/LABEL/density"]
            for name in {name for group in groups for name in group if not re.match(r"n\d", name)}:
                assert re.search(rf"`{name}`|`{re.sub('^(top|bottom)(?=_)', '', name)}`", text), (kind, name)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["surface.h5", "top.h5", "dynamics.h5", "training.h5"])
def test_every_field_has_a_unit_and_a_meaning(folder, file):
    with h5py.File(folder / file) as opened:
        fields = {name: item for name, item in opened.items() if isinstance(item, h5py.Dataset) and item.dtype == "f8"}
        assert len(fields) > 5
        for name, item in fields.items():
            assert item.attrs["units"] and item.attrs["long_name"], name
