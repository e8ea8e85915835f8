"""An interactive page: maps and reliefs of one or several surfaces, linked, in one HTML file that needs no network.

The page shows fields in words, contours, the line where the smallest eigenvalue is 0, the training path and holes; all
numbers at a point, with their bars; what else the files hold; where they come from. It writes PNG, SVG and CSV. Its
view stands in the address. The scripts are our own (`page_assets/`), without a library: the page is as large as its
data and 50 kB. A content security policy lets the browser run these scripts alone and reach no host.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from lossmap.io.printable import printable
from lossmap.io.read import Group, Surface, read
from lossmap.keywords import checked_keywords
from lossmap.plotting.options_taken import refuse_unused
from lossmap.plotting.page_data import PageSource, page_data
from lossmap.plotting.panels import FigureOptions
from lossmap.plotting.quantities import best_field, holds_points, other_kinds
from lossmap.plotting.style import appears_whole
from lossmap.plotting.titles import distinct_names

SCRIPTS, STYLE_SHEET = ("values.js", "interpolation.js", "map.js", "relief.js", "page.js"), "page.css"
Source = Surface | str | os.PathLike[str]

# {policy} and the others are filled in by `page`. What is hidden at first is shown by the script.
TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="lossmap">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><p id="summary">The page needs JavaScript, of a browser of 2023 or later.</p>
<p id="growing" hidden></p></header>
<main id="main">
<div id="tabs" role="tablist" aria-label="parts of the result" hidden></div>
<section id="panel-Surface" role="tabpanel" aria-label="Surface" hidden>
<div class="controls">
<label>Field <select id="field"></select></label>
<label>Scale <select id="scale"></select></label>
<fieldset id="layers"><legend>Show</legend></fieldset>
<fieldset id="camera"><legend>Camera</legend>
<label>turn <input id="turn" type="range" min="-180" max="180" step="1"></label>
<label>tilt <input id="tilt" type="range" min="5" max="90" step="1"></label>
<label>zoom <input id="zoom" type="range" min="0.4" max="5" step="0.05"></label></fieldset>
<fieldset><legend>Save</legend>
<button class="plain" type="button" id="png">PNG</button>
<button class="plain" type="button" id="svg">SVG</button>
<button class="plain" type="button" id="csv">CSV</button></fieldset>
</div>
<p id="shown"></p>
<div id="views"></div>
<h2>Chosen point: <span id="place"></span></h2>
<p id="live" class="unseen" role="status" aria-live="polite"></p>
<div class="scroll" tabindex="0" role="region" aria-label="values at the chosen point">
<table id="readout"></table></div>
<details id="more"><summary>more</summary>
<div class="scroll" tabindex="0" role="region" aria-label="further values at the chosen point">
<table id="readout-more"></table></div></details>
<details id="values"><summary>Table of the field</summary><div id="tables"></div></details>
</section>
<details id="origin"><summary>Command and origin</summary><div id="provenance"></div></details>
</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


@checked_keywords
def page(
    what: Source | Sequence[Source],
    path: str | os.PathLike[str],
    title: str | None = None,
    field: str | None = None,
    *,
    titles: Sequence[str] | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
    trajectory: Group | Mapping[str, Any] | bool | None = None,
    reload: float | None = None,
) -> Path:
    """Write the interactive page of a surface, or of several with common scales and one camera.

    It is one file, which opens in any browser without a network; `lossmap draw FILE --page` writes the same.

    Args:
        what: a `Surface`, the path of a result file, or several of them.
        path: the HTML file to write.
        title: of the page; the files' names if left out.
        field: what it shows first; the losses if left out.
        titles: one for each file; their names if left out.
        vmin: lower end of the colours of that field; of a line, of its axis.
        vmax: upper end.
        log: geometric colours and heights of losses or not; None: by what the values span.
        loss_max: where the loss axis of a line ends.
        trajectory: arrays x and y to draw over the map; that of the file if there is one, False for none.
        reload: seconds after which the page reads itself again, of a survey that grows.

    Returns:
        The path of the page.

    Raises:
        ValueError: for an option that would change nothing, where a file holds nothing to draw, and for titles that
            are not one for each file.
        OSError: where a file cannot be read, or the page not be written.

    Example:
        >>> import os, tempfile, numpy as np, lossmap
        >>> grid = lossmap.Grid.square(-1, 1, 5)
        >>> surface = lossmap.Surface(grid, {"train_loss": np.hypot(*np.meshgrid(grid.x, grid.y))})
        >>> lossmap.page(surface, os.path.join(tempfile.mkdtemp(), "bowl.html")).name
        'bowl.html'

    """
    given: list[Source] = list(what) if isinstance(what, (list, tuple)) else [what]  # type: ignore[list-item]
    surfaces = [own if isinstance(own, Surface) else read(own) for own in given]
    names = _names(given) if titles is None else list(titles)
    if not surfaces or len(names) != len(surfaces):
        raise ValueError(f"titles must be one for each of {len(surfaces)} surfaces; got {len(names)}")
    if isinstance(trajectory, Mapping):
        trajectory = Group(dict(trajectory))
    options = FigureOptions(vmin, vmax, None, log, loss_max, trajectory)
    _check(surfaces, field, options)
    title = printable(title or ", ".join(names))
    sources = [PageSource(surface, name) for surface, name in zip(surfaces, names, strict=True)]
    path = Path(path)
    data = page_data(sources, path.stem, field, options, reload)
    with appears_whole(path) as part:
        part.write_text(_filled(title, data), encoding="utf-8")
    return path


def _names(sources: Sequence[Source]) -> list[str]:
    """The files' names, with folders where names are equal."""
    paths = {i: Path(own) for i, own in enumerate(sources) if not isinstance(own, Surface)}
    names = dict(zip(paths, distinct_names(list(paths.values()), ending=True), strict=True))
    return [names.get(i, "loss surface") for i in range(len(sources))]


def _check(surfaces: Sequence[Surface], field: str | None, options: FigureOptions) -> None:
    """Raise ValueError where there is nothing to show, or an option changes nothing."""
    having = [surface for surface in surfaces if holds_points(surface)]
    if having:
        refuse_unused(having, "page", field, {**vars(options), "field": field})
    for surface in surfaces:
        if not holds_points(surface) and not other_kinds(surface):
            best_field(surface)  # raises, and says why


def _filled(title: str, data: Mapping[str, Any]) -> str:
    """The page as text; what comes from files stands in it as escaped text, or as JSON without a "<"."""
    script, style = _assets()
    policy = (
        f"default-src 'none'; script-src '{digest_of(script)}'; style-src '{digest_of(style)}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    content = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":  # no tag, and no end of the script, is in it
        content = content.replace(sign, f"\\u{ord(sign):04x}")
    return TEMPLATE.format(policy=policy, title=html.escape(title), style=style, data=content, script=script)


@cache
def _assets() -> tuple[str, str]:
    """The script and the style sheet of the page."""
    folder = files("lossmap.plotting") / "page_assets"
    parts = [(folder / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return "'use strict';\n{\n" + "".join(parts) + "}\n", (folder / STYLE_SHEET).read_text(encoding="utf-8")


def digest_of(text: str) -> str:
    """What the policy names a script or style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
