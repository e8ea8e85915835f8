"""Every kind of figure as a picture: against small references, readable in grey, with its scales named.

The references in `pictures/` hold no text, so that no font decides. After a change that is meant,
`python tests/plotting/test_pictures.py` draws those anew that differ; look at each before it is committed.
"""

from __future__ import annotations

import functools
import io
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image, ImageFilter

import lossmap
from lossmap.dynamics.eigenspaces import compare_eigenspaces
from lossmap.dynamics.run import results
from lossmap.dynamics.snapshots import Snapshots
from lossmap.dynamics.summary import summarize
from lossmap.geometry.grid import Grid
from lossmap.io.surface import Group, Surface
from lossmap.plotting.dynamics import draw_evolution, draw_panel
from lossmap.plotting.health import draw_health
from lossmap.plotting.style import style_context

FOLDER = Path(__file__).parent / "pictures"
DPI = 46
BLUR = 2  # pixels to each side, over which a picture is averaged before it is compared
MOST = 26.0  # of 255, that an averaged pixel may differ from the nearest ones of the reference
IN_GREY = 40.0  # of 255, by which lines differ that are told apart by their lightness


# What is drawn


GRID = Grid(np.linspace(-1, 1, 13), np.linspace(-0.8, 0.8, 11))
X, Y = np.meshgrid(GRID.x, GRID.y)
T = np.linspace(-1, 1, 31)


def surface(**more):
    loss = 0.02 + X**2 + 3 * Y**2 + 0.5 * X * Y + 2 * (X - 0.5) ** 2 * X**2
    high, low = 2 + X**2 + Y, 0.12 - 0.5 * X**2 + 0.3 * Y**2
    fields = {"train_loss": loss, "test_loss": loss + 0.2 * X, "train_acc": 100 - 20 * (X**2 + Y**2)}
    curvature = {"max_eig": high, "min_eig": low, "min_eig_error": 0.02 + 0 * X, "min_eig_limit": low - 0.03}
    ones = np.ones(GRID.shape)
    return Surface(
        GRID, fields | curvature, status={"loss": ones, "eigen": ones},
        measures={"loss": tuple(fields), "eigen": tuple(curvature)}, **more,
    )  # fmt: skip


def losses(**more):
    whole = surface(**more)
    names = ("train_loss", "test_loss", "train_acc")
    return Surface(GRID, {n: whole[n] for n in names}, status={"loss": whole.status["loss"]},
                   measures={"loss": names}, groups=whole.groups)  # fmt: skip


def with_holes():
    status = np.ones(GRID.shape, "u1")
    status[2, 3:6], status[8, 9] = 0, 2
    loss = np.where(status == 1, surface()["train_loss"], np.nan)
    loss[5, 2], loss[9, 2] = np.nan, np.inf
    return Surface(GRID, {"train_loss": loss}, status={"loss": status}, measures={"loss": ("train_loss",)})


def path():
    t = np.linspace(0, 1, 9)
    return Group({"x": 0.9 * (1 - t), "y": 0.6 * (1 - t) ** 2, "loss": 3.0 * (1 - t) ** 2 + 0.02,
                  "residual": t * (1 - t), "step": 10 * t, "plane_loss": 2.5 * (1 - t) ** 2 + 0.02})  # fmt: skip


def line(seed=0):
    loss = 0.02 + T**2 * (1 + seed) + 0.3 * seed * T**4
    return Surface(Grid(T), {"train_loss": loss, "test_loss": 1.3 * loss + 0.05,
                             "train_acc": 100 - 30 * T**2, "test_acc": 95 - 35 * T**2})  # fmt: skip


def eigenvalues_of_line(seed=0):
    low = 0.1 - (0.5 + seed) * T**2
    return Surface(Grid(T), {"max_eig": 2 + T + seed, "min_eig": low, "min_eig_limit": low - 0.2})


def training(seed=0):
    step = np.arange(20.0)
    sharp = 20 - (15 + seed) * np.exp(-step / 5)
    fields = {"max_eig": sharp, "max_eig_error": 0.5 + 0 * step, "min_eig": -1 - 0.1 * seed * step,
              "preconditioned_max_eig": sharp, "preconditioned_max_eig_error": 0.5 + 0 * step,
              "stability_threshold": 18 + 0 * step, "stability_ratio": sharp / 18, "trace": 3 * sharp,
              "loss": np.exp(-step / (4 + seed)), "gradient_norm": np.exp(-step / 6)}  # fmt: skip
    return Surface(Grid(step), fields)


