"""Makes and inspects planes, projects a training path, measures the line between two networks, draws result files.

`lossmap plane | connect | topology | draw | watch`:

python net_plotter.py --model resnet20-w8 --model-file net.pt --y=-1:1:51 --dir-file plane.h5
python net_plotter.py --model resnet20-w8 --model-folder run --xdir pca:1 --ydir pca:2 --proj-file path.h5
python net_plotter.py connect a.pt b.pt --model resnet20-w8
python net_plotter.py topology surface.h5 --plot
python net_plotter.py draw surface.h5 --kind 3d
python net_plotter.py watch surface.h5
"""

import sys

from lossmap.parallel.shutdown import keep_signals

if __name__ == "__main__" and sys.argv[1:2] == ["connect"]:  # the command that can be stopped
    keep_signals()  # from here on: the imports below take seconds

from lossmap.cli.__main__ import main as lossmap
from lossmap.geometry.directions import Plane, line_between, projected, random_plane
from lossmap.geometry.training_path import principal_axes, trajectory

__all__ = ["Plane", "line_between", "main", "principal_axes", "projected", "random_plane", "trajectory"]


COMMANDS = ("plane", "connect", "topology", "draw", "watch")


def main() -> int:
    """Run the command that is named first; `plane` without a name. Returns its exit code."""
    words = sys.argv[1:]
    return lossmap(words if words and words[0] in COMMANDS else ["plane", *words])


if __name__ == "__main__":
    sys.exit(main())
