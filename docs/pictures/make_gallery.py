"""The pictures of docs/gallery.md and the page itself: `python docs/pictures/make_gallery.py` makes both, in a minute.

The results come from two small networks trained here on the packaged digits. Each picture is drawn by the command that
stands beside it on the page; commands run in a folder of their own, which is left behind where --keep FOLDER names it.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "gallery.md"
FOLDER = HERE / "gallery"
DPI = 110

RESULTS = """
lossmap train --model mlp --epochs 20 --lr 0.1 --folder run --final net.pt
lossmap train --model mlp --epochs 20 --seed 1 --optimizer adam --lr 0.01 --final other.pt
lossmap surface --model mlp --model-file net.pt --split both --x=-1:1:25 --y=-1:1:25 --surf-file net.h5
lossmap surface --model mlp --model-file other.pt --split both --x=-1:1:25 --y=-1:1:25 --surf-file other.h5
lossmap eigenmap --model mlp --model-file net.pt --samples 256 --x=-1:1:15 --y=-1:1:15 --surf-file eigen.h5
lossmap plane --model mlp --model-folder run --xdir pca:1 --ydir pca:2 --proj-file path.h5
lossmap spectrum --model mlp --model-file net.pt --samples 256 --surf-file spectrum.h5
lossmap spectrum --model mlp --model-file net.pt --samples 256 --layers module --surf-file layers.h5
lossmap spectrum --model mlp --model-file other.pt --samples 256 --layers module --surf-file other-layers.h5
lossmap dynamics run --model mlp --top 5 --samples 256 --surf-file dynamics.h5
lossmap connect net.pt other.pt --model mlp --align weights --curve bezier --surf-file line.h5
lossmap surface --model mlp --model-file net.pt --split both --x=-1:1:41 --surf-file seed0.h5
lossmap surface --model mlp --model-file net.pt --split both --x=-1:1:41 --seed 1 --surf-file seed1.h5
lossmap surface --model mlp --model-file net.pt --split both --x=-1:1:41 --seed 2 --surf-file seed2.h5
""".strip().splitlines()

# heading, what it shows, the command
PICTURES = (
    (
        "Two networks side by side",
        "Common levels; the contours follow a spline of the logarithm through the measured points.",
        "lossmap draw net.h5 other.h5 --titles SGD Adam --output pair.png",
    ),
    (
        "Contours, with the measured points",
        "Lines alone, labelled, and a dot at each point that was measured.",
        "lossmap draw net.h5 --kind contour --points --output contour.png",
    ),
    (
        "A relief",
        "Lit, with its contours on the floor and the model's place.",
        "lossmap draw net.h5 --kind 3d --camera 38,-62 --output relief.png",
    ),
    (
        "Several quantities of several files",
        "A row for each quantity, a column for each file.",
        "lossmap draw net.h5 other.h5 --titles SGD Adam --field train_loss gap accuracy --output sheet.png",
    ),
    (
        "Where the Hessian is positive definite",
        "The sign of its smallest eigenvalue beyond the error, over levels of the loss.",
        "lossmap draw eigen.h5 --output convexity.png",
    ),
    (
        "The eigenvalues themselves",
        "Both ends and their ratio.",
        "lossmap draw eigen.h5 --kind eigen --output eigenvalues.png",
    ),
    (
        "For a paper",
        "The column of a venue, levels and labels of one's own.",
        'lossmap draw net.h5 --style icml --cmap magma --labels "direction 1" "direction 2" loss --output column.png',
    ),
    (
        "Several directions as median and band",
        "Losses on the left axis, accuracies on the right.",
        "lossmap draw seed0.h5 seed1.h5 seed2.h5 --kind median --output median.png",
    ),
    (
        "The line between two networks",
        "The barrier above the straight line between both ends, before and after their units are aligned, and a curve "
        "of low loss around it.",
        "lossmap draw line.h5 --output barrier.png",
    ),
    (
        "A training path",
        "On the plane of its principal components.",
        "lossmap draw path.h5 --kind path --output path.png",
    ),
    (
        "A spectrum",
        "The density of the Hessian's eigenvalues with its band, and both ends as stems.",
        "lossmap draw spectrum.h5 --output spectrum.png",
    ),
    (
        "The layers of two networks",
        "Both ends of each diagonal block of the Hessian, and what share of its eigenvalues is negative.",
        "lossmap draw layers.h5 other-layers.h5 --titles SGD Adam --kind layers --output layers.png",
    ),
    (
        "Curvature along a training run",
        "Eigenvalues by step, as lines and as a heat map, and how the leading eigenvectors turn.",
        "lossmap draw dynamics.h5 --output dynamics.png",
    ),
)  # fmt: skip


def page() -> str:
    """The page, as it lies in docs/."""
    parts = [
        "# Gallery\n\nEach picture with the command that draws it. `python docs/pictures/make_gallery.py` makes them, "
        "and\nthis page, from the results of these commands:\n\n```sh\n" + "\n".join(RESULTS) + "\n```\n"
    ]
    for heading, words, command in PICTURES:
        name = output_of(command)
        parts.append(f"## {heading}\n\n{words}\n\n```sh\n{command}\n```\n\n![{heading}](pictures/gallery/{name})\n")
    return "\n".join(parts)


def output_of(command: str) -> str:
    """The name of the picture that a command makes."""
    words = shlex.split(command)
    return words[words.index("--output") + 1]


def run(command: str, folder: Path) -> None:
    """Run a command in a folder. Raises CalledProcessError where it fails."""
    words = shlex.split(command)[1:]
    if words[0] == "draw":
        words += ["--dpi", str(DPI)]
    print(f"$ {command}", flush=True)
    subprocess.run([sys.executable, "-m", "lossmap", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Make the pictures and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder of the results; those that are there are not computed again")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as own:
        folder = (keep or Path(own)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for command in RESULTS:
            words = shlex.split(command)
            flag = next(flag for flag in ("--surf-file", "--final", "--proj-file") if flag in words)
            if not (folder / words[words.index(flag) + 1]).exists():
                run(command, folder)
        FOLDER.mkdir(exist_ok=True)
        for _, _, command in PICTURES:
            run(command, folder)
            (FOLDER / output_of(command)).write_bytes((folder / output_of(command)).read_bytes())
    PAGE.write_text(page(), encoding="utf8")


if __name__ == "__main__":
    main()
