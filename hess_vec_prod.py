"""Curvature and sharpness at one checkpoint, curvature along a run of them, and the health of a network.

    python hess_vec_prod.py --model resnet20-w8 --model-file net.pt            `lossmap spectrum`
    python hess_vec_prod.py dynamics run --model resnet20-w8                   `lossmap dynamics`
    python hess_vec_prod.py sharpness --model resnet20-w8 --model-file net.pt  `lossmap sharpness`
    python hess_vec_prod.py health --model resnet20-w8 --model-file net.pt     `lossmap health`

You get eigenpairs, trace and spectral density with their error bars, whole and layer by layer, as a report, in one
HDF5 file, and drawn.
"""

import sys

from lossmap.parallel.command_clock import start_clock
from lossmap.parallel.shutdown import keep_signals

if __name__ == "__main__" and sys.argv[1:2] != ["health"]:  # which a signal ends
    start_clock()
    keep_signals()  # from here on: the imports below take seconds

from lossmap.cli.__main__ import main as lossmap
from lossmap.curvature.operators import CurvatureOperator, gauss_newton, hessian
from lossmap.linalg.arpack import eigsh
from lossmap.linalg.eigenpairs import EigenPairs
from lossmap.linalg.solvers import extremes
from lossmap.linalg.trace import trace
from lossmap.spectra.spectrum import spectrum

__all__ = [
    "CurvatureOperator",
    "EigenPairs",
    "eigsh",
    "extremes",
    "gauss_newton",
    "hessian",
    "main",
    "spectrum",
    "trace",
]

COMMANDS = ("spectrum", "dynamics", "sharpness", "health")


def main() -> int:
    """Run the command that is named first; `spectrum` without a name. Returns its exit code."""
    words = sys.argv[1:]
    return lossmap(words if words and words[0] in COMMANDS else ["spectrum", *words])


if __name__ == "__main__":
    sys.exit(main())
