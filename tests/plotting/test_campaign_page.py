"""The page of a campaign: signs in the colours of the print, scales as there, silent, offline and accessible."""

import base64
import gzip
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lossmap.geometry.grid import Grid
from lossmap.io.read import write_surface
from lossmap.io.surface import Group, Surface
from lossmap.plotting.campaign_page import _cell, _strip, campaign_page

CHROMIUM = shutil.which("chromium")
GRID = Grid(np.linspace(-1, 1, 6), np.linspace(1, -1, 5))  # x ascending, y descending
X, Y = np.meshgrid(GRID.x, GRID.y)


def member(folder, digest, surface, measure="surface"):
    write_surface(folder / f"{digest}.h5", surface)
    return {
        "name": f"{measure}: <b>{digest}</b>", "measure": measure, "outcome": "complete", "digest": digest,
        "file": str(folder / f"{digest}.h5"), "done": 30, "failed": 0, "total": 30, "seed": len(digest), "loss": 0.5,
    }  # fmt: skip


def maps(text, words):
    """The pictures whose alternative text begins so, (rows, columns, 4)."""
    found = re.findall(f'<img alt="{words}[^"]*" src="data:image/png;base64,([^"]*)"', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int) for data in found]


@pytest.fixture
def page(tmp_path):
    loss = 1 + X**2 + Y**2
    loss[0, 0] = np.nan
    spiked = np.where(np.arange(30).reshape(5, 6) == 8, 1e6, 1 + X**2 + 0.5 * (Y < 0))
    fields = {"max_eig": 4 + X, "min_eig": X.copy()}
    rows = [
        member(tmp_path, "a", Surface(GRID, {"train_loss": loss})),
        member(tmp_path, "bb", Surface(GRID, {"train_loss": spiked})),
        member(tmp_path, "ccc", Surface(GRID, fields), "eigenmap"),
        member(tmp_path, "dddd", Surface(Grid(GRID.x), {"train_loss": GRID.x**2 + 1}), "line"),
    ]
    return campaign_page(rows, "sweep <i>.toml", tmp_path / "report.html")


def test_values_have_the_digits_of_their_errors():
    bar = '<span class="bar">&plusmn; 8.4e-06</span>'
    assert _cell(4.2567568, 8.4e-6) == f'<td class="number" data-value="4.2567568">4.2567568 {bar}</td>'
    assert _cell(4.2567568, None).endswith(">4.2568</td>")
    strip = _strip(np.array([4.2567568]), np.array([8.4e-6]), 0.0, 5.0)
    assert "<title>4.2567568 &#177; 8.4e-06</title>" in strip


def test_signs_and_scales_are_those_of_the_print(page):
    text = page.read_text()
    (signed,) = maps(text, "smallest eigenvalue of the Hessian, -1 to 1")
    assert (signed[:, 0, 0] > signed[:, 0, 2] + 60).all() and (signed[:, -1, 2] > signed[:, -1, 0] + 60).all()
    whole, spiked = maps(text, "mean loss over the training samples")
    assert whole[0, 0, 3] == 0 and "gaps: not known" in text  # y = 1, x = -1 lies at the upper left
    assert np.ptp(spiked[..., 1]) > 40 and "values up to 1e+06 beyond" in text  # one spike leaves the others colour
    assert spiked[-1, 2, 1] > spiked[0, 2, 1]  # larger for y < 0, which lies below


def test_numbers_stand_before_settings_and_captions_say_what_differs(tmp_path):
    rows = [member(tmp_path, d, Surface(GRID, {"train_loss": X**2 + 1})) for d in ("a", "bb")]
    for row, lr in zip(rows, (0.1, 0.2), strict=True):
        row |= {"lr": lr, "loss": lr / 2, "name": f"surface: x -1:1:6, lr {lr}"}
    rows[1] |= {"done": 0, "total": 0}  # as of an examination
    text = campaign_page(rows, "s", tmp_path / "r.html", settings=("lr", "seed")).read_text()
    heads = re.findall(r'<th scope="col"><button type="button">(.*?)</button>', text)
    assert heads == ["member", "outcome", "points", "loss", "seed", "lr", "result"]
    assert re.findall("<figcaption>(.*?)</figcaption>", text) == ["lr 0.1", "lr 0.2"]
    assert "30 of 30" in text and "0 of 0" not in text
    rows[0] |= {"outcome": "failed", "reason": "a.h5 is not the file that was computed for this member"}
    text = campaign_page(rows, "s", tmp_path / "r.html").read_text()
    assert len(re.findall("<figcaption>", text)) == 1  # it is not drawn under the name of this one
    rows[0] |= {"failed": 2}  # points
    assert len(re.findall("<figcaption>", campaign_page(rows, "s", tmp_path / "r.html").read_text())) == 2


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page is not looked at")
def test_it_is_silent_accessible_and_sorted_by_keys(page):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    axe = gzip.decompress((Path(__file__).with_name("axe") / "axe-4.14.1.min.js.gz").read_bytes()).decode()
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox"])
        tab, printed, asked = chromium.new_page(), [], []
        tab.on("console", lambda message: printed.append(message.text))
        tab.on("pageerror", lambda error: printed.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url.partition(":")[0]))
        tab.goto(f"file://{page}")
        first = "document.querySelector('tbody tr').cells[0].textContent"
        assert tab.evaluate(first) == "surface: <b>a</b>" and tab.locator("h1").inner_text() == "sweep <i>.toml"
        tab.locator("th button", has_text="seed").first.focus()
        for sort in ("ascending", "descending"):
            tab.keyboard.press("Enter")
            assert tab.locator("th[aria-sort]").first.get_attribute("aria-sort") == sort
        assert tab.evaluate(first) == "surface: <b>bb</b>"
        assert printed == [] and set(asked) <= {"file", "data"}
        looked = chromium.new_context(bypass_csp=True).new_page()
        looked.goto(f"file://{page}")
        looked.evaluate(axe)
        found = looked.evaluate("axe.run().then((r) => r.violations.map((v) => [v.id, v.impact]))")
        assert found == []
        chromium.close()


def test_spectra_of_one_end_are_drawn_too(tmp_path):
    """Those of `--bottom 0` ended in a KeyError."""
    point = Grid(np.zeros(1))
    pairs = {"top": ("top", [3.0, 1.0]), "low": ("bottom", [-2.0])}
    rows = [
        member(tmp_path, name, Surface(point, {}, groups={"spectrum/a": Group(arrays)}), "spectrum")
        for name, (end, values) in pairs.items()
        for arrays in [{end: np.array(values), f"{end}_error": np.full(len(values), 0.1)}]
    ]
    text = campaign_page(rows, "sweep.toml", tmp_path / "report.html").read_text()
    assert 'aria-label="eigenvalues 3, 1"' in text and 'aria-label="eigenvalues -2"' in text
