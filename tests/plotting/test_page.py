"""The page in Chromium: what it draws and says, by mouse and by keys; that it is silent, offline and accessible."""

import base64
import csv
import gzip
import io
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.collections import PatchCollection
from PIL import Image
from torch import nn

import lossmap
from lossmap.callbacks.history import History
from lossmap.callbacks.measurement import fields_of
from lossmap.geometry.grid import Field, Grid
from lossmap.io.read import Group, Surface
from lossmap.plotting.html import page
from lossmap.plotting.interpolation import refine, refine_ticks

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page is not looked at")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page is not looked at")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
AXE = Path(__file__).with_name("axe") / "axe-4.14.1.min.js.gz"
GRID = Grid(np.linspace(-1, 1, 21), np.linspace(1, -0.5, 16))  # x ascending, y descending
X, Y = np.meshgrid(GRID.x, GRID.y)


def plane():
    loss = 0.05 + 3 * X**2 + Y**2
    loss[0, 0], loss[1, 1], loss[2, 2], loss[3, 3] = np.nan, np.inf, np.nan, np.nan
    status = np.ones(GRID.shape, "u1")
    status[2, 2], status[3, 3] = 0, 2
    fields = {
        "train_loss": loss, "train_acc": 100 * np.exp(-3 * X**2), "max_eig": 4 + Y, "min_eig": X.copy(),
        "min_eig_error": np.full(GRID.shape, 0.0123), "products": np.full(GRID.shape, 30.0),
    }  # fmt: skip
    trail = Group({"x": np.array([0.9, 0.5, 0.0]), "y": np.array([0.9, 0.2, 0.0])})
    measures = {"loss": ("train_loss", "train_acc"), "eigen": ("max_eig", "min_eig", "min_eig_error", "products")}
    states = {"loss": status, "eigen": np.ones(GRID.shape, "u1")}
    said = {"command_line": "lossmap surface --model mlp"}
    return Surface(GRID, fields, status=states, measures=measures, groups={"trajectory": trail}, attributes=said)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@contextmanager
def shown(browser, file, fragment="", width=1200, height=900):
    """The page, ready; at the end nothing was printed, and nothing left."""
    tab, printed, asked = browser.new_page(viewport={"width": width, "height": height}), [], []
    tab.on("console", lambda message: printed.append(message.text))
    tab.on("pageerror", lambda error: printed.append(str(error)))
    tab.on("dialog", lambda dialog: printed.append(dialog.message))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(f"file://{file}{fragment}")
    tab.wait_for_selector("html[data-ready=yes]", timeout=30_000)
    settled(tab)
    yield tab
    assert printed == []
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}
    tab.close()


def settled(tab):
    """Wait until what was changed is drawn."""
    until(tab, "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")


def until(tab, expression):
    """Wait for a condition; Playwright's own way needs an `eval` in the page, which the policy forbids."""
    for _ in range(400):
        try:
            if tab.evaluate(expression):
                return
        except playwright.Error as error:  # the page was reading itself again
            if "context was destroyed" not in str(error):
                raise
        time.sleep(0.05)
    raise AssertionError(f"never true: {expression}")