def spectrum(shift=0.0, label="train"):
    node = np.sort(np.r_[np.linspace(-0.01, 0.02, 30), [0.5, 1.0, 3.0]]) + shift
    tick = np.linspace(-0.02, 3.1, 50) + shift
    share = np.searchsorted(node, tick) / len(node)
    arrays = {"top": np.array([3.0, 1.0, 1.0]) + shift, "top_error": np.full(3, 1e-2),
              "bottom": np.array([-0.01]) + shift, "bottom_error": np.array([1e-3]),
              "node": node, "weight": np.full(len(node), 1 / len(node)), "tick": tick, "cumulative": share,
              "cumulative_low": np.clip(share - 0.1, 0, 1), "cumulative_high": np.clip(share + 0.1, 0, 1)}  # fmt: skip
    about = {"label": label, "size": 33, "unit": "nats", "matrix": "hessian", "density_confidence": 0.95,
             "density_probes": 2, "density_band": "simultaneous", "upper_limit": 3.2 + shift}  # fmt: skip
    return Group(arrays, about)


def layers():
    return Group({
        "block": np.array(["fc1", "fc2", "fc3"], dtype=object), "size": np.array([60, 4, 100]),
        "largest": np.array([2.0, 0.0, 0.5]), "smallest": np.array([-0.1, 0.0, 0.0]), "floor": np.full(3, 1e-6),
        "positive": np.array([[30, 30], [0, 0], [20, 60]]), "negative": np.array([[30, 30], [0, 0], [0, 10]]),
        "zero": np.array([[0, 0], [4, 4], [30, 80]]),
        "kind": np.array(["indefinite", "zero", "positive semidefinite"], dtype=object),
        "eigenvalues:fc1": np.linspace(-0.1, 2.0, 60), "eigenvalues:fc2": np.zeros(4),
        "eigenvalues:fc3": np.array([0.0, 0.5]), "nodes:fc3": np.array([0.0, 0.1, 0.2, 0.5]),
        "weights:fc3": np.array([0.7, 0.1, 0.1, 0.1]),
    }, {"label": "net"})  # fmt: skip


def wider_layers():
    group = layers()
    arrays = {**group.arrays, "largest": 3 * group["largest"], "block": np.array(["fc1", "fc3", "head"], dtype=object)}
    arrays["eigenvalues:head"] = np.array([0.0, 1.5])
    return Group(arrays, group.attributes)


def connection():
    t = np.linspace(0, 1, 11)
    about = {"unit": "nats", "first": "a", "other": "b", "train_barrier": 1.0, "train_error": 0.1, "train_at": 0.5}
    return Group({"t": t, "train_loss": 0.1 + 4 * t * (1 - t), "train_acc": 99 - 100 * t * (1 - t)}, about)


def aligned():
    group = connection()
    rise = 4 * group["t"] * (1 - group["t"])
    about = {"unaligned_train_barrier": 2.0, "unaligned_train_error": 0.2, "unaligned_train_at": 0.5}
    about |= {"curve_train_barrier": 0.0, "curve_train_at": np.nan, "curve": "the Bezier curve"}
    arrays = {"unaligned_train_loss": 0.1 + 2 * rise, "unaligned_train_acc": 99 - 50 * rise,
              "curve_train_loss": 0.1 - 0.05 * rise, "curve_train_acc": 99 + 0 * rise}  # fmt: skip
    return Group({**group.arrays, **arrays}, {**group.attributes, **about})


def sharpness(times=1.0):
    arrays = {"ball": np.array(["filter"], dtype=object), "ball_radius": np.array([0.5]),
              "ball_average": np.array([3e-3]), "ball_average_error": np.array([1e-3]), "ball_sam": np.array([2.0]),
              "ball_worst": np.array([6.0]), "ball_draws": np.array([20]), "ball_starts": np.array([2]),
              "ball_steps": np.array([20]), "ball_rounding": np.array([1e-8])}  # fmt: skip
    return Group(arrays, {"largest": 5.5 * times, "largest_error": 0.5, "trace": 30.0, "trace_error": 3.0,
                          "critical": 3.4, "critical_low": 3.0, "critical_high": 3.8, "unit": "nats"})  # fmt: skip


