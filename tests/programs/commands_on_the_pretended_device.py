"""The commands on the CPU and on the pretended device, as JSON: the numbers in their files, and what they say.

With the argument `without-float64` the device is one that has none.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import pretended_device  # first, since it changes PyTorch for the whole process

from lossmap.cli.__main__ import main  # isort: skip

NET = "--model cnn --dataset digits --samples 96"
TRAINED = f"{NET} --model-file run/step_000002.pt"
GRID = "--x=-0.5:0.5:3"
COMMANDS = {
    "surface": f"surface {TRAINED} {GRID} --y=0:0.5:2 --split both --surf-file F",
    "eigenmap": f"eigenmap {TRAINED} {GRID} --samples 48 --surf-file F",
    "spectrum": f"spectrum {TRAINED} --samples 48 --top 2 --bottom 1 --layers tensor --surf-file F",
    "dynamics": f"dynamics run {NET} --samples 48 --top 2 --surf-file F",
    "sharpness": f"sharpness {TRAINED} --samples 48 --surf-file F",
    "connect": f"connect {TRAINED} --other run/step_000004.pt --points 3 --surf-file F",
    "health": f"health {TRAINED} --samples 48 --surf-file F",
    "plane": f"plane {TRAINED} --xdir hessian:max --samples 48 --dir-file F",
    "estimate": f"estimate -- surface {TRAINED} {GRID} --surf-file F",
    "float64": f"surface {TRAINED} {GRID} --precision float64 --surf-file F",
}


def run(line: str) -> tuple[int, str]:
    """The exit code of a command, and what it says."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            code = main(line.split())
        except SystemExit as end:
            code = int(end.code or 0)
    return code, text.getvalue()


def content(path: Path) -> dict[str, list[float]]:
    """All real numbers of a file, by name."""
    import h5py

    found: dict[str, list[float]] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "fiu":
            found[name] = [float(x) for x in np.asarray(node[()]).reshape(-1)]

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


os.chdir(tempfile.mkdtemp())
pretended_device.as_a_kind_of_gpu()
if "without-float64" in sys.argv:
    pretended_device.without_float64()
trained = {}
for device, folder in (("auto", "there"), ("cpu", "run")):
    code, _ = run(f"train {NET} --epochs 2 --batch-size 48 --save-every 2 --folder {folder} --device {device}")
    state = torch.load(f"{folder}/step_000004.pt", weights_only=False)["state_dict"]
    trained[device] = {"code": code, "numbers": {name: t.reshape(-1).tolist() for name, t in state.items()}}
said: dict[str, Any] = {"train": trained}
for name, line in COMMANDS.items():
    said[name] = {}
    for device in ("cpu", "auto"):
        target = Path(f"{name}-{device}.h5")
        before = sum(pretended_device.launches.values())
        code, text = run(f"{line.replace(' F', f' {target}')} --device {device}")
        launches = sum(pretended_device.launches.values()) - before
        numbers = content(target) if target.exists() else {}
        said[name][device] = {"code": code, "text": text, "launches": launches, "numbers": numbers}
print(json.dumps(said))