def pixels(tab, name):
    """A canvas as (rows, columns, 3)."""
    image = tab.evaluate(f"document.getElementById('{name}').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2]))).convert("RGB")).astype(int)


def readout(tab):
    """The numbers at the chosen point by the field's words: (value, bar), or a text."""
    entries = {}
    for table in ("readout", "readout-more"):
        for name, text in tab.eval_on_selector_all(
            f"#{table} tbody tr", "rows => rows.map(r => [r.cells[0].textContent, r.cells[1].textContent])"
        ):
            found = re.match(r"(-?[0-9.]+(?:e[-+]?[0-9]+)?)(?: ± (?:at least )?([0-9.e+-]+))?", text)
            entries[name] = (float(found[1]), float(found[2] or 0)) if found else text
    return entries


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return page(plane(), tmp_path_factory.mktemp("page") / "plane.html", titles=["plane.h5"])


def test_map_and_relief_are_drawn(browser, file):
    with shown(browser, file) as tab:
        for name in ("map-0", "relief-0"):
            drawn = pixels(tab, name)
            coloured = np.ptp(drawn, axis=2) > 30
            assert coloured.mean() > 0.12 and len(np.unique(drawn[coloured] // 16, axis=0)) > 15
        legend = tab.inner_text(".legend")
        for words in (
            "smallest eigenvalue = 0",
            "training path",
            "not computed: 1 point",
            "failed: 1",
            "NaN",
            "infinite",
        ):
            assert words in legend
        assert tab.get_attribute("html", "lang") == "en" and tab.locator("h1").inner_text() == "plane.h5"
        assert tab.locator("#field optgroup[label=more] option").all_inner_texts()[-1].startswith("products")
        tab.click("#origin summary")
        assert "lossmap surface --model mlp" in tab.inner_text("#provenance")


def test_choices_change_what_is_drawn(browser, file):
    with shown(browser, file) as tab:
        last = [pixels(tab, "map-0"), pixels(tab, "relief-0")]
        for choose in (
            lambda: tab.select_option("#scale", "linear"),
            lambda: tab.select_option("#field", "min_eig"),
            lambda: tab.uncheck("#show-spline"),
            lambda: tab.uncheck("#show-contours"),
            lambda: tab.uncheck("#show-path"),
        ):
            choose()
            settled(tab)
            now = [pixels(tab, "map-0"), pixels(tab, "relief-0")]
            assert all((a != b).any() for a, b in zip(last, now, strict=True))
            last = now
        tab.uncheck("#show-zero")
        settled(tab)
        assert (pixels(tab, "map-0") != last[0]).any()
        assert tab.inner_text("#shown").startswith("smallest eigenvalue of the Hessian")


@pytest.mark.parametrize("scaled", [1.0, 1e300, 1e-300])
def test_the_readout_is_right(browser, tmp_path, scaled):
    made = plane()
    loss = scaled * (1.2345678 + X**2 + 0.1 * Y)
    made = replace(made, fields={**made.fields, "train_loss": loss, "max_eig": 1 / 3 + X}, groups={})
    own = page(made, tmp_path / "s.html")
    with shown(browser, own) as tab:
        for row, column in ((7, 5), (15, 20), (4, 0)):
            tab.evaluate(f"location.hash = '#x={GRID.x[column]}&y={GRID.y[row]}'")
            until(
                tab, f"document.getElementById('place').textContent === 'x {GRID.x[column]:.4g}, y {GRID.y[row]:.4g}'"
            )
            said = readout(tab)
            for name, words in (
                ("train_loss", "mean loss over the training samples"), ("max_eig", "largest eigenvalue of the Hessian"),
                ("min_eig", "smallest eigenvalue of the Hessian"), ("products", "products"),
            ):  # fmt: skip
                assert said[words][0] == pytest.approx(made[name][row, column], rel=1e-6, abs=0)
            assert said["smallest eigenvalue of the Hessian"][1] == pytest.approx(0.013)  # 0.0123, rounded up
            assert said["mean loss over the training samples"][1] == pytest.approx(
                2.0**-20 * loss[row, column], rel=0.1
            )
            bars = re.findall("± (at least)?", tab.inner_text("#readout") + tab.inner_text("#readout-more"))
            assert bars.count("at least") == 1 < len(bars)  # spacings of the loss; the others are of the file


def test_the_spline_between_the_points_is_that_of_the_print(browser, file):
    x, y = np.array([-1.0, -0.7, 0.0, 0.2, 1.0, 1.3]), np.array([2.0, 1.0, 0.5, 0.4])
    values = np.random.default_rng(0).standard_normal((4, 6))
    values[0, 0] = values[2, 3] = np.nan
    code = (files("lossmap.plotting") / "page_assets" / "interpolation.js").read_text()
    script = f"([x, y, v, f]) => {{ {code} return refined(x, y, v.map((e) => e ?? NaN), f); }}"
    tab = browser.new_page()
    for rows, columns, factor in ((4, 6, 4), (3, 2, 3), (2, 3, 1), (4, 6, 7)):
        own = values[:rows, :columns]
        flat = [None if np.isnan(v) else v for v in own.reshape(-1)]
        made = tab.evaluate(script, [x[:columns].tolist(), y[:rows].tolist(), flat, factor])
        expected = refine(x[:columns], y[:rows], own, factor)
        assert np.array(made["heights"], float) == pytest.approx(expected.reshape(-1), nan_ok=True, abs=1e-12)
        assert made["x"] == pytest.approx(refine_ticks(x[:columns], factor))
    tab.close()


def test_the_relief_has_no_hole_where_the_spline_alone_leaves_the_scale(browser, tmp_path):
    grid = Grid(np.array([-1, -0.9, -0.5, 0, 0.05, 0.1, 1.0]), np.array([-1, 0, 0.1, 0.2, 1.0]))
    x, y = np.meshgrid(grid.x, grid.y)
    made = Surface(grid, {"train_loss": 0.1 + (x - 0.5) ** 2 + 3 * (y + 0.3) ** 2})
    with shown(browser, page(made, tmp_path / "s.html"), "#hide=contours&tilt=70") as tab:
        seen = []
        for layer in ("check", "uncheck"):
            getattr(tab, layer)("#show-spline")
            settled(tab)
            seen.append((np.ptp(pixels(tab, "relief-0"), axis=2) > 30).sum())
        assert seen[0] > 0.95 * seen[1]


def test_the_line_between_the_signs_follows_the_spline(browser, tmp_path):
    grid = Grid.square(-1, 1, 9)
    x = np.meshgrid(grid.x, grid.y)[0]
    made = Surface(grid, {"max_eig": 2 + x, "min_eig": 0.05 - x**2})
    with shown(browser, page(made, tmp_path / "s.html"), "#field=max_eig&hide=contours&y=-1") as tab:
        wide = tab.evaluate("document.getElementById('map-0').clientWidth") - 142
        high = tab.evaluate("document.getElementById('map-0').clientHeight") - 58

        def shade(x, y):  # of the map in its canvas, at (58, 12), over -1.125 to 1.125
            side = min(wide, high)
            row, column = 12 + (1.125 - y) / 2.25 * side, 58 + (x + 1.125) / 2.25 * side
            return pixels(tab, "map-0")[round(row), round(column)].max()

        assert shade(0.05**0.5, 0.4) < 60 < shade(0.2, 0.4)  # straight between the points it lies at 0.2
        tab.uncheck("#show-spline")
        settled(tab)
        assert shade(0.05**0.5, 0.4) > 60 > shade(0.2, 0.4)


def test_cells_without_a_value_are_hatched_by_the_reason(browser, file):
    with shown(browser, file, "#x=1&y=-0.5&hide=contours,zero,path") as tab:
        drawn = pixels(tab, "map-0")
        wide = tab.evaluate("document.getElementById('map-0').clientWidth") - 142
        high = tab.evaluate("document.getElementById('map-0').clientHeight") - 58
        w = min(wide, high * 2.1 / 1.6)
        cell = w / 21

        def cell_at(k):  # the k-th of the diagonal, from the corner at x = -1, y = 1
            return drawn[round(12 + k * cell) + 2 : round(12 + (k + 1) * cell) - 1,
                         round(58 + k * cell) + 2 : round(58 + (k + 1) * cell) - 1]  # fmt: skip

        todo, failed, finite = cell_at(2), cell_at(3), cell_at(4)
        assert (todo.min(axis=(0, 1)) < 130).all() and (np.ptp(todo, axis=2) < 20).all()
        red = failed[..., 0] - failed[..., 2] > 60
        assert 0.1 < red.mean() < 0.9 and np.ptp(finite.reshape(-1, 3), axis=0).max() < 20
        for k in (0, 1):  # NaN, infinite
            assert np.median(cell_at(k)) == 255
        assert tab.locator(".legend .key.todo").count() == tab.locator(".legend .key.failed").count() == 1


def test_one_spike_of_the_smallest_eigenvalue_leaves_the_zero_line_where_it_is(browser, tmp_path):
    grid = Grid.square(-1, 1, 21)
    x, y = np.meshgrid(grid.x, grid.y)
    low = x + 0.3 * np.sin(4 * y)
    both = [
        Surface(grid, {"train_loss": x**2 + y**2, "max_eig": 5 + y, "min_eig": values})
        for values in (low, np.where((x < -0.55) & (x > -0.65) & (abs(y - 0.6) < 0.05), -1e5, low))
    ]
    with shown(browser, page(both, tmp_path / "s.html"), "#field=train_loss&x=1&y=1&hide=contours") as tab:
        maps = [pixels(tab, name) for name in ("map-0", "map-1")]
        assert maps[0].shape == maps[1].shape
        black = [drawn.max(axis=2) < 40 for drawn in maps]
        assert black[0].sum() > 300 and np.logical_xor(*black).sum() < 0.1 * black[0].sum()


def test_keys_move_the_point_and_it_is_spoken(browser, file):
    with shown(browser, file) as tab:
        assert tab.inner_text("#place") == "x 0, y 0"
        tab.focus("#map-0")
        for key, place in (
            ("ArrowRight", "x 0.1, y 0"), ("ArrowUp", "x 0.1, y 0.1"), ("Shift+ArrowLeft", "x -0.4, y 0.1"),
            ("ArrowDown", "x -0.4, y 0"), ("End", "x 0, y 0"), ("Shift+ArrowDown", "x 0, y -0.5"), ("Home", "x 0, y 0"),
        ):  # fmt: skip
            tab.keyboard.press(key)
            assert tab.inner_text("#place") == place
        until(tab, "document.getElementById('live').textContent.includes('x 0, y 0')")
        assert tab.get_attribute("#live", "aria-live") == "polite"
        assert "smallest eigenvalue of the Hessian 0 ± 0.013 nats" in tab.inner_text("#live")


def test_the_mouse_points_in_both_views(browser, file):
    with shown(browser, file) as tab:
        box = tab.locator("#map-0").bounding_box()
        tab.mouse.move(box["x"] + 70, box["y"] + 24)
        assert tab.inner_text("#place") == "x -1, y 1" and readout(tab)["mean loss over the training samples"] == "NaN"
        box = tab.locator("#relief-0").bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert tab.inner_text("#place") != "x -1, y 1"


def test_keys_turn_the_camera_of_all_reliefs(browser, tmp_path):
    own = page([plane(), plane()], tmp_path / "two.html", titles=["a", "b"])
    with shown(browser, own) as tab:
        before = pixels(tab, "relief-1")
        tab.focus("#relief-0")
        for key in ("ArrowLeft", "ArrowUp", "+"):
            tab.keyboard.press(key)
        settled(tab)
        assert (pixels(tab, "relief-1") != before).any()
        assert (pixels(tab, "relief-0") == pixels(tab, "relief-1")).all()
        assert tab.locator("#readout thead th").all_inner_texts() == ["a", "b"]
        until(tab, "location.hash.includes('turn=30') && location.hash.includes('tilt=40')")
        tab.keyboard.press("Home")
        settled(tab)
        assert (pixels(tab, "relief-1") == before).all()


def test_the_address_holds_the_view(browser, file):
    with shown(browser, file) as tab:
        tab.select_option("#field", "train_acc")
        tab.uncheck("#show-path")
        tab.focus("#map-0")
        tab.keyboard.press("ArrowRight")
        until(tab, "location.hash.includes('x=0.1') && location.hash.includes('hide=path')")
        fragment, drawn = tab.evaluate("location.hash"), pixels(tab, "map-0")
    with shown(browser, file, fragment) as tab:
        assert (pixels(tab, "map-0") == drawn).all() and not tab.is_checked("#show-path")
        assert tab.input_value("#field") == "train_acc" and tab.inner_text("#place") == "x 0.1, y 0"
    with shown(browser, file, "#field=none&zoom=1e9&tilt=nan&x=foo&hide=a,b&tab=<b>") as tab:
        assert tab.input_value("#field") == "train_loss" and float(tab.input_value("#zoom")) == 5


def test_files_to_take_away(browser, file, tmp_path):
    made = plane()
    with shown(browser, file, "#field=min_eig") as tab:
        for ending in ("png", "svg", "csv"):
            with tab.expect_download() as download:
                tab.click(f"#{ending}")
            assert download.value.suggested_filename == f"plane.{ending}"
            download.value.save_as(tmp_path / f"p.{ending}")
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert len(rows) == X.size and rows[0]["train_loss"] == "NaN" and rows[22]["train_loss"] == "Infinity"
    assert (rows[44]["train_loss"], rows[66]["train_loss"]) == ("not computed", "failed")
    assert [float(row["min_eig"]) for row in rows] == pytest.approx(made["min_eig"].reshape(-1).tolist(), rel=1e-6)
    drawing = ElementTree.fromstring((tmp_path / "p.svg").read_text())
    texts = [element.text for element in drawing.iter() if element.tag.endswith("text")]
    assert texts[0].startswith("smallest eigenvalue of the Hessian") and "-0.5" in texts
    picture = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int)
    assert (np.ptp(picture, axis=2) > 30).mean() > 0.2


def test_print_and_page_have_the_same_colours(browser, tmp_path):
    made = replace(plane(), groups={})
    with shown(browser, page(made, tmp_path / "s.html"), "#x=1&y=1&hide=contours,zero,path,holes") as tab:
        for name in ("min_eig", "ratio", "max_eig"):
            tab.select_option("#field", name)
            settled(tab)
            with tab.expect_download() as download:
                tab.click("#png")
            drawn = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
            size = tab.evaluate("['clientWidth', 'clientHeight'].map((n) => document.getElementById('map-0')[n])")
            compare_with_print(made, name, drawn, size)


def compare_with_print(made, name, drawn, size):
    """Compare the colours of a field at some points of the map with those of matplotlib's picture."""
    figure = lossmap.draw(made, "map", field=name)
    figure.canvas.draw()
    printed = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    axes = figure.axes[0]
    for x, y in ((-0.9, -0.4), (-0.4, 0.3), (0.3, -0.4), (0.9, 0.7)):
        across, up = axes.transData.transform((x, y))
        row, column = printed.shape[0] - 1 - round(up), round(across)
        around = printed[row - 2 : row + 3, column - 2 : column + 3].reshape(-1, 3)  # where a hatch goes varies
        w, h = (
            size[0] - 142,
            size[1] - 58,
        )  # of the map in its canvas, at (58, 12); that lies 48 below the picture's top
        here = drawn[round(2 * (60 + (1.05 - y) / 1.6 * h)), round(2 * (58 + (x + 1.05) / 2.1 * w))]
        assert np.abs(here - around).max(1).min() < 8, (x, y)
        if name == "min_eig":
            assert (here[0] > here[2]) == (x < 0)  # red is negative


def map_pixels(tab):
    """A function from coordinates of `GRID` to rows and columns of its map's canvas."""
    wide, high = tab.evaluate("['clientWidth', 'clientHeight'].map((n) => document.getElementById('map-0')[n])")
    w = min(wide - 142, (high - 58) * 2.1 / 1.6)
    return lambda x, y: (12 + (1.05 - y) / 1.6 * w * 1.6 / 2.1, 58 + (x + 1.05) / 2.1 * w)


@pytest.mark.parametrize("name", ["min_eig", "ratio"])
def test_print_and_page_hatch_the_same_cells(browser, tmp_path, name):
    made = plane()
    fields = {**made.fields, "min_eig": X * (1 + Y) / 10, "min_eig_limit": X * (1 + Y) / 10 - 0.03}
    made = replace(
        made,
        fields=fields,
        groups={},
        measures={**made.measures, "eigen": tuple(set(fields) - {"train_loss", "train_acc"})},
    )
    masks = {}
    for collection in lossmap.draw(made, "map", field=name).axes[0].findobj(PatchCollection):
        if collection.get_hatch():
            boxes = [path.get_extents() for path in collection.get_paths()]
            masks[collection.get_hatch()] = np.any(
                [(b.x0 < X) & (b.x1 > X) & (b.y0 < Y) & (b.y1 > Y) for b in boxes], 0
            )
    assert masks[r"\\\\"].sum() > 50 and masks["...."].sum() > 20 and not (masks[r"\\\\"] & masks["...."]).any()
    file = page(made, tmp_path / "s.html")
    with shown(browser, file, f"#field={name}&x=1&y=1&hide=contours,zero,path,holes") as tab:
        drawn, place = pixels(tab, "map-0"), map_pixels(tab)
        for words, mask in (("< 0 beyond its error", masks[r"\\\\"]), ("undecided", masks["...."])):
            assert f"{words}: {mask.sum()} points" in tab.inner_text(".legend")
        tab.uncheck("#show-signs")
        settled(tab)
        differs = (drawn != pixels(tab, "map-0")).any(axis=2)
        assert "undecided" not in tab.inner_text(".legend")
        shares = np.zeros(X.shape)
        for i, j in np.ndindex(X.shape):
            (top, left), (low, right) = place(X[i, j] - 0.04, Y[i, j] + 0.04), place(X[i, j] + 0.04, Y[i, j] - 0.04)
            shares[i, j] = differs[round(top) : round(low), round(left) : round(right)].mean()
        assert (shares[masks[r"\\\\"]] > 0.15).all() and (shares[masks["...."]] > 0.02).all()
        assert (shares[~masks[r"\\\\"] & ~masks["...."]] == 0).all()


def test_print_and_page_show_the_losses_of_a_path_alike(browser, tmp_path):
    trail = Group({
        "x": np.array([0.9, 0.5, -0.5, -0.9]), "y": np.array([0.9, 0.2, 0.5, -0.3]),
        "loss": np.array([0.07, 3.0, np.nan, 1.0]), "residual": np.array([0.0, 1.0, 2.0, 2.0]),
    })  # fmt: skip
    made = replace(plane(), groups={"trajectory": trail})
    (printed,) = [c for c in lossmap.draw(made, "map").axes[0].collections if c.get_label() == "checkpoint"]
    with shown(browser, page(made, tmp_path / "s.html"), "#x=0&y=-0.5&hide=contours,zero,holes") as tab:
        assert "colours of their own losses, larger farther from the plane" in tab.inner_text(".legend")
        drawn, place = pixels(tab, "map-0"), map_pixels(tab)
        for i in range(4):
            row, column = (round(p) for p in place(trail["x"][i], trail["y"][i]))
            colour = 255 * printed.get_facecolor()[i][:3]
            assert np.abs(drawn[row, column] - colour).max() < 8, i
            radius = np.sqrt(printed.get_sizes()[i]) / 2 * 96 / 72
            edge = drawn[row, round(column + radius) - 1 : round(column + radius) + 2]
            assert edge.max(axis=1).min() < 120, i  # its border
        relief = pixels(tab, "relief-0")
        tab.uncheck("#show-path")
        settled(tab)
        changed = relief[(relief != pixels(tab, "relief-0")).any(axis=2)]
        assert (np.abs(changed - 255 * printed.get_facecolor()[1][:3]).max(axis=1) < 12).sum() > 10
        tab.check("#show-path")
        tab.select_option("#field", "train_acc")
        settled(tab)
        assert "training path, from open to filled circle" in tab.inner_text(".legend")


def test_hostile_names_stay_text(browser, tmp_path):
    evil = (
        "</script><script>window.owned = 1</script><img src=x onerror='window.owned = 1'><a href='http://a.example'>x"
    )
    made = plane()
    made = replace(
        made, fields={**made.fields, "train_loss": 1 + X**2}, attributes={evil: evil, "command_line": evil},
        groups={},
        about={**made.about, "train_loss": Field("train_loss", evil, evil)},
    )  # fmt: skip
    own = page(made, tmp_path / "s.html", evil, titles=[f"=cmd() {evil}"])
    with shown(browser, own) as tab:
        tab.click("#origin summary")
        tab.click("#values summary")
        assert tab.evaluate("window.owned") is None and tab.locator("img, a").count() == 0
        assert tab.locator("h1").inner_text() == evil and evil in tab.inner_text("#provenance")
        with tab.expect_download() as download:
            tab.click("#svg")
        ElementTree.parse(download.value.path())
        with tab.expect_download() as download:
            tab.click("#csv")
        first = next(csv.DictReader(Path(download.value.path()).read_text().splitlines()))["file"]
        assert first.startswith("'=cmd()")  # no formula


def test_a_field_of_one_file_is_no_field_of_the_other_whatever_its_name(browser, tmp_path):
    """Every object of JavaScript has a `constructor`; such a name was read as a value of a file without the field."""
    first = Surface(GRID, {"train_loss": 1 + X**2, "constructor": X, "__proto__": X - Y, "toString": Y})
    own = page([first, Surface(GRID, {"train_loss": 1 + Y**2})], tmp_path / "s.html", titles=["a", "b"])
    with shown(browser, own, "#x=1&y=1") as tab:
        cells = {row[0]: row[1:] for row in tab.evaluate(READOUT_CELLS)}
        assert cells["constructor"] == ["1", "not in this file"] and cells["toString"] == ["1", "not in this file"]
        assert cells["proto"] == ["0", "not in this file"]
        tab.select_option("#field", "constructor")
        settled(tab)


def test_a_ratio_is_never_negative_in_the_table_and_the_csv(browser, tmp_path):
    """On the map it has a minus where the smallest eigenvalue is not negative, which no name of a column says."""
    own = page(Surface(GRID, {"max_eig": 4 + Y, "min_eig": X.copy()}), tmp_path / "s.html")
    with shown(browser, own, "#field=ratio") as tab:
        tab.click("#values summary")
        until(tab, "document.querySelectorAll('#tables td').length > 300")
        cells = tab.evaluate(
            "[...document.querySelectorAll('#tables tbody tr:first-of-type td')].map((e) => e.innerText)"
        )
        assert cells[0] == "0.2, smallest negative" and cells[-1] == "0.2"
        with tab.expect_download() as download:
            tab.click("#csv")
        rows = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert [float(row["ratio"]) for row in rows] == pytest.approx(np.abs(X / (4 + Y)).reshape(-1).tolist(), rel=1e-6)


def test_places_in_a_window_far_from_0_are_told_apart_and_an_undecided_ratio_has_no_sign(browser, tmp_path):
    grid = Grid(np.linspace(1000, 1001, 15), np.linspace(-0.5, 0.5, 9))
    across, up = np.meshgrid(grid.x - 1000.5, grid.y)
    fields = {"max_eig": 4 + up, "min_eig": across, "min_eig_error": np.full(grid.shape, 0.06)}
    own = page(Surface(grid, fields), tmp_path / "s.html")
    with shown(browser, own, "#field=ratio&x=1000.5&y=0") as tab:
        signs, places = [], []
        tab.focus("#map-0")
        for key in ("ArrowLeft", "ArrowRight", "ArrowRight", "ArrowRight"):
            tab.keyboard.press(key)
            places.append(tab.inner_text("#place"))
            text = next(row[1] for row in tab.evaluate(READOUT_CELLS) if "smallest" in row[1])
            signs.append(text.partition(", smallest ")[2])
        assert signs == ["negative", "of undecided sign", "not negative", "not negative"]
        assert places == [f"x {x:.6g}, y 0" for x in grid.x[6:10]]
        tab.click("#values summary")
        until(tab, "document.querySelectorAll('#tables td').length > 100")
        heads = tab.evaluate("[...document.querySelectorAll('#tables thead th')].map((e) => e.innerText)")[1:]
        assert len(set(heads)) == 15 and heads[1] == "1000.07"
        with tab.expect_download() as download:
            tab.click("#svg")
        words = re.findall(r"<text[^>]*>(1000[^<]*|1001)</text>", Path(download.value.path()).read_text())
        assert len(words) > 2 and len(set(words)) == len(words)


def test_the_chart_has_the_axis_that_suits_all_its_curves(browser, tmp_path):
    """A curve of a hundredth of the others' losses lay flat on the axis that suited the others."""
    x = np.linspace(0, 1, 11)
    losses = {"train_loss": 2 + x, "curve_train_loss": np.exp(-7 * x)}
    about = {"curve_train_loss": Field("curve_train_loss", "nats", "on the curve")}
    with shown(browser, page(Surface(Grid(x), losses, about), tmp_path / "l.html")) as tab:
        assert tab.evaluate("document.getElementById('scale').value") == "log"
    losses["test_loss"] = losses.pop("curve_train_loss") - 0.5  # negative: a log axis has no place for it
    with shown(browser, page(Surface(Grid(x), losses), tmp_path / "l.html"), "#scale=log") as tab:
        words = "mean loss over the test samples, not positive, which a log axis has no place for: 10 points"
        assert words in tab.inner_text(".legend")


def texts_of_svg(tab):
    """The texts of the picture, and how many models it marks by a cross."""
    with tab.expect_download() as download:
        tab.click("#svg")
    elements = list(ElementTree.parse(download.value.path()).iter())
    return [e.text for e in elements if e.tag.endswith("text")], [e.get("stroke-width") for e in elements].count("3.5")


def test_the_line_between_two_networks_has_both_names_at_its_axis(browser, tmp_path):
    x, names = np.linspace(0, 1, 11), {"first": "<b>sgd", "other": "adam, with a rather long name of its file"}
    about = {
        "directions/x": Group({}, {"kind": "to:adam.pt"}),
        "connection": Group({"t": x, "train_loss": 1 + x}, names),
    }
    with shown(
        browser, page(Surface(Grid(x), {"train_loss": 1 + x}, groups=about), tmp_path / "l.html"), width=360
    ) as tab:
        texts, _ = texts_of_svg(tab)
        assert "t, from <b>sgd (0) to adam, with a rather long name of its file (1)" in " ".join(texts)
        assert max(map(len, texts[1:])) < 50  # which fit 300 pixels
        assert tab.inner_text("#place") == "t 0"
        assert "<b>sgd at t 0; adam, with a rather long name of its file at t 1" in tab.inner_text(".legend")


def test_a_picture_to_take_away_says_which_line_is_which(browser, tmp_path):
    """It has no page around it; its curves were without names."""
    x = np.linspace(0, 1, 11)
    with shown(browser, page(Surface(Grid(x), {"train_loss": 2 + x, "test_loss": 3 + x}), tmp_path / "l.html")) as tab:
        with tab.expect_download() as download:
            tab.click("#svg")
        elements = list(ElementTree.parse(download.value.path()).iter())
        words = {e.text: float(e.get("y")) for e in elements if e.tag.endswith("text")}
        keys = [e.get("stroke") for e in elements if e.get("stroke-width") == "3"]
        assert keys == ["#1f5a99", "#b5442c"]
        names = "mean loss over the training samples, chosen", "mean loss over the test samples, dashed"
        assert words[names[0]] < words[names[1]]
        height = float(next(e.get("height") for e in elements if e.tag.endswith("svg")))
        assert max(words.values()) < height
        with tab.expect_download() as download:
            tab.click("#png")
        picture = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
        below = picture[-100:]
        assert (np.abs(below - [0xB5, 0x44, 0x2C]).max(axis=2) < 30).sum() > 50


def test_the_models_of_a_plane_are_marked_as_in_print(browser, tmp_path):
    """Those at 1 of its axes too, and none that lies outside; a long label is broken, and not cut by the picture."""
    grid, long = Grid(np.linspace(-0.5, 1.5, 9), np.linspace(-0.5, 1.5, 9)), "of-an-epoch_" * 5 + ".pt"
    x, y = np.meshgrid(grid.x, grid.y)
    ends = {f"directions/{k}": Group({}, {"kind": f"to:{name}"}) for k, name in (("x", "b.pt"), ("y", long))}
    made = Surface(grid, {"train_loss": 1 + x**2 + y**2}, groups=ends)
    with shown(browser, page(made, tmp_path / "s.html"), "#x=0.5&y=0.5&hide=contours", width=360) as tab:
        assert f"+ model at x 0, y 0; b.pt at x 1, y 0; {long} at x 0, y 1" in tab.inner_text(".legend")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        texts, crosses = texts_of_svg(tab)
        assert crosses == 3
        assert f"y, 0: model, 1: {long}".replace(" ", "") in "".join(texts).replace(" ", "")
        legend = next(i for i, text in enumerate(texts) if text.startswith("+ model"))
        assert max(map(len, texts[1:legend])) < 50
    apart = Grid(np.linspace(0.2, 0.8, 5), np.linspace(0.2, 0.8, 5))
    with shown(browser, page(Surface(apart, {"train_loss": np.ones((5, 5))}), tmp_path / "s.html")) as tab:
        assert "model" not in tab.inner_text(".legend")


READOUT_CELLS = (
    "[...document.querySelectorAll('#readout tbody tr')].map((r) => [...r.children].map((c) => c.innerText))"
)
REACH_OUT = """
new Promise((done) => {
  const refused = new Set();
  document.addEventListener('securitypolicyviolation', (event) => {
    refused.add(event.effectiveDirective);
    if (refused.size === 4) { done([...refused].sort()); }
  });
  const add = (tag, more) => document.body.append(Object.assign(document.createElement(tag), more));
  add('script', { textContent: 'window.owned = 1' });
  add('style', { textContent: 'body { display: none }' });
  add('img', { src: 'http://127.0.0.1:9/x.png' });
  fetch('http://127.0.0.1:9/').catch(() => {});
  setTimeout(() => done([...refused].sort()), 5000);
})
"""


def test_the_policy_lets_no_other_script_run_and_nothing_leave(browser, file):
    tab = browser.new_page()
    tab.goto(f"file://{file}")
    assert tab.evaluate(REACH_OUT) == ["connect-src", "img-src", "script-src-elem", "style-src-elem"]
    assert tab.evaluate("window.owned") is None
    tab.close()


def test_a_page_on_a_phone_fits(browser, file):
    with shown(browser, file, width=375, height=700) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= 375
        for name in ("map-0", "relief-0"):
            box = tab.locator(f"#{name}").bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 375 and box["width"] > 300


def test_a_large_plane_answers(browser, tmp_path):
    grid = Grid.square(-1, 1, 201)
    draw = np.random.default_rng(0)
    fields = {f"metric{i}": draw.standard_normal(grid.shape) for i in range(8)}
    file = page(Surface(grid, fields), tmp_path / "s.html")
    with shown(browser, file) as tab:
        tab.focus("#map-0")
        tab.keyboard.press("ArrowRight")
        assert tab.inner_text("#place") == "x 0.01, y 0"
        tab.select_option("#field", "metric7")
        until(tab, "document.getElementById('shown').textContent.startsWith('metric7')")
        assert readout(tab)["metric7"][0] == pytest.approx(fields["metric7"][100, 101], rel=1e-6)


def test_more_curves_than_colours_have_dashes_of_their_own(browser, tmp_path):
    """The seventh curve looked like the first of those that are not chosen."""
    x = np.linspace(0, 1, 11)
    fields = {"train_loss": 1 + x} | {f"way_{k}": 2.0 + k + x for k in range(12)}
    about = {name: Field(name, "nats", f"way {name[4:]}") for name in fields if name != "train_loss"}
    with shown(browser, page(Surface(Grid(x), fields, about), tmp_path / "l.html")) as tab:
        look = "[e.getAttribute('stroke'), e.getAttribute('stroke-dasharray')]"
        keys = tab.evaluate(f"[...document.querySelectorAll('.legend line')].map((e) => {look})")
        assert len(keys) == 13 and len(set(map(tuple, keys))) == 13
        assert keys[0][1] == "none" and all(dash != "none" for _, dash in keys[1:])
        with tab.expect_download() as download:
            tab.click("#svg")
        paths = [e for e in ElementTree.parse(download.value.path()).iter() if e.tag.endswith("path")]

        def looks(width):
            return [(e.get("stroke"), e.get("stroke-dasharray")) for e in paths if e.get("stroke-width") == width]

        drawn = looks("2")[:1] + [look for look in looks("1.2") if look[1]]
        assert drawn == looks("3")  # curves and their keys below
        assert [(colour, (dash or "none").replace(",", " ")) for colour, dash in drawn] == list(map(tuple, keys))


def test_a_line_is_a_chart(browser, tmp_path):
    x = np.linspace(-1, 1, 11)
    fields = {"train_loss": 0.1 + x**2, "test_loss": 0.3 + x**2, "train_acc": 90 - x**2}
    fields["train_loss"][3] = np.nan
    with shown(browser, page(Surface(Grid(x), fields), tmp_path / "l.html")) as tab:
        assert "mean loss over the test samples, dashed" in tab.inner_text(".legend")
        assert "NaN: 1 point" in tab.inner_text(".legend") and tab.locator("#relief-0").count() == 0
        before = pixels(tab, "map-0")
        tab.focus("#map-0")
        tab.keyboard.press("ArrowRight")
        assert tab.inner_text("#place") == "x 0.2"
        assert readout(tab)["mean loss over the training samples"][0] == pytest.approx(0.14)
        tab.select_option("#field", "train_acc")
        settled(tab)
        assert (pixels(tab, "map-0") != before).any()
        tab.click("#values summary")
        until(tab, "document.querySelectorAll('#tables tbody tr').length === 11")


def test_a_training_runs_along_its_steps(browser, tmp_path):
    fields = fields_of("nats")
    history = History(fields)
    for step in range(4):
        history.add(step, {**{field.name: 1.0 + step for field in fields}, "loss": [0.0, 0.1, 0.2, 30.0][step]}, 0.1)
    history.write(tmp_path / "training.h5")
    with shown(browser, page(tmp_path / "training.h5", tmp_path / "t.html", field="loss")) as tab:
        assert tab.locator("[role=tab]").all_inner_texts() == ["Surface", "Training"]
        assert tab.inner_text("#place") == "step 0" and tab.input_value("#scale") == "log"
        assert "not positive, which a log axis has no place for: 1 point" in tab.inner_text(".legend")


def test_a_file_without_a_surface_has_its_tabs_alone(browser, tmp_path):
    only = Surface(Grid(np.zeros(1)), {}, groups={"trajectory": plane().groups["trajectory"]})
    with shown(browser, page([plane(), only], tmp_path / "s.html", titles=["a", "b"])) as tab:
        assert tab.locator("#views canvas").count() == 2 and tab.locator("#panel-Path img").count() == 2
    with shown(browser, page(only, tmp_path / "p.html")) as tab:
        assert tab.locator("#panel-Path img").count() == 1 and tab.is_visible("#panel-Path")


def test_a_plane_with_one_tick_is_a_line_along_the_other_axis(browser, tmp_path):
    made = Surface(Grid(np.array([0.25]), np.linspace(-1, 1, 5)), {"train_loss": np.arange(5.0)[:, None]})
    with shown(browser, page(made, tmp_path / "l.html")) as tab:
        assert tab.inner_text("#place") == "y 0" and tab.is_hidden("#camera")
        with tab.expect_download() as download:
            tab.click("#csv")
        rows = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert [(row["x"], row["y"], row["train_loss"]) for row in rows][:2] == [("0.25", "-1", "0"), ("0.25", "-0.5", "1")]


def test_a_flat_part_at_a_level_has_no_contour_line(browser, tmp_path):
    grid = Grid(np.arange(9.0), np.array([0.0, 0.1, 0.5, 2.0]))
    x, y = np.meshgrid(grid.x, grid.y)
    with shown(browser, page(Surface(grid, {"train_loss": x * y + 1}), tmp_path / "s.html"), "#x=8&y=0") as tab:
        drawn, wide = pixels(tab, "map-0"), tab.evaluate("document.getElementById('map-0').clientWidth")
        column = drawn[30 : len(drawn) * 2 // 3, 58 + round(0.5 / 9 * (wide - 142))]  # x = 0: the loss is 1, a level
        assert np.abs(column - column[0]).max() < 20


def test_a_growing_page_reads_itself_again(browser, tmp_path):
    made, path = plane(), tmp_path / "s.html"
    page(replace(made, fields={"max_eig": X}, about={}, measures={}, status={}), path, reload=1)
    with shown(browser, path, "#field=max_eig&x=0.5&y=0.5") as tab:
        until(tab, "document.getElementById('growing').textContent.includes('reload every 1 s')")
        tab.focus("#map-0")
        page(made, path, field="train_loss")
        until(tab, "document.querySelectorAll('#field option').length > 1 && document.documentElement.dataset.ready")
        assert tab.input_value("#field") == "max_eig" and tab.inner_text("#place") == "x 0.5, y 0.5"
        assert tab.evaluate("document.activeElement.id") == "map-0" and tab.is_hidden("#growing")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A file that holds a surface, a spectrum and a report of health."""
    torch.manual_seed(0)
    x = torch.randn(40, 6)
    problem = lossmap.Problem.supervised(nn.Linear(6, 3), nn.CrossEntropyLoss(), (x, x[:, :3].argmax(1)))
    parts = [lossmap.spectrum(problem).as_surface(), lossmap.diagnose(problem).as_surface()]
    groups = {name: group for part in parts for name, group in part.groups.items()}
    made = replace(plane(), groups={**plane().groups, **groups})
    return page(made, tmp_path_factory.mktemp("full") / "full.html", titles=["full.h5"])


def test_tabs_hold_what_else_the_file_holds(browser, full):
    with shown(browser, full) as tab:
        assert tab.locator("[role=tab]").all_inner_texts() == ["Surface", "Spectrum", "Health", "Path"]
        tab.focus("#tab-Surface")
        tab.keyboard.press("ArrowRight")
        assert tab.is_visible("#panel-Spectrum") and tab.is_hidden("#panel-Surface")
        assert "largest" in tab.inner_text("#panel-Spectrum pre")
        assert tab.evaluate("document.querySelector('#panel-Spectrum img').decode().then(() => true)")
        fragment = tab.evaluate("location.hash")
    with shown(browser, full, fragment) as tab:
        assert tab.get_attribute("#tab-Spectrum", "aria-selected") == "true" and tab.is_visible("#panel-Spectrum")


def test_axe_finds_no_fault(browser, full, tmp_path):
    script = gzip.decompress(AXE.read_bytes()).decode()
    line = page(Surface(Grid(np.linspace(-1, 1, 5)), {"train_loss": np.arange(5.0)}), tmp_path / "l.html")
    for file, fragment in ((full, ""), (full, "#tab=Health"), (line, "")):
        with shown(browser, file, fragment) as tab:
            tab.eval_on_selector_all("details", "all => all.forEach((d) => { d.open = true; })")
            settled(tab)
            tab.evaluate(script)
            found = tab.evaluate("axe.run().then((r) => r.violations.map((v) => [v.impact, v.id, v.nodes[0].html]))")
            assert found == []


def test_a_refined_surface_shows_what_was_measured_and_what_lies_between(browser, tmp_path):
    turn = np.where((np.arange(GRID.shape[0])[:, None] + np.arange(GRID.shape[1])) % 3 == 0, 0.0, -1.0)
    loss, accuracy = 1 + X**2, 90 - X**2
    own = turn == 0
    fields = {"train_loss": np.where(own, loss, np.nan), "train_acc": np.where(own, accuracy, np.nan)}
    group = Group({"round": turn, "train_loss": loss, "train_acc": accuracy}, {"error": 0.02})
    refined = Surface(
        GRID, fields, measures={"loss": tuple(fields)}, status={"loss": own.astype("u1")}, groups={"refinement": group}
    )
    with shown(browser, page(refined, tmp_path / "s.html"), f"#x={GRID.x[1]}&y={GRID.y[0]}&hide=contours") as tab:
        said = dict(
            tab.eval_on_selector_all("#readout tr", "rows => rows.map(r => [...r.cells].map(c => c.innerText))")
        )
        assert "±" in said["mean loss over the training samples"]  # that of the picture
        assert said["mean loss over the training samples"].endswith(", between measured points")
        assert said["accuracy on the training samples"].endswith("between measured points, how far off is not known")
        assert "measured; all else lies between" in tab.inner_text(".legend")
        dotted = pixels(tab, "map-0")
        tab.uncheck("#show-points")
        settled(tab)
        changed = (pixels(tab, "map-0") != dotted).any(axis=2)
        assert own.sum() < changed.sum() < 40 * own.sum()
        tab.evaluate(f"location.hash = '#x={GRID.x[0]}&y={GRID.y[0]}'")
        until(tab, f"document.getElementById('place').textContent === 'x {GRID.x[0]:.4g}, y {GRID.y[0]:.4g}'")
        assert "between" not in tab.inner_text("#readout")


def test_a_line_of_one_point_is_drawn_as_a_dot(browser, tmp_path):
    made = Surface(Grid(np.zeros(1)), {"train_loss": np.array([1.0])})
    with shown(browser, page(made, tmp_path / "s.html")) as tab:
        tab.evaluate("location.hash = '#'")
        drawn = pixels(tab, "map-0")
        blue = (drawn[..., 2] > 120) & (drawn[..., 0] < 60)
        assert blue.sum() > 5