def run():
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 6)))[0]
    # each by another angle: of equal ones the principal components are any of a subspace, by the processor's rounding
    angles = np.linspace(0, 1.2, 8)[:, None] * [1.0, 0.8, 0.6]
    vectors = [np.cos(a) * basis[:, :3] + np.sin(a) * basis[:, 3:] for a in angles]
    values = [np.arange(3, 0, -1.0) + 0.1 * t for t in range(8)]
    found = compare_eigenspaces(Snapshots.of([10 * t for t in range(8)], values, vectors))
    spread = np.tile(np.linspace(-1, 3, 7), (8, 1)) * np.linspace(0.2, 1, 8)[:, None]
    fields = {"loss": np.linspace(1, 0.1, 8), "smallest_eigenvalue": np.linspace(-1, -0.2, 8), "quantiles": spread,
              "negative_share": np.linspace(0.5, 0.1, 8), "negative_share_low": np.full(8, 0.05),
              "negative_share_high": np.full(8, 0.6)}  # fmt: skip
    return results(found, summarize(found), fields)


def health():
    """What the sheet of a diagnosis draws."""

    def estimate(value, error=0.0):
        return {"value": value, "error": error}

    finding = {"rule": "negative curvature", "where": "Hessian", **estimate(0.4, 0.01), "threshold": 0.1,
               "sense": "above", "evidence": "e", "level": "moderate", "tries": [{"what": "train longer"}]}  # fmt: skip
    index = np.arange(1, 13)
    return {
        "label": "net", "parameters": 300, "samples": 60, "unit": "nats", "findings": [finding], "undecided": [finding],
        "skipped": {},
        "numbers": {"noise_scale": estimate(20.0, 3.0), "nc1": estimate(3.0, 0.4), "nc2": estimate(0.4, 0.1),
                    "nc2_norms": estimate(0.3, 0.05), "nc3": estimate(1.2, 0.1), "nc4": estimate(0.6, 0.05)},
        "weights": [{"name": f"w{k}", "spectral_norm": 3.0 / k, "singular_values": (3.0 / k * 0.7**index).tolist()}
                    for k in (1, 2, 3)],
        "gains": [{"gain": gain, "error": 0.1 * gain, "first": k == 0, "last": k == 3}
                  for k, gain in enumerate((0.7, 1.5, 0.03, 1.0))],
        "activations": [{"units": 12, "dead": dead, "rate": rate, "saturated": saturated}
                        for dead, rate, saturated in ((0, 0.6, None), (6, 0.3, None), (1, None, 0.4))],
        "gradients": {"samples": 60, "spectrum": (0.3 / index**2).tolist()},
        "hessian": {"values": [3.0, 1.0, -0.4], "errors": [0.2, 0.02, 0.01], "trace": estimate(5.0, 0.5),
                    "density": {"nodes": [-0.4, 0.0, 0.1, 1.0, 3.0], "shares": [0.1, 0.5, 0.2, 0.1, 0.1]}},
    }  # fmt: skip


def holding(**groups):
    """A file that holds these groups, and no surface."""
    return Surface(Grid(np.zeros(1)), {}, groups={name.replace("__", "/"): group for name, group in groups.items()})


def wells():
    x = np.linspace(-2, 2, 31)
    values = np.add.outer(x**2, (x**2 - 1) ** 2 + 0.1 * x + 1)
    return lossmap.find_minima(Surface(Grid(x, x), {"train_loss": values}))


