"""Figures: each kind for each shape of data, what is missing shown as missing, and files that a journal takes."""

import itertools
import re
import subprocess
import sys
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PatchCollection, QuadMesh
from matplotlib.contour import QuadContourSet
from matplotlib.text import Text

from lossmap.geometry.grid import Field, Grid
from lossmap.io.curvature_signs import signs_of
from lossmap.io.read import Group, Surface, write_surface
from lossmap.plotting import flatness, maps
from lossmap.plotting.contour_levels import scale_of
from lossmap.plotting.convexity import tamed_around_zero
from lossmap.plotting.figures import draw, save
from lossmap.plotting.notes import accuracy_notes, audit_note
from lossmap.plotting.quantities import best_field, quantity, values_of
from lossmap.plotting.spectra import draw_spectrum
from lossmap.plotting.style import FORMATS
from lossmap.plotting.surface3d import draw_surface3d

GRID = Grid(np.linspace(-1, 1, 9), np.linspace(-0.5, 1, 7))
X, Y = np.meshgrid(GRID.x, GRID.y)


REASONS = ["not computed", "failed", "\N{MULTIPLICATION SIGN} NaN", "\N{WHITE UP-POINTING TRIANGLE} infinite"]


def plane(z=None, status=None, grid=GRID, **more):
    z = 0.01 + X**2 + 3 * Y**2 if z is None else z
    status = np.ones(grid.shape, "u1") if status is None else status
    return Surface(grid, {"train_loss": z}, status={"loss": status}, measures={"loss": ("train_loss",)}, **more)


def eigen(grid=GRID, **more):
    x, y = np.meshgrid(grid.x, [0.0] if grid.y is None else grid.y)
    high, low = (2 + x**2 + y**2).reshape(grid.shape), (0.05 - x**2).reshape(grid.shape)
    fields = {
        "train_loss": high - 2, "max_eig": high, "min_eig": low, "max_eig_error": high * 1e-3,
        "min_eig_error": high * 2e-3, "max_eig_limit": high * 1.01,
    }  # fmt: skip
    return Surface(
        grid, fields, status={"loss": np.ones(grid.shape), "eigen": np.ones(grid.shape)},
        measures={"loss": ("train_loss",), "eigen": tuple(fields)[1:]},
        settings={"measures": {"eigen": {"confidence": 0.99}}}, **more,
    )  # fmt: skip


def line(n=9, **fields):
    x = np.linspace(-0.5, 1.5, n)
    fields = fields or {"train_loss": 0.01 + x**2, "train_acc": 100 - 10 * x**2}
    return Surface(Grid(x), fields, status={"loss": np.ones(n)}, measures={"loss": tuple(fields)})


def texts(figure):
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]


def test_a_plane_of_losses_is_filled_with_units_and_levels(tmp_path):
    figure = draw(plane(groups={"directions/x": Group({}, {"kind": "random"})}))
    assert figure.get_figwidth() == 3.3
    said = texts(figure)
    assert "training loss (nats), log scale" in said and "x, random direction" in said and "y" in said
    assert {"0.01", "0.1", "1"} <= set(said)
    axes = figure.axes[0]
    (bands, _) = [c for c in axes.collections if isinstance(c, QuadContourSet)]
    assert np.allclose(10.0**bands.levels, scale_of([plane()["train_loss"]]).levels, rtol=1e-12)  # drawn in log10
    assert bands.get_cmap().name == "viridis"
    assert (axes.get_xlim(), axes.get_ylim()) == ((-1, 1), (-0.5, 1))
    assert any(line.get_marker() == "+" for line in axes.lines)  # the model at the centre


def test_rows_are_y_and_columns_are_x_on_a_grid_that_is_not_square():
    z = 100 + np.arange(63.0).reshape(7, 9)
    mesh = next(c for c in draw(plane(z), "map").axes[0].collections if isinstance(c, QuadMesh))
    assert np.array_equal(mesh.get_array().reshape(7, 9), z)
    assert np.allclose(mesh.get_coordinates()[0, :, 0], maps.edges(GRID.x))
    assert np.allclose(mesh.get_coordinates()[:, 0, 1], maps.edges(GRID.y))


def test_points_without_a_value_are_marked_by_the_reason():
    z, status = 0.01 + X**2 + Y**2, np.ones(GRID.shape, "u1")
    status[1, 2:5], status[3, 3] = 0, 2
    z[5, 6], z[0, 0] = np.nan, np.inf
    z[status != 1] = np.nan
    for kind in ("filled", "contour", "map"):
        figure = draw(plane(z, status), kind)
        axes = figure.axes[0]
        hatched = [c for c in axes.collections if isinstance(c, PatchCollection) and c.get_hatch()]
        boxes = [p.get_extents() for c in hatched for p in c.get_paths()]
        across, up = maps.edges(GRID.x), maps.edges(GRID.y)
        found = sorted([round(float(v), 6) for v in (*b.min, *b.max)] for b in boxes)
        wanted = [[across[2], up[1], across[5], up[2]], [across[3], up[3], across[4], up[4]]]
        assert np.allclose(found, sorted(wanted)) and {c.get_hatch() for c in hatched} == {"//////", "xxxxxx"}
        marks = {line.get_marker(): line for line in axes.lines}
        assert np.array_equal(marks["x"].get_xydata(), [(GRID.x[6], GRID.y[5])])
        assert np.array_equal(marks["^"].get_xydata(), [(GRID.x[0], GRID.y[0])])
        labels = [t.get_text() for t in figure.legends[0].get_texts()]
        assert labels == REASONS
    relief = draw(plane(z, status), "3d")
    assert [t.get_text() for t in relief.legends[0].get_texts()] == ["not computed", "failed", "NaN", "infinite"]
    holes = {line.get_label(): line for line in relief.axes[0].lines if not line.get_label().startswith("_")}
    x, y, floor = holes["failed"].get_data_3d()
    assert (x[0], y[0], floor[0]) == (GRID.x[3], GRID.y[3], relief.axes[0].get_zlim()[0])
    assert len(holes["not computed"].get_data_3d()[0]) == 3 and len({line.get_marker() for line in holes.values()}) == 4


def facet_colours(axes):
    faces = next(c for c in axes.collections).get_facecolor()
    return [tuple(round(float(v), 3) for v in face[:3]) for face in faces]


def test_a_cut_relief_is_grey_where_it_is_cut_and_says_so():
    z = 0.01 + X**2 + 3 * Y**2
    figure = draw(plane(z), "3d", vmax=1, vmin=0.1, interp="none")
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == [f"above 1, cut: up to {z.max():.3g}", f"below 0.1, cut: down to {z.min():.3g}"]
    corners = np.stack([z[1:, 1:], z[1:, :-1], z[:-1, 1:], z[:-1, :-1]])
    colours = facet_colours(figure.axes[0])
    assert colours.count((0.6, 0.6, 0.6)) == ((corners > 1).any(0) & ~(corners < 0.1).any(0)).sum()
    assert colours.count((0.85, 0.85, 0.85)) == (corners < 0.1).any(0).sum()
    assert not draw(plane(z), "3d").legends
    smooth = draw(plane(z), "3d", vmax=1, vmin=0.1, interp=2)
    assert [t.get_text() for t in smooth.legends[0].get_texts()] == labels
    greys = facet_colours(smooth.axes[0])
    assert (
        len(greys) == 4 * len(colours) and 0.8 < greys.count((0.85, 0.85, 0.85)) / colours.count((0.85, 0.85, 0.85)) < 4
    )


def test_contours_follow_the_spline_of_the_log_and_the_figure_says_so():
    z = 10.0 ** (2 * X + Y**2)
    for kind in ("filled", "contour"):
        smooth, straight = draw(plane(z), kind, log=True, interp=8), draw(plane(z), kind, log=True, interp="none")
        said = smooth.get_supxlabel().replace("\n", " ")
        assert said == "measured at 9\N{MULTIPLICATION SIGN}7 points; between them a cubic spline of the logarithm"
        assert not straight.get_supxlabel()
        errors = []
        for figure in (smooth, straight):
            drawn = [c for c in figure.axes[0].collections if isinstance(c, QuadContourSet)][-1]
            far = [
                np.abs(2 * p.vertices[:, 0] + p.vertices[:, 1] ** 2 - level).max()
                for level, p in zip(drawn.levels, drawn.get_paths(), strict=True)
            ]
            errors.append(max(far))
        assert errors[0] < 0.1 * errors[1]
    even = draw(plane(1 + X**2), "filled", log=False).get_supxlabel()
    assert even.endswith("a cubic spline of the values") and not draw(plane(z), "map").get_supxlabel()


