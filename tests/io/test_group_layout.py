"""Groups whose parts do not fit are refused by name wherever they are drawn or read: no KeyError, no other's words."""

import json

import numpy as np
import pytest

import lossmap
from lossmap.dynamics.eigenspaces import compare_eigenspaces
from lossmap.dynamics.run import results
from lossmap.dynamics.snapshots import Snapshots
from lossmap.dynamics.summary import summarize
from lossmap.io.group_layout import check_groups
from lossmap.io.read import Damaged, write_surface
from lossmap.io.spectrum_layout import group_of
from lossmap.io.surface import Group, Surface
from lossmap.plotting.figures import draw
from lossmap.plotting.spectra import draw_layers, draw_spectrum

ROW = np.linspace(0.1, 1.0, 5)


def layers():
    pairs = {"positive": [[3, 3], [0, 0]], "negative": [[0, 1], [0, 0]], "zero": [[1, 1], [4, 4]]}
    arrays = {name: np.array(value) for name, value in pairs.items()}
    arrays |= {name: np.array([1.0, 0.0]) for name in ("largest", "smallest", "floor")}
    arrays |= {"block": np.array(["a/b", "c"], object), "kind": np.array(["indefinite", "zero"], object)}
    arrays |= {"size": np.array([4, 4]), "eigenvalues:a_b": ROW[:2], "nodes:a_b": ROW, "weights:a_b": ROW / ROW.sum()}
    return Group(arrays, {"unit": "nats"})


def spectrum():
    arrays = dict.fromkeys(("node", "weight", "tick", "cumulative", "cumulative_low", "cumulative_high"), ROW)
    arrays |= {"top": ROW[:2], "top_error": 0 * ROW[:2]}
    return Group(arrays, {"size": 10, "upper_limit": 2.0, "density_probes": 1, "density_confidence": 0.95})


def evolution():
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 4)))[0]
    vectors = [np.cos(a) * basis[:, :2] + np.sin(a) * basis[:, 2:] for a in np.linspace(0, 1.2, 6)]
    run = compare_eigenspaces(Snapshots.of(range(6), [np.array([2.0, 1.0])] * 6, vectors))
    return results(run, summarize(run), {"loss": np.linspace(2, 1, 6)})


def topology():
    grid = lossmap.Grid.square(-1, 1, 9)
    x, y = np.meshgrid(grid.x, grid.y)
    return group_of(lossmap.find_minima(Surface(grid, {"train_loss": np.cos(7 * x) * np.cos(7 * y) + 2})))


def sharpness():
    names = ("radius", "average", "average_error", "rounding", "sam", "sam_error", "worst", "worst_error")
    arrays = {f"ball_{name}": ROW[:2] for name in names} | {"ball": np.array(["filter", "absolute"], object)}
    return Group(arrays | {f"ball_{name}": np.array([3, 3]) for name in ("draws", "starts", "steps")})


def connection():
    return Group({"t": np.linspace(0, 1, 5), "train_loss": ROW, "curve_train_loss": ROW}, {"first": "a", "other": "b"})


def path():
    return Group({"x": ROW, "y": ROW, "step": np.arange(5.0), "loss": ROW})


HEALTH = '{"label": "a", "findings": [], "parameters": 3, "samples": 2, "skipped": {}, "numbers": {}}'
MADE = {
    "layers/net": layers, "spectrum/net": spectrum, "evolution/results": evolution, "topology": topology,
    "sharpness/net": sharpness, "connection": connection, "trajectory": path,
    "health": lambda: Group({"accuracy": np.array([0.5, 0.1])}, {"report": HEALTH}),
}  # fmt: skip
KINDS = {"evolution/results": "evolution", "trajectory": "path"}
SPOILT = {  # group, array or @attribute, what becomes of it (None: gone), what the sentence says
    "the eigenvalues of a listed layer": ("layers/net", "eigenvalues:a_b", None, "has no array 'eigenvalues:a_b'"),
    "a layer more": ("layers/net", "block", np.array(list("xyz"), object), "a length must be 2, as of 'size'"),
    "fewer weights than nodes": ("layers/net", "weights:a_b", ROW[:3], "must be a row of 5 numbers"),
    "counts without their ends": ("layers/net", "negative", np.array([1, 0]), "must have 2 dimensions"),
    "ends without errors": ("spectrum/net", "top_error", None, "has 'top' and no array 'top_error'"),
    "a band of texts": ("spectrum/net", "cumulative_low", np.array(list("abcde"), object), "must hold numbers"),
    "a node that is NaN": ("spectrum/net", "node", ROW * np.nan, "not finite"),
    "a limit of words": ("spectrum/net", "@upper_limit", "high", "must be a number"),
    "steps of others": ("evolution/results", "step", np.arange(3.0), "where a length must be"),
    "no answers": ("evolution/results", "@answers", None, "no table as JSON in its attribute 'answers'"),
    "a minimum off the grid": ("topology", "minimum", None, "has no array 'minimum'"),
    "balls without radii": ("sharpness/net", "ball_radius", None, "no array 'ball_radius'"),
    "a curve too short": ("connection", "curve_train_loss", ROW[:2], "must be a row of 5 numbers"),
    "a line without losses": ("connection", "train_loss", None, "has no array of losses"),
    "coordinates of two lengths": ("trajectory", "y", ROW[:2], "a length must be 5, as of 'x'"),
    "an eigenvalue without end": ("spectrum/net", "top", np.array([np.inf, 1.0]), "an infinite number in 'top'"),
    "an error below 0": ("spectrum/net", "top_error", -0.1 * ROW[:2], "'top_error', which is never negative"),
    "a value beyond all axes": ("spectrum/net", "top", np.array([1e308, 1.0]), "1e+308 in 'top', more than a figure"),
    "products that are no number": ("spectrum/net", "@products", float("nan"), "must be a number of things"),
    "a report that is none": ("health", "@report", "[1]", "no table as JSON in its attribute 'report'"),
    "a number without its error": ("health", "accuracy", ROW[:1], "must be a row of 2 numbers"),
}  # fmt: skip


