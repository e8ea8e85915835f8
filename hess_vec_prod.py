"""Curvature at one checkpoint, or along a run of them, and the health of a network.

    python hess_vec_prod.py --model resnet20-w8 --model-file net.pt            `lossmap spectrum`
    python hess_vec_prod.py --along run/*.pt --model resnet20-w8               how it turns along a run
    python hess_vec_prod.py health --model resnet20-w8 --model-file net.pt     `lossmap health`

You get eigenpairs, trace and spectral density with their error bars, whole and layer by layer, as a report, in one
HDF5 file, and drawn.
"""

import sys

from lossmap.cli.__main__ import main as lossmap
from lossmap.curvature.operators import CurvatureOperator, gauss_newton, hessian
from lossmap.linalg.lanczos import EigenPairs, eigsh, extremes
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


def main() -> int:
    """Open the door that was named; `spectrum` without a name."""
    words = sys.argv[1:]
    return lossmap(words if words[:1] in (["spectrum"], ["health"]) else ["spectrum", *words])


if __name__ == "__main__":
    sys.exit(main())