def test_measured_points_are_marked_where_they_have_a_value():
    z = 0.01 + X**2 + Y**2
    z[2, 3] = np.nan
    for kind in ("filled", "contour", "map", "3d"):
        without, marked = draw(plane(z), kind).axes[0].lines, draw(plane(z), kind, points=True).axes[0].lines
        assert not [line for line in without if line.get_label() == "measured point"]
        (dots,) = [line for line in marked if line.get_label() == "measured point"]
        x = dots.get_data_3d()[0] if kind == "3d" else dots.get_xdata()
        assert len(x) == 62


def test_interpolation_that_changes_nothing_is_refused():
    for surface, kind in ((plane(), "map"), (line(), "line")):
        with pytest.raises(ValueError, match="--interp changes nothing of a"):
            draw(surface, kind, interp=4)
    with pytest.raises(ValueError, match="--interp changes nothing of ratio, which is drawn in cells"):
        draw(eigen(), "filled", "ratio", interp=4)
    with pytest.raises(ValueError, match="--interp must be a whole number from 1 to 64, or none; got many"):
        draw(plane(), interp="many")


def test_a_spike_is_told_below_the_map_and_leaves_the_colours_to_the_rest():
    z = 0.5 + X**2
    z[0, 0] = 1e6
    figure = draw(plane(z))
    assert "1 point lies far above all others and beyond the colours, at up to 1e+06" in figure.get_supxlabel().replace(
        "\n", " "
    )
    bands = next(c for c in figure.axes[0].collections if isinstance(c, QuadContourSet))
    assert bands.levels.max() <= 2 and len(bands.levels) > 6


