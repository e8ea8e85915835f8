"""setup_kills.py FILE: `lossmap surface` of a model whose factory kills the rank that the variable DIES names."""

import os
import signal
import sys

from lossmap import zoo
from lossmap.cli.surface import main


def net():
    """A small net, on all ranks but one."""
    if os.environ["OMPI_COMM_WORLD_RANK"] == os.environ["DIES"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return zoo.build("mlp", seed=1)


if __name__ == "__main__":
    subject = ["--model", f"{__file__}:net", "--samples", "32", "--batch-size", "32", "--no-probe", "--device", "cpu"]
    sys.exit(main([*subject, "--x=-1:1:5", "--surf-file", sys.argv[1]]))
