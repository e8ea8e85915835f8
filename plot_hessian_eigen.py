"""Extreme Hessian eigenvalues over a line or plane, with error bars: `lossmap eigenmap` from a checkout.

    python plot_hessian_eigen.py --model resnet20-w8 --model-file net.pt --x=-1:1:11 --y=-1:1:11 --plot
    mpirun -n 4 python plot_hessian_eigen.py --like surface.h5 --plot

You get max_eig and min_eig at every point, how far off they can be, and maps of max, min and |min/max|.
As in the original tool, -m is --mpi and -c is --cuda here.
"""

import sys

from lossmap.parallel.command_clock import start_clock
from lossmap.parallel.shutdown import keep_signals

if __name__ == "__main__":
    start_clock()
    keep_signals()  # from here on: the imports below take seconds

from lossmap.cli.eigenmap import main
from lossmap.cli.original_flags import with_original_letters
from lossmap.curvature.operators import CurvatureOperator, gauss_newton, hessian
from lossmap.linalg.arpack import eigsh
from lossmap.linalg.eigenpairs import EigenPairs
from lossmap.linalg.solvers import extremes

__all__ = ["CurvatureOperator", "EigenPairs", "eigsh", "extremes", "gauss_newton", "hessian", "main"]

if __name__ == "__main__":
    sys.exit(main(with_original_letters(sys.argv[1:])))