def surface_with(name, group):
    return Surface(lossmap.Grid.line(-1, 1, 3), {"train_loss": np.ones(3)}, groups={name: group})


def kind_of(name):
    return KINDS.get(name, name.partition("/")[0])


def spoilt(case):
    name, part, value, words = SPOILT[case]
    whole = MADE[name]()
    arrays, attributes = dict(whole.arrays), dict(whole.attributes)
    table, key = (attributes, part[1:]) if part.startswith("@") else (arrays, part)
    table.pop(key, None)
    if value is not None:
        table[key] = value
    return name, Group(arrays, attributes), words


@pytest.mark.parametrize("name", MADE)
def test_what_fits_is_let_through(name):
    check_groups(surface_with(name, MADE[name]()), kind_of(name))


@pytest.mark.parametrize("case", SPOILT)
def test_what_does_not_fit_is_damaged_and_named(case):
    name, group, words = spoilt(case)
    with pytest.raises(Damaged, match="is damaged: ") as raised:
        draw(surface_with(name, group), kind=kind_of(name))
    assert name in str(raised.value) and words in str(raised.value)


def test_the_sentence_names_the_file_in_figures_pages_and_by_the_command(tmp_path, capsys):
    """A layer is listed whose eigenvalues the file does not hold: it ended in a KeyError."""
    name, group, _ = spoilt("the eigenvalues of a listed layer")
    file = tmp_path / "s.h5"
    write_surface(file, surface_with(name, group))
    for reader in (
        lambda: draw(file, kind="layers"),
        lambda: draw_layers(file),
        lambda: lossmap.page(file, tmp_path / "p.html"),
    ):
        with pytest.raises(Damaged, match=rf"{file} is damaged: layers/net has no array 'eigenvalues:a_b'"):
            reader()
    assert not (tmp_path / "p.html").exists()
    from lossmap.cli.draw import main

    assert main([str(file), "--kind", "layers", "-o", str(tmp_path / "p.png")]) == 2
    assert f"{file} is damaged: layers/net has no array" in capsys.readouterr().err


def test_minima_that_merge_in_a_circle_do_not_hang():
    group = topology()
    assert len(group["into"]) > 1
    into = np.roll(np.arange(len(group["into"])), 1)
    with pytest.raises(Damaged, match="circle"):
        draw(surface_with("topology", Group({**group.arrays, "into": into}, group.attributes)), kind="topology")


def test_a_path_over_a_map_is_looked_at_too():
    grid = lossmap.Grid.square(-1, 1, 5)
    name, group, words = spoilt("coordinates of two lengths")
    with pytest.raises(Damaged, match=words):
        draw(Surface(grid, {"train_loss": np.arange(25.0).reshape(5, 5)}, groups={name: group}))


def test_a_spectrum_that_is_drawn_by_itself_is_looked_at_too():
    with pytest.raises(Damaged, match="spectrum/a has 'top' and no array 'top_error'"):
        draw_spectrum({"a": spoilt("ends without errors")[1]})


def test_a_health_report_of_which_a_part_is_no_number_is_damaged_by_name(tmp_path):
    """It ended in a TypeError of Python from `draw`, and of a page."""
    weights = [{"name": "a", "singular_values": [1.0, {}], "spectral_norm": 1.0}]
    report = HEALTH[:-1] + f', "weights": {json.dumps(weights)}}}'
    file = tmp_path / "h.h5"
    write_surface(file, surface_with("health", Group({"accuracy": np.array([0.5, 0.1])}, {"report": report})))
    for reader in (lambda: draw(file, kind="health"), lambda: lossmap.page(file, tmp_path / "p.html")):
        with pytest.raises(Damaged, match=rf"{file} is damaged: .*health"):
            reader()