FIGURES = {
    "filled": lambda: lossmap.draw(losses(groups={"trajectory": path()}), width=2.6),
    "pair": lambda: lossmap.draw([losses(), losses()], titles=["a", "b"]),
    "contour": lambda: lossmap.draw(losses(), "contour", points=True),
    "holes": lambda: lossmap.draw(with_holes()),
    "cells": lambda: lossmap.draw(losses(), "map", "gap"),
    "relief": lambda: lossmap.draw(losses(groups={"trajectory": path()}), "3d"),
    "rows": lambda: lossmap.draw([losses()], field=["train_loss", "gap"]),
    "convexity": lambda: lossmap.draw(surface()),
    "eigen": lambda: lossmap.draw(surface(), "eigen"),
    "line": lambda: lossmap.draw(line()),
    "lines": lambda: lossmap.draw([line(seed) for seed in range(6)]),
    "median": lambda: lossmap.draw([line(seed) for seed in range(3)], "median"),
    "eigenline": lambda: lossmap.draw(eigenvalues_of_line()),
    "eigenlines": lambda: lossmap.draw([eigenvalues_of_line(0), eigenvalues_of_line(1)]),
    "training": lambda: lossmap.draw(training()),
    "trainings": lambda: lossmap.draw([training(0), training(4)]),
    "spectrum": lambda: lossmap.draw(holding(spectrum__train=spectrum())),
    "spectra": lambda: lossmap.draw(holding(spectrum__a=spectrum(), spectrum__b=spectrum(0.2))),
    "train_and_test": lambda: lossmap.draw(holding(spectrum__train=spectrum(), spectrum__test=spectrum(0.2, "test"))),
    "layers": lambda: lossmap.draw(holding(layers__net=layers())),
    "layers_compared": lambda: lossmap.draw(
        [holding(layers__net=layers()), holding(layers__net=wider_layers())], titles=["net", "wide"]
    ),
    "sharpness": lambda: lossmap.draw(holding(sharpness__train=sharpness())),
    "sharpnesses": lambda: lossmap.draw(holding(sharpness__a=sharpness(), sharpness__b=sharpness(2.0))),
    "connection": lambda: lossmap.draw(holding(connection=connection())),
    "connection_aligned": lambda: lossmap.draw(holding(connection=aligned())),
    "topology": lambda: lossmap.draw(wells()),
    "evolution": lambda: draw_evolution(run()),
    "health": lambda: draw_health(health()),
    "path": lambda: lossmap.draw(holding(trajectory=path()), "path"),
}


# How it is compared


def picture(figure):
    """A figure without its words, in red, green and blue."""
    figure.set_dpi(DPI)
    words = [*figure.findobj(matplotlib.text.Text), *figure.findobj(matplotlib.legend.Legend)]
    for artist in words:  # a legend's size is that of its words
        artist.set_visible(False)
        artist.set_in_layout(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return Image.open(file).convert("RGB")


def difference(drawn, reference):
    """How far an averaged pixel is from the nearest ones of the reference, a pixel off at most; the largest, of 255."""
    if abs(drawn.width - reference.width) > 1 or abs(drawn.height - reference.height) > 1:
        return 255.0
    size = min(drawn.width, reference.width), min(drawn.height, reference.height)
    blurred = [np.asarray(p.crop((0, 0, *size)).filter(ImageFilter.BoxBlur(BLUR)), dtype=np.float64)
               for p in (drawn, reference)]  # fmt: skip
    steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    nearest = [np.abs(np.roll(blurred[0], step, axis=(0, 1)) - blurred[1]).max(axis=2) for step in steps]
    return float(np.min(nearest, axis=0)[1:-1, 1:-1].max())


VERSION = tuple(map(int, matplotlib.__version__.split(".")[:2]))
# Earlier versions hatch, and place cells and bands, otherwise; all other pictures are the same from 3.8 on.
SAME_FROM = dict.fromkeys(("cells", "convexity", "eigen", "evolution", "health", "holes", "rows"), (3, 11))
SAME_FROM |= dict.fromkeys(("filled", "contour", "path"), (3, 9))


@functools.cache
def made(name):
    """The figure of this name, drawn once for all tests that look at it."""
    return FIGURES[name]()


@pytest.mark.parametrize("name", FIGURES)
def test_the_picture_is_that_of_the_reference(name):
    if SAME_FROM.get(name, (3, 8)) > VERSION:
        pytest.skip("this version of matplotlib hatches, and places cells, otherwise")
    with Image.open(FOLDER / f"{name}.png") as reference:
        assert difference(picture(made(name)), reference.convert("RGB")) < MOST


@pytest.mark.skipif(VERSION < (3, 11), reason="this version of matplotlib hatches, and places cells, otherwise")
def test_what_a_person_would_see_is_seen_in_the_comparison():
    def compared(changed, name="convexity"):
        with Image.open(FOLDER / f"{name}.png") as reference:
            return difference(picture(changed), reference.convert("RGB"))

    assert compared(lossmap.draw(surface(), cmap="RdBu")) > 2 * MOST  # signs in reversed colours
    bare = lossmap.draw(surface())
    next(c for c in bare.axes[0].collections if list(getattr(c, "levels", ())) == [0.0]).remove()
    assert compared(bare) > MOST  # without the line of lambda_min = 0
    assert compared(lossmap.draw(surface(), log=False)) > MOST
    turned = surface()
    turned = Surface(GRID, {n: v[:, ::-1] for n, v in losses().fields.items()}, status=turned.status)
    assert compared(lossmap.draw([losses(), turned], "filled", titles=["a", "b"]), "pair") > MOST


def test_the_references_are_small():
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) < 300_000
    assert {f.stem for f in FOLDER.iterdir()} == set(FIGURES)


