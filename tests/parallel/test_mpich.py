"""MPICH beside Open MPI: the same programs under the mpirun of its wheel, in a folder of its own.

Both wheels have a `bin/mpirun`, so `make test` puts MPICH's into `.mpich`; mpi4py's wheel has a build for each and
takes the library that MPI4PY_LIBMPI names.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lossmap.io.read import read

ROOT = Path(__file__).resolve().parents[2]
MPICH = Path(os.environ.get("LOSSMAP_TEST_MPICH") or ROOT / ".mpich")
LIBRARY = MPICH / "lib" / ("libmpi.12.dylib" if sys.platform == "darwin" else "libmpi.so.12")
OPEN_MPI = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(not LIBRARY.exists(), reason="there is no MPICH here: pip install --prefix .mpich mpich"),
]


def started(*words, mpirun=MPICH / "bin" / "mpirun", library=LIBRARY, ranks=3):
    """What became of a Python program under an mpirun, with mpi4py on a library; on none: as mpi4py finds it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MPI4PY_")}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "PYTHONPATH": str(ROOT)}
    environment["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    if library is not None:
        environment["MPI4PY_LIBMPI"] = str(library)
    launcher = [str(mpirun), "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, *map(str, words)]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )


def program(name):
    return ROOT / "tests" / "programs" / f"{name}.py"


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The surface of one process without any MPI."""
    path = tmp_path_factory.mktemp("serial") / "s.h5"
    assert started(program("undisturbed"), path, library=None, ranks=1).returncode == 0
    return read(path)


def is_equal(surface, other):
    names = ("train_loss", "train_acc")
    return (surface.status["loss"] == 1).all() and all(surface[n].tobytes() == other[n].tobytes() for n in names)


def test_three_ranks_of_mpich_give_the_bits_of_one_process(tmp_path, serial):
    ended = started(program("undisturbed"), tmp_path / "s.h5", 0.004)
    assert ended.returncode == 0, ended.stderr
    surface = read(tmp_path / "s.h5")
    assert json.loads(ended.stdout)["ranks"] == [0, 1, 2] == np.unique(surface["loss_rank"]).tolist()
    assert is_equal(surface, serial)


def test_a_killed_rank_of_mpich_ends_the_job_and_the_same_command_resumes_it(tmp_path, serial):
    died = started(program("a_rank_is_killed"), tmp_path / "s.h5", 1)
    assert died.returncode == 9 and "BAD TERMINATION" in died.stdout
    before = read(tmp_path / "s.h5").status["loss"] == 1
    assert 5 <= before.sum() < before.size
    again = started(program("undisturbed"), tmp_path / "s.h5")
    assert again.returncode == 0, again.stderr
    assert is_equal(read(tmp_path / "s.h5"), serial)


def test_a_rank_of_mpich_that_hangs_while_the_problem_is_set_up_ends_the_job(monkeypatch):
    monkeypatch.setenv("LOSSMAP_SETUP_TIMEOUT", "1.5")
    ended = started(program("setup_hangs"), 0)
    assert ended.returncode == 70, ended.stderr
    assert "lossmap: rank 0 on " in ended.stderr and "at setup_hangs.py, line 17, in net, while" in ended.stderr


# what every command does first; without torch it starts in a fraction of the time
COMMAND = """
import sys
from lossmap.cli.entry_point import guarded
from lossmap.parallel.world import World
sys.exit(guarded(lambda: print(World.start().size))())
"""


@pytest.mark.parametrize(
    ("mpirun", "library", "sentence"),
    [
        (OPEN_MPI, LIBRARY, r"the mpirun of Open MPI started 2 ranks, but mpi4py uses MPICH [\d.]+\w* here; start "),
        (MPICH / "bin" / "mpirun", None, r"the mpirun of MPICH .*started 2 ranks, but MPI sees one: mpi4py uses Open"),
    ],
)
def test_an_mpirun_of_the_other_mpi_is_one_sentence(mpirun, library, sentence):
    if OPEN_MPI is None or "Open MPI" not in subprocess.run([OPEN_MPI, "-V"], capture_output=True, text=True).stdout:
        pytest.skip("there is no Open MPI here")
    ended = started("-c", COMMAND, mpirun=mpirun, library=library, ranks=2)
    ours = [line for line in ended.stderr.splitlines() if line.startswith("lossmap: ")]
    assert ended.returncode != 0 and not ended.stdout
    assert len(ours) == 1 and re.search(sentence, ours[0]), ended.stderr
    assert "Traceback" not in ended.stderr and "Warning" not in ended.stderr and "Abort" not in ended.stderr
