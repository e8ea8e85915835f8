"""The mark that a command of a batch job leaves at its end, for the script that started it.

Launchers do not hand on the exit codes of their ranks: Open MPI's mpirun with fault tolerance ends with 0 where all of
them were killed. A command with a result file is judged by that; one without writes its exit code into the file that
the script names.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "LOSSMAP_ENDED"  # names the file


def mark_end(code: int) -> None:
    """Write the exit code of the command where the batch script looks for it; without a script nothing. For rank 0."""
    file = os.environ.get(VARIABLE)
    if not file:
        return
    try:
        Path(file).write_text(f"{code}\n")
    except OSError as error:
        print(f"lossmap: the end of the command could not be noted: {error}", file=sys.stderr)