# Grey, and words


def look(drawn):
    """What tells a line from another one in grey."""
    dashes = drawn.get_linestyle(), tuple(np.round(drawn._dash_pattern[1] or (), 2))
    marker = str(drawn.get_marker())
    return dashes, marker, matplotlib.colors.same_color(drawn.get_markerfacecolor(), "white") and marker != "None"


def lightness(drawn):
    return 255 * float(np.dot(to_rgb(drawn.get_color()), (0.299, 0.587, 0.114)))


def alike(figure):
    """Labels of lines in one frame, right axes included, that only colours of one lightness tell apart."""
    figure.canvas.draw()
    found = []
    for frame in {tuple(np.round(axes.get_position().bounds, 3)) for axes in figure.axes}:
        mine = [axes for axes in figure.axes if tuple(np.round(axes.get_position().bounds, 3)) == frame]
        lines = [(drawn, axes) for axes in mine for drawn in axes.lines
                 if len(drawn.get_xdata()) > 2 and drawn.get_linewidth() > 0.7]  # fmt: skip
        for i, (one, first) in enumerate(lines):
            for other, second in lines[:i]:
                told = first is second and one.get_label().startswith("_") and other.get_label().startswith("_")
                # of one colour they are not told apart by colours, either
                told = told or matplotlib.colors.same_color(one.get_color(), other.get_color())
                if not told and look(one) == look(other) and abs(lightness(one) - lightness(other)) < IN_GREY:
                    found.append((one.get_label(), other.get_label()))
    return found


# At the width that is asked for: laid out for it, or refused by name


# what is drawn, its kind, and the least width, inches
AT_WIDTHS = {
    "spectrum": (lambda: holding(spectrum__train=spectrum()), "spectrum", 2.7),
    "spectra": (lambda: holding(spectrum__a=spectrum(), spectrum__b=spectrum(0.2)), "spectrum", 5.0),
    "train_test": (lambda: holding(spectrum__train=spectrum(), spectrum__test=spectrum(0.2, "test")), "spectrum", 5.0),
    "layers": (lambda: holding(layers__net=layers()), "layers", 5.0),
    "compared": (lambda: [holding(layers__net=layers()), holding(layers__net=wider_layers())], "layers", 5.0),
    "sharpness": (lambda: holding(sharpness__a=sharpness(), sharpness__b=sharpness(2.0)), "sharpness", 5.0),
    "topology": (wells, "topology", 5.0),
    "path": (lambda: holding(trajectory=path()), "path", 5.0),
    "long_layers": (lambda: holding(layers__net=with_long_names(layers())), "layers", 5.0),
    "long_compared": (
        lambda: [holding(layers__net=with_long_names(layers())), holding(layers__net=with_long_names(wider_layers()))],
        "layers", 5.0,
    ),
    "eigen": (surface, "eigen", 4.49),
}  # fmt: skip


def with_long_names(group):
    """Layers as a transformer calls them, of which a row's name took most of the figure."""
    names = {str(n): f"model.encoder.layers.11.self_attention.projection_of_queries.{n}" for n in group["block"]}
    parts = {key: key.partition(":") for key in group.arrays}
    arrays = {f"{a}:{names[b]}" if b in names else key: group[key] for key, (a, _, b) in parts.items()}
    return Group(arrays | {"block": np.array([names[str(n)] for n in group["block"]], dtype=object)}, group.attributes)


def at_width(name, width):
    make, kind, _ = AT_WIDTHS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = lossmap.draw(make(), kind, width=width)
        figure.draw_without_rendering()
        figure.draw_without_rendering()  # constrained layout settles with the second
    return figure


