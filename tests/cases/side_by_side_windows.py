"""Two surfaces side by side over different windows: each panel shows its own window whole, none is cropped to, or lost in, another's."""

import numpy as np
from product import *


def made(reach, shift=0.0):
    x = np.linspace(-reach, reach, 21) + shift
    a, b = np.meshgrid(x, x)
    return Surface(Grid(x, x), {"train_loss": 0.1 + a**2 + 0.5 * b**2})


rows = []
for name, surfaces in (
    ("windows -1..1 and -3..3", [made(1), made(3)]),
    ("windows -3..3 and -1..1", [made(3), made(1)]),
    ("0..2 and -1..1 above one another, four in all", [made(1, 1), made(1), made(2), made(1)]),
):
    for kind in ("filled", "contour", "map", "eigen"):
        given = surfaces
        if kind == "eigen":
            given = [
                Surface(s.grid, {"max_eig": 1 + s["train_loss"], "min_eig": s["train_loss"] - 0.5}) for s in surfaces
            ]
        figure, error = attempt(lambda: draw(given, kind))
        if error:
            rows.append(
                (
                    f"{name}, {kind}",
                    error,
                    "drawn, or refused by name of the windows",
                    refused(error, "window", "range", "grid"),
                )
            )
            continue
        figure.canvas.draw()
        panels = [a for a in figure.axes if a.get_label() != "<colorbar>" and a.axison and (a.collections or a.images)]
        per = len(panels) // len(given)
        for axis in "xy":
            got = [
                tuple(round(float(v), 2) for v in sorted(getattr(panels[i * per], f"get_{axis}lim")()))
                for i in range(len(given))
            ]
            ticks = [getattr(s.grid, axis) for s in given]
            want = [(round(float(t.min()), 2), round(float(t.max()), 2)) for t in ticks]
            right = all(abs(g[k] - w[k]) <= t[1] - t[0] for g, w, t in zip(got, want, ticks) for k in (0, 1))
            rows.append((f"{name}, {kind}: {axis} of each panel", got, want, right))
judged(rows)