NAN = np.full(GRID.shape, np.nan)
ODD = {
    "constant": plane(np.full(GRID.shape, 0.5)),
    "zero": plane(np.zeros(GRID.shape)),
    "all NaN": plane(NAN),
    "nothing done": plane(NAN, np.zeros(GRID.shape)),
    "infinite": plane(np.full(GRID.shape, np.inf)),
    "one value": plane(np.where(X**2 + Y**2 == 0, 0.3, np.nan), (X**2 + Y**2 == 0).astype("u1")),
    "negative": plane(X + Y - 5),
    "both signs": plane(X * Y),
    "with a zero": plane(X**2 + Y**2),
    "many decades": plane(10.0 ** (12 * (X**2 + Y**2) - 6)),
    "hardly different": plane(1e8 + X),
    "2x2": plane(np.arange(4.0).reshape(2, 2), grid=Grid(np.arange(2.0), np.arange(2.0))),
    "descending": plane(np.arange(12.0).reshape(3, 4), grid=Grid(np.arange(4.0)[::-1], np.arange(3.0)[::-1])),
    "a single point": plane(np.ones((1, 1)), grid=Grid(np.zeros(1), np.zeros(1))),
    "a row": plane(X[:1] ** 2, grid=Grid(GRID.x, np.zeros(1))),
    "a column": plane(Y[:, :1] ** 2, grid=Grid(np.zeros(1), GRID.y)),
    "a line of one point": line(1, train_loss=np.ones(1)),
    "a line of NaN": line(5, train_loss=np.full(5, np.nan)),
    "a negative line": line(5, train_loss=np.arange(5.0) - 9),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_surfaces_can_be_drawn(name, tmp_path):
    surface = ODD[name]
    flat = surface.grid.y is None or 1 in surface.grid.shape
    every = ("filled", "contour", "map", "3d") if name in ("constant", "all NaN") else ("filled", "3d")
    for kind in ("line",) if flat else every:
        draw(surface, kind).canvas.draw()
    both = {"max_eig": surface["train_loss"], "min_eig": -surface["train_loss"]}
    twin = Surface(surface.grid, both, status={"eigen": surface.status["loss"]}, measures={"eigen": tuple(both)})
    draw(twin).canvas.draw()


def test_a_surface_in_3d_is_drawn_by_decades_and_cut_at_the_ends():
    figure = draw(plane(), "3d", vmax=1)
    axes = figure.axes[0]
    assert axes.get_zlim() == (-2.7, 0) and axes.get_zlabel() == "training loss (nats), log scale"
    assert axes.get_zticklabels()[0].get_text() == "0.01"


def path_of(losses):
    t = np.linspace(0, 1, len(losses))
    return Group({"x": 0.8 * (1 - t), "y": 0.9 * (1 - t), "loss": np.asarray(losses), "residual": 1 - t})


def test_a_relief_is_lit_and_carries_contours_centre_path_and_a_colour_bar():
    path = path_of([1.0, 0.3, 0.03])
    figure = draw(plane(1.0 + X**2 + 3 * Y**2, groups={"trajectory": path}), "3d", log=False)
    axes, bar = figure.axes
    facets, floor = axes.collections[0], axes.get_zlim()[0]
    greens = facets.get_facecolor()[:, :3]
    unlit = matplotlib.colormaps["viridis"](np.linspace(0, 1, 256))[:, :3]
    assert min(np.abs(unlit - colour).sum(1).min() for colour in greens[:: len(greens) // 50]) < 0.2
    assert max(np.abs(unlit - colour).sum(1).min() for colour in greens) > 0.05  # darker than any of the scale
    (contours,) = [c for c in axes.collections if isinstance(c, QuadContourSet)]
    assert contours.levels.size > 4 and floor < 1
    (points,) = [c for c in axes.collections if c.get_label() == "checkpoint"]
    assert len(points.get_sizes()) == 3 and points.get_sizes()[0] > points.get_sizes()[-1]
    line = next(line for line in axes.lines if len(line.get_data_3d()[0]) > 3)
    x, y, z = line.get_data_3d()
    assert np.allclose(z, 1.0 + x**2 + 3 * y**2, atol=0.02)  # on the surface, not beside it
    assert any(line.get_marker() == "+" and line.get_data_3d()[2][0] == floor for line in axes.lines)
    assert bar.get_ylim() == (1, 5)


@pytest.mark.parametrize("kind", ["filled", "map", "3d"])
def test_points_of_a_path_have_the_colours_of_their_own_losses(kind):
    losses = [1.0, 0.3, np.nan, 0.03]
    figure = draw(plane(groups={"trajectory": path_of(losses)}), kind)
    (points,) = [c for c in figure.axes[0].collections if c.get_label() == "checkpoint"]
    bar = next(axes for axes in figure.axes if axes.get_label() == "<colorbar>")
    mappable = bar._colorbar.mappable
    figure.canvas.draw()  # in 3-D the points come in the order of their depth
    wanted = [*mappable.to_rgba(np.array(losses)[[0, 1, 3]]), np.ones(4)]
    assert np.allclose(sorted(points.get_facecolor().tolist()), sorted(map(list, wanted)))
    note = "points of the path have the colours of their own losses, larger farther from the plane"
    assert note in " ".join(texts(figure)).replace("\n", " ")
    other = eigen(groups={"trajectory": path_of(losses)})
    black = draw(other, kind, "max_eig")
    assert not any("own losses" in text for text in texts(black))


def test_a_line_shows_loss_and_accuracy_on_two_axes():
    figure = draw(line())
    left, right = figure.axes
    assert (
        left.get_ylabel() == "training loss (nats), log scale"
        and right.get_ylabel() == "training accuracy (percent), squares"
    )
    assert left.get_yscale() == "log" and right.get_yscale() == "linear" and right.get_ylim() == (-3, 103)
    assert list(left.lines[0].get_ydata()) == list(line()["train_loss"])
    assert draw(line(), log=None, loss_max=0.5).axes[0].get_ylim()[1] == 0.5
    assert draw(line(train_loss=np.arange(1, 10.0)), log=True).axes[0].get_yscale() == "log"


def test_train_and_test_stand_in_one_frame():
    x = np.linspace(0, 1, 9)
    both = line(9, train_loss=x + 1, test_loss=x + 2, train_acc=x, test_acc=x)
    figure = draw(both)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["train", "test"]
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["mean loss (nats)", "accuracy (percent), squares"]
    assert len(draw(both, field="test_loss").axes) == 1


def test_missing_points_of_a_line_are_hatched_bands():
    surface = line()
    status = np.ones(9, "u1")
    status[0], status[4] = 0, 2  # without its first point a line is not one that was begun coarsely
    z = np.where(status == 1, surface["train_loss"], np.nan)
    z[8] = np.nan
    figure = draw(replace(surface, fields={"train_loss": z}, about={}, status={"loss": status}))
    assert [p.get_hatch() for p in figure.axes[0].patches if p.get_hatch()] == ["//////", "xxxxxx"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == REASONS[:3]


def test_several_surfaces_stand_side_by_side_with_common_levels():
    figure = draw([plane(), plane(10 * (0.01 + X**2))], titles=["with", "without"])
    one, two = figure.axes[:2]
    assert (one.get_title(), two.get_title()) == ("with", "without") and figure.get_figwidth() == 6.75
    levels = [next(c for c in a.collections if isinstance(c, QuadContourSet)).levels for a in (one, two)]
    assert np.array_equal(*levels)
    four = draw([plane()] * 4)
    assert [a.get_title() for a in four.axes[:4]] == ["a", "b", "c", "d"]
    surfaces = draw([plane(), plane(10 * (0.01 + X**2))], "3d")
    assert surfaces.axes[0].get_zlim() == surfaces.axes[1].get_zlim()
    lines = draw([line(), line(5)], titles=["one", "two"])
    assert [t.get_text() for t in lines.axes[0].get_legend().get_texts()] == ["one", "two"]


def notes_below(figure):
    """What stands below a figure, alone or as the title of its legend."""
    return figure.get_supxlabel() or figure.legends[0].get_title().get_text()


def test_eigenvalues_are_drawn_beside_the_loss_with_their_bounds():
    told = {"audit_points": 52, "audit_misses": 0, "audit_miss_bound": 0.056}
    figure = draw(eigen(attributes=told), "eigen")
    heads = [a.get_title() for a in figure.axes[:4]]
    assert heads == ["loss", r"$\lambda_\max$", r"$\lambda_\min$", r"$|\lambda_\min / \lambda_\max|$"]
    below = notes_below(figure).replace("\N{NO-BREAK SPACE}", " ")
    assert "an eigenvalue lies within 0.2 % of max |\N{GREEK SMALL LETTER LAMDA}| of each end" in below
    assert "99 % limits within 1 % at 63 points" in below
    assert "audit: 0 misses at 52 points solved again (95 % bound: 5.6 %)" in below
    every = notes_below(draw(eigen(attributes=told | {"audit_candidates": 52}), "eigen"))
    assert "audit: 0 misses at 52 points solved again, which are all that have eigenvalues" in every.replace("\n", " ")


def test_the_ratio_is_centred_on_white_and_red_where_the_smallest_is_negative():
    surface = eigen()
    values, _ = values_of(surface, "ratio")
    assert np.allclose(np.abs(values), np.abs(surface["min_eig"] / surface["max_eig"]))
    assert (np.sign(values) == -np.sign(surface["min_eig"])).all()
    axes = draw(surface, field="ratio").axes[0]
    mesh = next(c for c in axes.collections if isinstance(c, QuadMesh))
    assert mesh.get_cmap().name == "RdBu_r" and mesh.norm.vmin == -mesh.norm.vmax
    zero = Surface(GRID, {"max_eig": np.zeros(GRID.shape), "min_eig": np.zeros(GRID.shape)})
    assert (values_of(zero, "ratio")[0] == 0).all()


@pytest.mark.parametrize("name", ["min_eig", "ratio"])
def test_cells_are_hatched_by_the_sign_where_it_differs_as_in_the_convexity_figure(name):
    def hatched_in(surface):
        figure = draw(surface, "map", name)
        found = {c.get_hatch(): c.get_paths() for c in figure.axes[0].findobj(PatchCollection) if c.get_hatch()}
        areas = {h: sum(np.prod(np.ptp(path.vertices, axis=0)) for path in paths) for h, paths in found.items()}
        return areas, [t.get_text() for legend in figure.legends for t in legend.get_texts()]

    cell = (GRID.x[1] - GRID.x[0]) * (GRID.y[1] - GRID.y[0])
    surface = eigen()
    areas, words = hatched_in(surface)
    assert areas == {r"\\\\": pytest.approx((surface["min_eig"] < 0).sum() * cell)}
    assert words == [r"$\lambda_\min < 0$ beyond its error"]
    unsure = replace(surface, fields={**surface.fields, "min_eig_error": 0 * X + 0.2})
    areas, words = hatched_in(unsure)
    signs = signs_of(unsure)
    assert min(signs["undecided"].sum(), signs["negative"].sum()) > 0
    assert areas == {h: pytest.approx(signs[w].sum() * cell) for h, w in ((r"\\\\", "negative"), ("....", "undecided"))}
    assert words == [r"$\lambda_\min < 0$ beyond its error", "sign undecided"]
    assert hatched_in(Surface(GRID, {n: surface[n] for n in ("max_eig", "min_eig")}))[1] == [r"$\lambda_\min < 0$"]
    above = replace(surface, fields={**surface.fields, "min_eig": surface["min_eig"] + 2})
    assert hatched_in(above) == ({}, [])


def test_pairs_of_eigenmaps_share_their_colours_by_column():
    figure = draw([eigen(), eigen()], "eigen", titles=["a", "b"])
    assert figure.axes[0].get_ylabel() == "a\ny" and figure.axes[4].get_ylabel() == "b\ny"
    assert "a: an eigenvalue lies within" in notes_below(figure)


def test_eigenvalues_along_a_line_have_bands_for_their_bounds():
    figure = draw(eigen(Grid(np.linspace(-1, 1, 11))))
    loss, ends, ratio = figure.axes
    assert loss.get_ylabel() == "loss (nats), log scale" and len(ends.lines) >= 2 and len(ends.collections) == 3
    assert ratio.get_ylabel().startswith(r"$|\lambda_\min/\lambda_\max|$")
    several = draw([eigen(Grid(np.linspace(-1, 1, 11)))] * 2, "eigen", titles=["a", "b"])
    assert len(several.axes[1].get_legend().get_texts()) == 4


def test_a_training_path_lies_over_the_map():
    path = {"x": np.array([-0.9, -0.2, 0.0]), "y": np.array([0.9, 0.3, 0.0])}
    own = draw(plane(groups={"trajectory": Group(path)}))
    given = draw(plane(), trajectory=path)
    for figure in (own, given):
        assert any(np.array_equal(line.get_xdata(), path["x"]) for line in figure.axes[0].lines)
        assert figure.axes[0].get_xlim() == (-1, 1)
    without = draw(plane(groups={"trajectory": Group(path)}), trajectory=False)
    assert not any(np.array_equal(line.get_xdata(), path["x"]) for line in without.axes[0].lines)


@pytest.mark.parametrize(
    ("told", "label"),
    [
        ({"kind": "to:runs/b.pt"}, "x, 0: model, 1: b.pt"),
        ({"kind": "to:runs/b.pt", "norm": "none", "ignore": "biasbn"}, "x, to runs/b.pt"),
        ({"kind": "to", "norm": "none", "ignore": "none", "parameters": "weights"}, "x, to model 2"),
        ({"kind": "to", "norm": "none", "ignore": "none", "parameters": "trainable"}, "x, to model 2"),
        ({"kind": "to", "norm": "none", "ignore": "none", "parameters": "all"}, "x, 0: model, 1: model 2"),
        ({"kind": "to", "norm": "none", "parameters": ".*", "ends_at": "model"}, "x, 0: model, 1: model 2"),
        ({"kind": "to:runs/b.pt", "norm": "none", "ends_at": "weights"}, "x, 0: model, 1: weights of b.pt"),
        ({"kind": "to:runs/b.pt", "norm": "none", "ends_at": "part"}, "x, to runs/b.pt"),
        ({"kind": "file:f.h5:x", "norm": "none", "made_as": "to:runs/b.pt"}, "x, to runs/b.pt"),
        ({"kind": "file:f.h5:x", "made_as": "to:runs/b.pt", "ends_at": "model"}, "x, 0: model, 1: b.pt"),
        ({"kind": "pca:1"}, "x, principal component 1 (80 %)"),
        ({"kind": "hessian:max"}, "x, hessian max"),
        ({}, "x"),
    ],
)
def test_the_axes_say_what_they_are(told, label):
    path = Group({"x": np.zeros(2), "y": np.zeros(2), "explained_variance_ratio": np.array([0.8, 0.1])})
    surface = plane(groups={"directions/x": Group({}, told), "trajectory": path})
    assert draw(surface).axes[0].get_xlabel() == label
    without = replace(surface, groups={"directions/x": surface.groups["directions/x"]})
    assert draw(without, trajectory=path).axes[0].get_xlabel() == label  # as --proj-file gives it


def test_a_share_about_another_model_is_none_of_the_path():
    shares = {"explained_variance_ratio": np.array([0.8, 0.1])}
    for x, label in (
        (0.0, "x, principal component 1 (80 %)"),
        (0.5, "x, principal component 1 (80 % of squared distances)"),
    ):
        path = Group({"x": np.array([1.0, x]), "y": np.zeros(2), "residual": np.zeros(2), **shares})
        surface = plane(groups={"directions/x": Group({}, {"kind": "pca:1"}), "trajectory": path})
        assert " ".join(draw(surface).axes[0].get_xlabel().split()) == label


def test_a_column_keeps_the_name_of_its_axis():
    groups = {"directions/x": Group({}, {"kind": "random"}), "directions/y": Group({}, {"kind": "to:b.pt"})}
    surface = plane(Y[:, :1] ** 2, grid=Grid(np.zeros(1), GRID.y), groups=groups)
    axes = draw(surface).axes[0]
    assert axes.get_xlabel() == "y, 0: model, 1: b.pt; x = 0"
    assert marked_models(axes) == [0.0, 1.0]


def marked_models(axes):
    return [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]


@pytest.mark.parametrize("along", ["x", "y"])
def test_a_line_beside_the_model_says_where_it_lies_and_marks_no_model(along):
    groups = {"directions/x": Group({}, {"kind": "random"})}
    ticks, other = np.linspace(-1, 1.5, 7), np.array([0.25])
    grid = Grid(ticks, other) if along == "x" else Grid(other, ticks)
    surface = plane(1 + np.arange(7.0).reshape(grid.shape), grid=grid, groups=groups)
    axes = draw(surface).axes[0]
    names = {"x": "x, random direction; y = 0.25", "y": "y; x = 0.25"}  # the direction of the other axis is not taken
    assert axes.get_xlabel() == names[along] and marked_models(axes) == []
    both = {"max_eig": 2 + surface["train_loss"], "min_eig": surface["train_loss"]}
    figure = draw(Surface(grid, both, groups=groups))
    assert figure.axes[-1].get_xlabel() == names[along] and not any(marked_models(axes) for axes in figure.axes)


def test_a_plane_through_three_models_marks_and_names_them():
    to = {"norm": "none", "kind": "to:run/b.pt"}
    groups = {"directions/x": Group({}, to), "directions/y": Group({}, {**to, "kind": "to"})}
    surface = plane(groups=groups)
    axes = draw(surface, "filled").axes[0]
    names = {text.get_text(): text.xy for text in axes.texts}
    assert names == {"b.pt": (1.0, 0.0), "model 3": (0.0, 1.0)}
    crosses = {tuple(np.ravel(line.get_data())) for line in axes.lines if line.get_marker() == "+"}
    assert crosses == {(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)}
    assert axes.get_ylabel() == "y, 0: model, 1: model 3"
    relief = draw(surface, "3d").axes[0]
    assert {"b.pt", "model 3"} <= {text.get_text().strip() for text in relief.texts}
    # on the floor; on the surface where that covers the floor there, as it does not at the edges towards the camera
    for slope, covered in ((0.01, ()), (-0.01, ("model 3",))):
        relief = draw(plane(1.0 + slope * X, groups=groups), "3d", log=False).axes[0]
        heights = {text.get_text().strip(): text.get_position_3d()[2] for text in relief.texts}
        for x, name in ((1.0, "b.pt"), (0.0, "model 3")):
            at = 1.0 + slope * x if name in covered else relief.get_zlim()[0]
            assert heights[name] == pytest.approx(at, abs=1e-4), name
    # a step of another length along the axis leads to no model
    groups["directions/x"] = Group({}, {**to, "norm": "filter"})
    assert [text.get_text() for text in draw(plane(groups=groups), "filled").axes[0].texts] == ["model 3"]


def test_models_of_one_name_are_told_apart_by_their_folders():
    groups = {
        f"directions/{axis}": Group({}, {"norm": "none", "kind": f"to:runs/{folder}/last.pt"})
        for axis, folder in (("x", "one"), ("y", "two"))
    }
    axes = draw(plane(groups=groups), "filled").axes[0]
    assert {text.get_text() for text in axes.texts} == {"one/last.pt", "two/last.pt"}
    for files in (("/last.pt", "/two/last.pt"), ("one/last.pt", "/one/last.pt")):  # up to the root
        for axis, file in zip("xy", files, strict=True):
            groups[f"directions/{axis}"] = Group({}, {"norm": "none", "kind": f"to:{file}"})
        texts = {text.get_text() for text in draw(plane(groups=groups), "filled").axes[0].texts}
        assert texts == {files[0], files[1].removeprefix("/") if "two" in files[1] else files[1]}


def test_files_along_different_directions_bear_no_ones_name():
    one = Surface(
        Grid(np.arange(3.0)), {"train_loss": np.ones(3)}, groups={"directions/x": Group({}, {"kind": "random"})}
    )
    other = Surface(
        Grid(np.arange(3.0)), {"train_loss": np.ones(3)}, groups={"directions/x": Group({}, {"kind": "to:b.pt"})}
    )
    axes = draw([one, other]).axes[0]
    assert axes.get_xlabel() == "x" and marked_models(axes) == [0.0]


def test_fields_of_every_sort_can_be_chosen():
    extra = Field("top", "1", "largest eigenvalues", ("k", 2))
    fields = {"test_acc": 50 + 40 * X, "mine": X, "top": np.stack([X, Y], axis=-1)}
    surface = Surface(GRID, fields, {"top": extra})
    assert draw(surface, field="test_acc").axes[-1].get_ylabel() == "test accuracy (percent)"
    assert draw(surface, field="mine").axes[-1].get_ylabel() == "mine"
    assert draw(surface, field="top:1").axes[-1].get_ylabel() == "largest eigenvalues, 1"
    assert best_field(Surface(GRID, {"top": fields["top"]}, {"top": extra})) == "top:0"
    with pytest.raises(ValueError, match="'top' holds 2 numbers a point: name one, top:0 and so on"):
        draw(surface, field="top")


def test_what_cannot_be_drawn_is_refused_in_one_message(tmp_path):
    with pytest.raises(ValueError, match=r"kind must be one of auto, filled, .*; got 'pie'"):
        draw(plane(), "pie")
    with pytest.raises(ValueError, match="there is no surface to draw"):
        draw([])
    with pytest.raises(ValueError, match="titles must be one for each of 2 surfaces; got 1"):
        draw([plane(), plane()], titles=["a"])
    with pytest.raises(ValueError, match="no field 'hugo' here; there are: train_loss"):
        draw(plane(), field="hugo")
    with pytest.raises(ValueError, match="this file holds no eigenvalues max_eig and min_eig; lossmap eigenmap"):
        draw(plane(), "eigen")
    with pytest.raises(ValueError, match="a line has no picture of the kind '3d'; take line, or eigen"):
        draw(line(), "3d")
    with pytest.raises(ValueError, match="lines and planes do not go into one picture"):
        draw([line(), plane()])
    with pytest.raises(ValueError, match="lines and planes do not go into one picture, nor does a plane as a line"):
        draw(plane(), "line")
    with pytest.raises(ValueError, match="this file holds no surface; it holds: nothing"):
        draw(Surface(GRID, {}))
    with pytest.raises(ValueError, match="a surface in 3-D needs two points or more along both axes"):
        draw_surface3d(
            None, Grid(GRID.x, np.zeros(1)), np.zeros((1, 9)), scale_of([np.zeros(1)]), "viridis", ("", "", "")
        )


def test_files_of_the_original_tool_are_drawn(reference):
    folder = reference / "original_tool"
    assert any(text.startswith("training loss (nats)") for text in texts(draw(folder / "plane_surf.h5")))
    assert "training accuracy (percent), squares" in texts(draw(folder / "line_surf.h5"))


def test_pdf_carries_its_fonts_and_pictures_repeat(tmp_path):
    one, two = tmp_path / "a.pdf", tmp_path / "b.pdf"
    save(draw(plane()), one)
    save(draw(plane()), two)
    data = one.read_bytes()
    assert b"/FontFile2" in data and b"/Type3" not in data and b"/Subtype /CIDFontType2" in data
    assert data == two.read_bytes()
    assert save(draw(plane()), tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    vector = [save(draw(plane()), tmp_path / f"{name}.svg").read_bytes() for name in "ab"]
    assert vector[0] == vector[1] and vector[0].startswith(b"<?xml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pdf", "a.png", "a.svg", "b.pdf", "b.svg"]


def test_saving_where_it_cannot_be_is_reported_in_one_message(tmp_path, monkeypatch):
    figure = draw(plane())
    with pytest.raises(ValueError, match=f"a picture is one of {', '.join(FORMATS)}, by the ending of its name; got"):
        save(figure, tmp_path / "a.h5")
    (tmp_path / "a.pdf").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a.pdf is a folder; name a file in it"):
        save(figure, tmp_path / "a.pdf")
    with pytest.raises(FileNotFoundError, match=r"the folder .*none does not exist"):
        save(figure, tmp_path / "none" / "a.pdf")

    def refuse(error):
        def savefig(*args, **kwargs):
            raise error

        return savefig

    monkeypatch.setattr(figure, "savefig", refuse(PermissionError(13, "Permission denied")))
    with pytest.raises(PermissionError, match=r"b.pdf cannot be written: no permission in"):
        save(figure, tmp_path / "b.pdf")
    monkeypatch.setattr(figure, "savefig", refuse(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"b.pdf cannot be written: No space left on device"):
        save(figure, tmp_path / "b.pdf")
    monkeypatch.setattr(figure, "savefig", refuse(RuntimeError("inside")))
    with pytest.raises(RuntimeError, match="inside"):
        save(figure, tmp_path / "b.pdf")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pdf"]


def test_the_users_own_settings_are_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    save(draw(plane()), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


def test_a_notebook_shows_a_figure_by_itself():
    code = (
        "import sys, numpy as np, lossmap\n"
        "from IPython.core.formatters import DisplayFormatter\n"
        "x = np.linspace(-1, 1, 5)\n"
        "figure = lossmap.draw(lossmap.Surface(lossmap.Grid(x), {'train_loss': 1 + x**2}))\n"
        "shown, _ = DisplayFormatter().format(figure)\n"
        "assert shown['image/png'].startswith(b'\\x89PNG'), shown\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    pytest.importorskip("IPython")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_remarks_are_silent_where_nothing_is_known():
    assert accuracy_notes(plane()) == [] and audit_note(plane()) == ""
    bare = Surface(GRID, {"max_eig": X, "min_eig": X, "max_eig_error": NAN})
    assert accuracy_notes(bare) == []
    assert (
        audit_note(plane(attributes={"audit_points": 20, "audit_misses": 1}))
        == "audit: 1 miss at 20 points solved again"
    )


def test_long_quantities_name_their_unit():
    assert quantity(plane(), "train_loss").label == "training loss (nats)"
    made = Surface(GRID, {"products": X}, {"products": Field("products", "calls", "products spent")})
    assert quantity(made, "products").label == "products spent (calls)"
    assert quantity(
        Surface(GRID, {"max_eig": X}, {"max_eig": Field("max_eig", "nats", "e")}), "max_eig"
    ).label.endswith("(nats)")


@pytest.mark.parametrize(
    ("loss", "shown"), [("nats", "(nats per squared unit of theta)"), ("1", "(per squared unit of theta)")]
)
def test_curvature_has_one_unit_in_words_wherever_it_is_drawn(loss, shown):
    unit = f"{loss} per squared unit of theta"
    about = {name: Field(name, unit, name) for name in ("max_eig", "min_eig")}
    spectrum = Group({"top": np.array([2.0]), "top_error": np.array([0.1])}, {"matrix": "hessian", "unit": loss})
    figures = (
        draw(Surface(GRID, {"max_eig": 2 + X}, about), field="max_eig"),
        draw(Surface(Grid(np.arange(9.0)), {"max_eig": np.ones(9), "min_eig": -np.ones(9)}, about)),
        draw_spectrum({"a": spectrum}),
    )
    for figure in figures:
        words = [" ".join(t.get_text().split()) for t in figure.findobj(Text)]
        assert any(word.removesuffix(", asinh scale").endswith(shown) for word in words), words
        assert not any("(1 per" in word or "theta\\|" in word for word in words)


def test_drawing_imports_neither_torch_nor_pyplot(tmp_path):
    write_surface(tmp_path / "s.h5", eigen())
    program = (
        "import sys\nfrom lossmap.cli.draw import main\n"
        f"assert main([{str(tmp_path / 's.h5')!r}, '--page', '--vtk']) == 0\n"
        "found = [m for m in ('torch', 'matplotlib.pyplot', 'mpi4py') if m in sys.modules]\nassert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".h5", ".html", ".pdf", ".png", ".vts"]


@pytest.mark.parametrize("kind", ["filled", "contour", "map", "eigen"])
@pytest.mark.parametrize("reach", [(1, 3), (3, 1), (1, 2, 3, 1)])
def test_files_over_different_windows_show_each_its_own_whole(kind, reach):
    surfaces = []
    for r in reach:
        x = np.linspace(-r, r, 9)
        a, b = np.meshgrid(x, x)
        loss = 0.1 + a**2 + b**2
        surfaces.append(Surface(Grid(x, x), {"train_loss": loss, "max_eig": 1 + loss, "min_eig": loss - 1}))
    figure = draw(surfaces, kind)
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>" and axes.axison]
    columns = len(panels) // len(reach)
    for i, r in enumerate(reach):
        for axes in panels[i * columns : (i + 1) * columns]:
            for low, high in (axes.get_xlim(), axes.get_ylim()):
                assert -r * 1.2 <= low <= -r and r <= high <= r * 1.2
        assert any(label.get_visible() for label in panels[i * columns].get_xticklabels())


def test_files_over_one_window_share_their_axes():
    x = np.linspace(-1, 1, 5)
    a, b = np.meshgrid(x, x)
    figure = draw([Surface(Grid(x, x), {"train_loss": a**2 + b**2 + k}) for k in (0, 1)], "filled")
    first, second = figure.axes[:2]
    assert first.get_shared_y_axes().joined(first, second)


@pytest.mark.parametrize(
    ("surface", "kind", "options", "message"),
    [
        (eigen(), "eigen", {"field": "max_eig"}, "take it: filled, contour, map, 3d, line, median, spectrum, layers"),
        (line(), "line", {"trajectory": {"x": np.zeros(2), "y": np.zeros(2)}}, "--proj-file changes nothing"),
        (plane(), "filled", {"loss_max": 3.0}, "take it: line, median, eigen"),
        (line(), "line", {"vlevel": 0.5}, "--vlevel changes nothing of a figure of the kind line"),
        (line(), "line", {"vmax": 1.0, "loss_max": 2.0}, "--vmax and --loss-max end the same axis"),
        (eigen(), "map", {"field": "min_eig", "vmin": -1.0}, "--vmin changes nothing of min_eig, whose colours"),
        (eigen(), "eigen", {"loss_max": 2.0}, "--loss-max ends the loss axis of a line"),
        (Surface(GRID, {"max_eig": X, "min_eig": X}), "eigen", {"vmax": 2.0}, "--vmax is of the loss beside"),
    ],
)  # fmt: skip
def test_an_option_that_changes_nothing_is_refused_by_name(surface, kind, options, message):
    with pytest.raises(ValueError, match=r"^--") as error:
        draw(surface, kind, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_every_option_of_a_map_is_seen_in_it():
    axes = draw(eigen(), "map", "min_eig", vmax=0.5, width=2.5, titles=["head"]).axes[0]
    mesh = next(c for c in axes.collections if isinstance(c, QuadMesh))
    assert (mesh.norm.vmin, mesh.norm.vmax) == (-0.5, 0.5) and axes.get_title() == "head"
    assert axes.figure.get_figwidth() == 2.5
    lines = draw(eigen(), "contour", "min_eig").axes[0].collections
    assert any(isinstance(c, QuadContourSet) for c in lines)  # contours, and not cells in their place


def test_the_path_takes_title_and_width():
    path = Surface(Grid(np.zeros(1)), {}, groups={"trajectory": Group({"x": np.arange(3.0), "y": np.ones(3)})})
    figure = draw(path, "path", titles=["run 7"], width=4)
    assert figure.get_suptitle() == "run 7" and figure.get_figwidth() == 4
    with pytest.raises(ValueError, match="--vmax changes nothing of a figure of the kind path"):
        draw(path, vmax=3)


@pytest.mark.parametrize("log", [None, True, False])
@pytest.mark.parametrize("zero", [False, True])
def test_the_scale_is_the_same_for_maps_lines_and_relief_and_its_label_says_log(log, zero):
    x = np.linspace(-1, 1, 11)
    values = 0.01 + x**2 - 0.01 * zero  # one value of 0, at the centre
    words = "training loss (nats)" + ", log scale" * (log is not False)
    flat = Surface(Grid(x), {"train_loss": values})
    axes = draw(flat, log=log).axes[0]
    assert axes.get_ylabel() == words and axes.get_yscale() == ("linear" if log is False else "log")
    wide = Surface(Grid(x, x), {"train_loss": np.add.outer(values, values)})
    assert draw(wide, log=log).axes[1].get_ylabel() == words
    assert draw(wide, "3d", log=log).axes[0].get_zlabel() == words


def test_a_zero_on_a_log_map_has_the_lowest_colour_and_is_no_hole():
    surface = plane(X**2 + Y**2)
    for kind in ("filled", "map"):
        mesh = next(c for c in draw(surface, kind).axes[0].collections if isinstance(c, QuadMesh))
        assert np.ma.count_masked(np.ma.masked_invalid(mesh.norm(mesh.get_array()))) == 0


def test_log_needs_a_positive_value():
    with pytest.raises(ValueError, match="--log needs positive values; the largest here is -3"):
        draw(plane(X + Y - 5), log=True)


def test_decades_on_both_sides_of_zero_are_named():
    low = np.where(np.arange(63).reshape(7, 9) == 5, -1e4, 0.5)
    surface = Surface(GRID, {"max_eig": np.ones(GRID.shape), "min_eig": low})
    label = draw(surface, "map", "min_eig").axes[1].get_ylabel()
    assert label.endswith("symlog scale")
    assert "log" not in draw(surface, "map", "min_eig", log=False).axes[1].get_ylabel()


@pytest.mark.parametrize("kind", ["filled", "contour"])
def test_contours_of_log_levels_lie_where_the_logarithm_crosses_them(kind):
    x = np.linspace(0, 1, 6)
    loss = np.tile(10.0 ** (5 * x - 3), (3, 1))  # a factor of 10 from point to point, level c at x = (log10 c + 3) / 5
    axes = draw(Surface(Grid(x, np.arange(3.0)), {"train_loss": loss}), kind).axes[0]
    drawn = [c for c in axes.collections if isinstance(c, QuadContourSet)][-1]
    assert len(drawn.levels) > 3
    for level, path in zip(drawn.levels, drawn.get_paths(), strict=True):
        assert np.allclose(path.vertices[:, 0], (level + 3) / 5, atol=1e-6)


def test_contours_bear_their_losses():
    figure = draw(plane(), "contour")
    labels = [t.get_text() for t in figure.axes[0].texts]
    levels = scale_of([plane()["train_loss"]]).levels
    assert labels and all(np.isclose(float(label), levels, rtol=1e-9).any() for label in labels)


@pytest.mark.parametrize("kind", ["filled", "contour"])
def test_lines_at_losses_below_one_are_solid(kind):
    x = np.linspace(-1, 1, 9)
    a, b = np.meshgrid(x, x)
    figure = draw(Surface(Grid(x, x), {"train_loss": 10.0 ** (4 * (a**2 + b**2) - 4)}), kind)
    lines = [c for c in figure.axes[0].collections if isinstance(c, QuadContourSet) and not c.filled]
    assert lines
    for _, dashes in (style for drawn in lines for style in drawn.get_linestyle()):
        assert dashes is None


def flat(noise, rise=0.0):
    """A loss of 2.3 with so much relative noise, and a rise along x."""
    shape = GRID.shape
    return plane(2.3 * (1 + noise * np.random.default_rng(0).uniform(-1, 1, shape)) + rise * X)


FLAT = "no point differs from another"


@pytest.mark.parametrize("kind", ["filled", "contour", "map", "3d"])
def test_rounding_is_no_relief(kind):
    rounded, real = draw(flat(2e-7), kind), draw(flat(2e-7, rise=1e-4), kind)
    assert any(FLAT in text for text in texts(rounded)) and not any(FLAT in text for text in texts(real))
    axes = rounded.axes[0]
    if kind == "3d":
        low, high = axes.get_zlim()
        assert np.isclose(high - low, 1.35) and np.ptp(real.axes[0].get_zlim()) < 1e-3
        light = [np.ptp(figure.axes[0].collections[0].get_facecolor()[:, 1]) for figure in (rounded, real)]
        assert light[0] < 0.01 and light[1] > 0.05
    else:
        (mesh,) = axes.findobj(QuadMesh)
        colours = mesh.cmap(mesh.norm(mesh.get_array()))
        assert np.ptp(np.asarray(colours), axis=(0, 1)).max() < 0.01 and not axes.findobj(QuadContourSet)


def test_what_counts_as_rounding_follows_the_precision_and_the_bars():
    noise, settings = 1e-12, {"measures": {"loss": {"precision": "float64"}}}
    assert flatness.noise_in([flat(noise)], "train_loss") > 0
    assert flatness.noise_in([replace(flat(noise), settings=settings)], "train_loss") == 0
    settings["measures"]["loss"]["precision"] = "bfloat16"
    assert flatness.noise_in([replace(flat(0.01), settings=settings)], "train_loss") > 0
    assert flatness.noise_in([flat(1e-7), plane(np.full(GRID.shape, 2.4))], "train_loss") == 0  # two files differ
    surface = eigen()
    error = np.full(GRID.shape, 3.0)  # max_eig lies between 2 and 4.25
    wide = replace(surface, fields={**surface.fields, "max_eig_error": error})
    assert flatness.noise_in([wide], "max_eig") == 6 and flatness.noise_in([surface], "max_eig") == 0
    assert any(r"$\lambda_\max$: " + FLAT in text for text in texts(draw(wide, "eigen")))


def test_a_flat_line_has_an_axis_far_beyond_its_rounding():
    x = np.linspace(-1, 1, 21)
    values = 2.3 * (1 + 2e-7 * np.sin(40 * x))
    for fields in ({"train_loss": values}, {"train_loss": values, "train_acc": 0 * x + 10}):
        surface = Surface(Grid(x), fields, status={"loss": np.ones(21)}, measures={"loss": tuple(fields)})
        axes = draw(surface).axes[0]
        assert np.ptp(axes.get_ylim()) == 1 and "equal within its errors" in axes.get_ylabel()
        assert axes.get_yscale() == "linear"


def test_the_signs_of_curvature_follow_errors_and_limits():
    low = np.array([[-1.0, -0.05, 0.05], [0.3, 1.0, np.nan]])
    grid = Grid(np.arange(3.0), np.arange(2.0))
    fields = {"max_eig": np.full((2, 3), 2.0), "min_eig": low, "min_eig_error": np.full((2, 3), 0.1)}
    bare = Surface(grid, fields, status={"eigen": np.ones((2, 3))}, measures={"eigen": tuple(fields)})
    limited = replace(bare, fields={**fields, "min_eig_limit": low - 0.5})
    for surface, positive in ((bare, [3, 4]), (limited, [4])):
        found = {word: np.flatnonzero(mask).tolist() for word, mask in signs_of(surface).items()}
        undecided = sorted({1, 2, 3, 4} - set(positive))
        assert found == {"negative": [0], "undecided": undecided, "positive": positive}
    unknown = np.full((2, 3), [np.nan, np.inf, np.nan])
    for surface, positive in ((bare, []), (replace(limited, fields={**fields, "min_eig_limit": low - 0.2}), [3])):
        found = signs_of(replace(surface, fields={**surface.fields, "min_eig_error": unknown}))
        assert np.flatnonzero(found["positive"]).tolist() == positive and not found["negative"].any()
        assert sum(mask.sum() for mask in found.values()) == 5  # none is left out, which in print is "positive"


def test_without_errors_in_the_file_an_eigenvalue_of_the_size_of_rounding_has_no_sign():
    fields = {"max_eig": np.full((2, 2), 50.0), "min_eig": np.array([[-1e-7, 1e-7], [-0.5, 0.5]])}
    grid = Grid(np.arange(2.0), np.arange(2.0))
    surface = Surface(grid, fields, status={"eigen": np.ones((2, 2))}, measures={"eigen": tuple(fields)})
    found = {word: np.flatnonzero(mask).tolist() for word, mask in signs_of(surface).items()}
    assert found == {"negative": [2], "undecided": [0, 1], "positive": [3]}
    assert "the file states no errors of its eigenvalues" in accuracy_notes(surface)


@pytest.mark.parametrize(("high", "negative"), [([np.nan, 50.0], [1]), ([np.nan, np.nan], []), (None, [])])
def test_the_rounding_of_an_eigenvalue_is_that_of_the_largest_the_file_has_where_its_own_is_missing(high, negative):
    v = np.array([[0.6], [0.7], [0.38]])
    hessian = (50 * v @ v.T / (v.T @ v)).astype(np.float32)  # whose others are 0 but for the rounding of its entries
    low = np.array([np.linalg.eigvalsh(hessian.astype(np.float64))[0], -0.5])
    assert low[0] != 0
    fields = {"min_eig": low} if high is None else {"max_eig": np.array(high), "min_eig": low}
    surface = Surface(Grid(np.arange(2.0)), fields, status={"eigen": np.ones(2)}, measures={"eigen": tuple(fields)})
    found = signs_of(surface)
    assert np.flatnonzero(found["negative"]).tolist() == negative and not found["positive"].any()
    assert found["undecided"].sum() == 2 - len(negative)  # none is left out


def test_the_convexity_figure_shows_signs_zero_line_and_loss():
    surface = eigen()
    surface = replace(
        surface, fields={**surface.fields, "min_eig_limit": surface["min_eig"] - np.where(Y > 0, 0.02, 0.06)}
    )
    figure = draw(surface)
    axes = figure.axes[0]
    hatched = {p.get_hatch(): p for p in axes.findobj(PatchCollection) if p.get_hatch()}
    signs = signs_of(surface)
    assert set(hatched) == {r"\\\\", "...."} and signs["negative"].sum() > 0 and signs["undecided"].sum() > 0
    area = sum(np.prod(np.ptp(path.vertices, axis=0)) for path in hatched[r"\\\\"].get_paths())
    cell = (GRID.x[1] - GRID.x[0]) * (GRID.y[1] - GRID.y[0])
    assert area == pytest.approx(signs["negative"].sum() * cell)
    (zero,) = [c for c in axes.findobj(QuadContourSet) if c.levels.tolist() == [0.0]]
    x = np.concatenate([path.vertices[:, 0] for path in zero.get_paths()])
    assert np.abs(np.abs(x) - 0.05**0.5).max() < 1e-3  # lambda_min = 0.05 - x^2 vanishes there: 0.02 off, if straight
    straight = [c for c in draw(surface, interp="none").axes[0].findobj(QuadContourSet) if c.levels.tolist() == [0.0]]
    x = np.concatenate([path.vertices[:, 0] for path in straight[0].get_paths()])
    assert np.abs(np.abs(x) - 0.05**0.5).max() > 0.02
    said = texts(figure)
    assert r"$\lambda_\min = 0$" in said and "sign undecided" in said
    line_note = "\N{GREEK SMALL LETTER LAMDA}_min = 0: along a cubic spline of the values"
    assert any(line_note in text for text in said) and line_note.lower() in figure.get_label().lower()
    counts = ", ".join(f"{signs[w].sum()} {t}" for w, t in (("negative", "with a negative eigenvalue"),
                                                           ("positive", "without")))  # fmt: skip
    assert any(f"of 63 points: {counts}" in text for text in said)
    assert len(draw([eigen(), eigen()]).axes) == 3 and len(draw(eigen(), "eigen").axes) == 8


def test_one_spike_of_the_smallest_eigenvalue_leaves_the_zero_line_where_it_is_and_hatches_below_it():
    surface = eigen(Grid.square(-1, 1, 21))
    spiked = surface["min_eig"].copy()
    spiked[5, 3] = -1e5
    paths = []
    for low in (surface["min_eig"], spiked):
        axes = draw(replace(surface, fields={**surface.fields, "min_eig": low})).axes[0]
        (zero,) = [c for c in axes.findobj(QuadContourSet) if c.levels.tolist() == [0.0]]
        assert zero.get_zorder() > max(p.get_zorder() for p in axes.findobj(PatchCollection) if p.get_hatch())
        paths.append(np.concatenate([path.vertices[:, 0] for path in zero.get_paths()]))
    assert np.abs(np.abs(paths[1]) - 0.05**0.5).max() < 0.02
    assert np.ptp(np.abs(paths[0])) < 1e-9
    alone = np.where(np.arange(63).reshape(7, 9) == 9, -1e5, 2 + X)
    assert (np.sign(tamed_around_zero(alone)) == np.sign(alone)).all()


def test_colours_of_the_ratio_are_linear_up_to_its_error_and_pale_behind_lines_and_hatches():
    surface = eigen()  # its smallest eigenvalue has an error of 0.002 of the largest
    axes, bar = draw(surface).axes
    mesh = next(c for c in axes.collections if isinstance(c, QuadMesh))
    assert (mesh.norm.linthresh, mesh.norm.vmax) == (pytest.approx(0.002), pytest.approx(0.95 / 3))
    assert bar.get_ylabel().endswith(",\nsymlog scale")
    assert [t.get_text() for t in bar.get_yticklabels()] == ["0.1", "0.01", "0", "0.01", "0.1"]
    assert mesh.get_cmap()(np.linspace(0, 1, 9))[:, :3].min() > 0.44  # a line of grey 0.35 is seen before all of them
    narrow = replace(surface, fields={**surface.fields, "min_eig": -surface["max_eig"] * (0.1 + X**2)})
    for one, options in ((surface, {"log": False}), (narrow, {})):  # from 0.1 to 1.1 no decades are needed
        axes = draw(one, **options).axes[0]
        assert not hasattr(next(c for c in axes.collections if isinstance(c, QuadMesh)).norm, "linthresh")


def test_notes_and_legend_below_a_figure_do_not_overlap():
    surface = eigen()
    status = np.ones(GRID.shape)
    status[0, :3], status[2, 2] = 0, 2
    fields = {name: np.where(status == 1, values, np.nan) for name, values in surface.fields.items()}
    broken = replace(surface, fields=fields, status={"loss": status, "eigen": status})
    for kind in ("convexity", "eigen"):
        figure = draw(broken, kind)
        figure.canvas.draw()
        (legend,) = figure.legends
        boxes = [t.get_window_extent() for t in (legend.get_title(), *legend.get_texts())]
        assert "an eigenvalue lies within" in legend.get_title().get_text() and figure._supxlabel is None
        assert min(boxes[0].y0 - box.y1 for box in boxes[1:]) > -1


def test_a_relief_does_not_cover_the_label_of_the_one_on_its_left():
    figure = draw([plane(np.ones(GRID.shape) + GRID.x**2), plane(np.ones(GRID.shape) + GRID.x**2)], "3d")
    reliefs = [axes for axes in figure.axes if hasattr(axes, "get_zlabel")]
    assert len(reliefs) == 2 and all(axes.get_zlabel() and not axes.patch.get_visible() for axes in reliefs)


def test_names_that_look_like_formulas_and_are_none_stand_as_they_are(tmp_path):
    about = {"m$x_{$": Field("m$x_{$", "$nats^{$", r"$\frac{$ of <b>")}
    surface = Surface(GRID, {"m$x_{$": 1 + X**2}, about=about)
    figure = draw([surface, surface], titles=["a$b_{$", r"$\alpha$"])
    for ending in ("png", "svg", "pdf"):
        save(figure, tmp_path / f"f.{ending}", dpi=50)
    assert "a$b_{$" in (tmp_path / "f.svg").read_text()
    formulas = {t.get_text(): t.get_parse_math() for t in figure.findobj(Text) if "$" in t.get_text()}
    assert formulas["a$b_{$"] is False and formulas[r"$\alpha$"] is True


def test_an_infinite_value_of_a_file_without_statuses_is_a_result_and_zero_has_no_sign():
    surface = Surface(GRID, {"train_loss": np.where(X > 0.5, np.inf, np.where(X < -0.5, np.nan, 1 + X**2))})
    assert set(surface.status["loss"].reshape(-1)) == {0, 1}
    words = [t.get_text() for t in draw(surface).legends[0].get_texts()]
    assert len(words) == 2 and words[0] == "not computed" and words[1].endswith("infinite")
    bar = draw(Surface(GRID, {"train_loss": -0.0 * np.abs(X)})).axes[1]
    assert [t.get_text() for t in bar.get_yticklabels() if t.get_text()] == ["0"]


def test_a_spike_on_a_line_leaves_the_rest_to_be_seen():
    x = np.linspace(-1, 1, 31)
    values = np.where(np.arange(31) == 7, 1e6, 0.1 + x**2)
    assert draw(Surface(Grid(x), {"train_loss": values})).axes[0].get_yscale() == "log"
    assert draw(Surface(Grid(x), {"train_loss": 0.1 + x**2})).axes[0].get_yscale() == "linear"


def test_a_path_that_leaves_the_window_does_not_shrink_a_relief():
    out = Group({"x": np.array([4.0, 0.5, 0.0]), "y": np.array([3.0, 0.2, 0.0]), "loss": np.array([9.0, 2.0, 1.0])})
    grid = Grid.square(-1, 1, 9)
    x, y = np.meshgrid(grid.x, grid.y)
    surface = Surface(grid, {"train_loss": 1 + x**2 + y**2})
    without, with_it = (draw(surface, "3d", trajectory=path).axes[0] for path in (False, out))
    assert with_it.get_xlim() == without.get_xlim() and with_it.get_ylim() == without.get_ylim()
    assert any(line.get_color() == "black" and len(line.get_data_3d()[0]) > 9 for line in with_it.lines)


def test_a_relief_from_above_has_no_axis_of_heights_and_its_bar_says_what_it_shows():
    grid = Grid.square(-1, 1, 9)
    x, y = np.meshgrid(grid.x, grid.y)
    surface = Surface(grid, {"train_loss": 1 + x**2 + y**2})
    above, beside = (draw(surface, "3d", camera=camera).axes for camera in ("90,-90", "30,-60"))
    assert above[0].get_zticks().size == 0 and above[0].get_zlabel() == ""
    assert beside[0].get_zticks().size and "training loss" in beside[0].get_zlabel()
    assert "training loss" in above[1].get_ylabel() and beside[1].get_ylabel() == ""


@pytest.mark.parametrize(("low", "high"), [(-0.0013, 0.0012), (-1.0, 1.0), (0.0, 2.3), (-7e5, 1e4), (-1250.0, -750.0)])
def test_heights_have_round_steps_through_zero(low, high):
    """Every so many levels, counted from the lowest, were -0.0014, -0.0008, -0.0002."""
    values = low + (high - low) * 0.5 * (1 + X)
    axes = draw(plane(values), "3d", log=False).axes[0]
    ticks, texts = axes.get_zticks(), [label.get_text() for label in axes.get_zticklabels()]
    assert 3 <= ticks.size <= 6 and [float(text) for text in texts] == pytest.approx(ticks)
    step = np.diff(ticks)
    assert step == pytest.approx(step[0]) and f"{step[0]:.3e}"[:5] in ("1.000", "2.000", "2.500", "5.000")
    assert ticks / step[0] == pytest.approx(np.round(ticks / step[0]))  # of which 0 is one
    assert ("0" in texts) == (low <= 0 <= high)


def test_a_survey_that_is_not_complete_says_how_many_points_were_measured():
    grid = Grid.square(-1, 1, 9)
    x, y = np.meshgrid(grid.x, grid.y)
    state = (y < 0.3).astype("u1")
    made = Surface(grid, {"train_loss": np.where(state, 1 + x**2, np.nan)}, status={"loss": state},
                   measures={"loss": ("train_loss",)})  # fmt: skip
    words = " ".join(t.get_text() for t in draw(made).findobj(Text))
    assert f"measured at {int(state.sum())} of 9\N{MULTIPLICATION SIGN}9 points" in " ".join(words.split())


def test_a_width_that_leaves_no_room_for_maps_is_refused():
    grid = Grid.square(-1, 1, 5)
    surface = Surface(grid, {"train_loss": 1 + np.hypot(*np.meshgrid(grid.x, grid.y))})
    with pytest.raises(ValueError, match=r"--width must be at least 1.95 inches for 1 beside each other; got 1.6"):
        draw(surface, width=1.6)
    with pytest.raises(ValueError, match=r"at least 4.15 inches for 3 beside"):
        draw([surface] * 3, width=3)
    assert draw(surface, width=1.95).get_figwidth() == 1.95


def test_a_value_that_rounding_keeps_from_the_end_of_a_relief_is_no_cut():
    grid = Grid.square(-1, 1, 9)
    loss = 1e-20 * (1 + np.meshgrid(grid.x, grid.y)[0] ** 2) * (1 - 1e-15)
    figure = draw(Surface(grid, {"train_loss": loss}), "3d")
    assert not figure.legends or all("cut" not in t.get_text() for t in figure.legends[0].get_texts())


@pytest.mark.parametrize("size", [1e-290, 5e-324])
def test_a_linear_axis_says_that_it_shows_tiny_values_as_zero(size):
    """It was a line at 0 with ticks up to 0.05, in silence."""
    x = np.linspace(-1, 1, 5)
    tiny = Surface(Grid(x), {"train_loss": size * (2.0 + np.sign(x)), "train_acc": 90 + x})
    figure = draw(tiny, log=False)
    figure.canvas.draw()
    assert f"within {3 * size:.2g} of 0: not told apart" in figure.axes[0].get_ylabel()
    assert "told apart" not in figure.axes[1].get_ylabel()
    usual = draw(Surface(Grid(x), {"train_loss": 1e-280 * (2.0 + x)}), log=False)
    assert "told apart" not in usual.axes[0].get_ylabel() and usual.axes[0].get_ylim()[1] < 1e-279
    far = Surface(Grid(x), {"train_loss": np.where(x == 0, 1e308, 1.0)})
    with pytest.raises(ValueError, match=r"values reach to 1e\+308 in size"):
        draw(far, log=False)
    draw(far, log=False, vmax=2.0, vmin=0.0).canvas.draw()
    for scale, words in ((1e-290, "lie within 1e-290 of 0"), (1e308, r"reach to 1e\+308")):
        with pytest.raises(ValueError, match=f"ticks of an axis {words}"):
            draw(Surface(Grid(scale * x), {"train_loss": 2.0 + x}))


@pytest.mark.parametrize("kind", ["filled", "contour", "map", "3d"])
def test_a_map_says_that_it_shows_tiny_differences_as_none(kind):
    x = np.linspace(-1, 1, 5)
    values = 2.0 + np.add.outer(x, x)
    label = draw(Surface(Grid(x, x.copy()), {"train_loss": 1e-60 * values}), kind, log=False).axes[-1].get_ylabel()
    assert "differences below 1e-50 not shown" in label.replace("\n", " ")
    for other in (1e-30 * values, np.full((5, 5), 1e-60)):
        label = draw(Surface(Grid(x, x.copy()), {"train_loss": other}), kind, log=False).axes[-1].get_ylabel()
        assert "not shown" not in label.replace("\n", " ")


def room_of(text, figure):
    """The box of a text, inches."""
    return text.get_window_extent(figure.canvas.get_renderer()).transformed(figure.dpi_scale_trans.inverted())


@pytest.mark.parametrize("window", [(1000.0, 1001.0), (99.95, 100.05), (-0.0125, 0.0125), (123456.0, 123457.0)])
@pytest.mark.parametrize("what", ["map", "line", "eigen"])
def test_the_numbers_along_a_window_far_from_0_keep_apart(window, what):
    x = np.linspace(*window, 9)
    across, up = np.meshgrid(*[(x - x[0]) / np.ptp(x)] * 2)
    made = eigen(Grid(x, x)) if what == "eigen" else Surface(Grid(x, x), {"train_loss": 1 + across * up})
    if what == "line":
        made = Surface(Grid(x), {"train_loss": 1 + across[0] ** 2})
    figure = draw(made, what if what == "eigen" else "auto", width=4.8 if what == "eigen" else 2.4)
    figure.canvas.draw()
    shown = 0
    for axes in figure.axes[: 4 if what == "eigen" else 1]:
        low, high = axes.get_xlim()
        ticks = [t for t in axes.xaxis.get_major_ticks() if low - 1e-9 * low <= t.get_loc() <= high + 1e-9 * high]
        boxes = [room_of(tick.label1, figure) for tick in ticks if tick.label1.get_text()]
        shown += len(boxes)
        assert all(a.x1 + 0.02 < b.x0 for a, b in itertools.pairwise(boxes))  # inches
    assert shown >= (4 if what == "eigen" else 1)


def test_an_svg_does_not_depend_on_the_last_bits_of_its_layout(tmp_path):
    """Matplotlib names clips by a digest of their places, of which layouts do not always give the last bit twice."""
    texts_of = []
    for shift in (0.0, 1e-13):
        figure = draw(line())
        figure.canvas.draw()
        figure.set_layout_engine("none")
        axes = figure.axes[0]
        axes.set_position([0.2 + shift, 0.2, 0.7, 0.7])
        save(figure, tmp_path / "s.svg")
        texts_of.append((tmp_path / "s.svg").read_text())
    assert texts_of[0] == texts_of[1]
    named, used = (set(re.findall(p, texts_of[0])) for p in (r'\bid="([mp]\d{10})"', r'(?:url\(|href=")#(\w+)'))
    assert len(named) > 2 and used <= named


def test_a_long_label_of_a_relief_is_broken_beside_its_bar():
    words = "a description of a quantity that is longer than any axis of heights"
    named = Surface(GRID, {"own": 1 + X**2}, about={"own": Field("own", "1", words)})
    figure = draw(named, "3d", width=3.25)
    figure.canvas.draw()
    relief, bar = figure.axes
    assert relief.get_zlabel() == "" and bar.get_ylabel().replace("\n", " ") == words and "\n" in bar.get_ylabel()
    box, (wide, high) = room_of(bar.yaxis.label, figure), figure.get_size_inches()
    assert box.x1 <= wide and box.y0 >= 0 and box.y1 <= high
    assert draw(plane(1 + X**2), "3d", width=3.25).axes[0].get_zlabel() == "training loss (nats)"


def test_a_label_of_many_lines_leaves_a_relief_its_room():
    """They were broken at a short bar, and the relief was two thirds as wide as that of a short label."""
    words = "an exceedingly long description of a quantity that nobody needs, but which is there"
    about = {"own": Field("own", "furlongs per fortnight squared", words), "short": Field("short", "1", "short")}
    both = Surface(GRID, {"own": X, "short": 1 + X**2}, about=about)
    wide = {}
    for name in about:
        figure = draw(both, "3d", field=name)
        figure.canvas.draw()
        relief, bar = figure.axes
        wide[name] = relief.get_window_extent().width
        label, length = bar.yaxis.label.get_window_extent(), bar.get_window_extent()
        assert label.height <= 1.05 * length.height and length.y0 >= 0 and length.y1 <= figure.bbox.height
    assert wide["own"] >= 0.75 * wide["short"]


def test_titles_of_eigenvalues_and_names_below_lines_are_within_the_figure():
    wide = eigen()
    wide = replace(wide, fields={**wide.fields, "max_eig": 10.0 ** (4 * X)})  # its bar says its scale in a third line
    sheet = draw(wide, "eigen")
    below = draw([line() for _ in range(5)], titles=[f"seed{i}" for i in range(5)], width=3.25)
    for figure in (sheet, below):
        figure.canvas.draw()
        words = [axes.title for axes in figure.axes] + [t for legend in figure.legends for t in legend.get_texts()]
        boxes = [room_of(text, figure) for text in words if text.get_text()]
        wide_, high = figure.get_size_inches()
        assert len(boxes) >= 5
        assert all(b.x0 >= 0 and b.x1 <= wide_ and b.y0 >= 0 and b.y1 <= high for b in boxes)