@pytest.mark.parametrize("style", [None, "neurips", "nature"])
@pytest.mark.parametrize("name", AT_WIDTHS)
def test_no_label_is_cut_or_lies_over_another_at_the_least_width(name, style):
    with style_context(style):
        figure = at_width(name, AT_WIDTHS[name][2])
    assert figure.get_figwidth() == AT_WIDTHS[name][2]
    labels = [axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    labels += [axes.title for axes in figure.axes]
    boxes = {label: label.get_window_extent() for label in labels if label.get_text() and label.get_visible()}
    assert len(boxes) >= 2
    frame = figure.bbox.padded(1)
    for label, box in boxes.items():
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1, label
        over = [other for other, its in boxes.items() if other is not label and its.overlaps(box.padded(-1))]
        assert not over, (label, over)


@pytest.mark.parametrize("name", ["long_layers", "long_compared"])
@pytest.mark.parametrize("width", [5.0, 6.75])
def test_names_of_layers_leave_room_for_the_panels_and_for_each_other(name, width):
    left = at_width(name, width).axes[0]
    boxes = [label.get_window_extent() for label in left.get_yticklabels()]
    assert min(box.x0 for box in boxes) >= -1
    assert not any(one.overlaps(other.padded(-0.5)) for one, other in pairwise(boxes))
    assert left.get_position().width > 0.3


@pytest.mark.parametrize("width", [3.3, 6.75])
@pytest.mark.parametrize("kind", ["line", "filled", "map", "convexity"])
def test_a_long_name_of_a_model_is_neither_cut_nor_takes_the_room_of_the_picture(kind, width):
    """A plane through three models had no room left where the name of one was long: the layout gave up."""
    name = "to:runs/a/one of two networks with a rather long name.pt"
    ends = {f"directions/{axis}": Group({}, {"kind": name}) for axis in "xy"}
    drawn = surface(groups=ends)
    if kind == "line":
        drawn = lossmap.Surface(lossmap.Grid(X[0]), {"train_loss": 2 + X[0]}, groups=ends)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = lossmap.draw(drawn, kind, width=width)
        figure.draw_without_rendering()
        figure.draw_without_rendering()
    axes = figure.axes[0]
    frame = figure.bbox.padded(2)
    for label in (axes.xaxis.label, axes.yaxis.label):
        box = label.get_window_extent()
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1, label
    assert axes.get_position().width * width > 0.4 * width - 0.35
    ticks = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert not any(one.overlaps(other) for one, other in pairwise(ticks))


@pytest.mark.parametrize("name", AT_WIDTHS)
def test_a_width_without_room_is_refused(name):
    make, kind, least = AT_WIDTHS[name]
    with pytest.raises(ValueError, match=rf"--width must be at least {least:g} inches for the kind {kind}"):
        lossmap.draw(make(), kind, width=least - 0.1)


LINES = ("line", "lines", "median", "eigenline", "eigenlines", "training", "trainings", "spectra", "train_and_test",
         "connection", "connection_aligned", "path")  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_lines_are_told_apart_in_grey(name):
    assert alike(made(name)) == []


@pytest.mark.parametrize("panel", ["successive", "curvature", "volume", "negative"])
def test_lines_of_a_run_are_told_apart_in_grey(panel):
    assert alike(draw_panel(run(), panel)) == []


def test_checkpoints_of_sharpness_are_told_apart_in_grey_and_ticks_do_not_run_into_each_other():
    figure = FIGURES["sharpnesses"]()  # with its words
    left = figure.axes[0]
    fills = {bars.lines[0].get_fillstyle() for bars in left.containers}
    assert fills == {"full", "none"}
    figure.canvas.draw()
    words = [t.get_text() for t in left.get_xticklabels(which="both") if t.get_text()]
    assert {"5", "10", "20"} <= set(words) and not any("\\times" in word for word in words)


def test_signs_of_layers_are_told_apart_in_grey():
    bars = made("layers").axes[1].containers
    shades = {b.get_label(): b.patches[0] for b in bars if b.get_label() in ("negative", "zero", "positive")}
    grey = sorted(255 * float(np.dot(to_rgb(p.get_facecolor()), (0.299, 0.587, 0.114))) for p in shades.values())
    assert len(grey) == 3 and min(np.diff(grey)) > IN_GREY


@pytest.mark.parametrize("name", FIGURES)
def test_every_scale_that_is_not_linear_is_named(name):
    for axes in made(name).axes:
        for axis in (axes.xaxis, axes.yaxis):
            words = axis.label.get_text()
            if words and axis.get_scale() not in ("linear", "function"):
                assert "scale" in words or "log" in words, words


def redraw():
    """Draw anew the references that differ, and those that are not there."""
    FOLDER.mkdir(exist_ok=True)
    for name, make in FIGURES.items():
        drawn, file = picture(make()), FOLDER / f"{name}.png"
        if not file.exists() or difference(drawn, Image.open(file).convert("RGB")) >= MOST:
            drawn.save(file, optimize=True)
            print(file)


if __name__ == "__main__":
    sys.exit(redraw())
