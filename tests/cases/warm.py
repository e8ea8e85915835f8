"""Programs in children of one process that has imported PyTorch and lossmap already: seconds less for each.

A child begins as a new process would, in its own folder and environment, with nothing of what earlier programs did.
"""

import io
import json
import os
import runpy
import subprocess
import sys
import time
import traceback
from pathlib import Path

IMPORTS = ("torch", "scipy.stats", "h5py", "matplotlib.figure", "lossmap.cli.__main__", "lossmap.curvature.autotune")


class Warm:
    """One process that waits, and a child of it for each program.

    with Warm() as warm:
        ended = warm.run(["case.py", "--help"], cwd=folder, timeout=60)      a subprocess.CompletedProcess, both outputs in one
    """

    def __init__(self, here: bool = False) -> None:
        """Begin anew with IMPORTS, or (`here`) as a copy of the present process, with what it has imported."""
        (read, self.requests), (self.answers, write) = os.pipe(), os.pipe()
        if here:
            self.process = None
            if os.fork() == 0:
                os.close(self.requests)
                serve(read, write)
                os._exit(0)
        else:
            line = [sys.executable, __file__, str(read), str(write)]
            self.process = subprocess.Popen(line, pass_fds=(read, write))
        os.close(read)
        os.close(write)
        self.lines = os.fdopen(self.answers)

    def run(self, argv, *, cwd, output: Path, environ=None, timeout: float = 280) -> subprocess.CompletedProcess:
        """Run `python ARGV` (a file, or -m and a module) in `cwd`; what it writes goes through the file `output`."""
        asked = {
            "argv": [str(a) for a in argv],
            "cwd": str(cwd),
            "output": str(output),
            "environ": dict(os.environ if environ is None else environ),
            "timeout": timeout,
        }
        os.write(self.requests, (json.dumps(asked) + "\n").encode())
        code = json.loads(self.lines.readline())
        if code is None:
            raise subprocess.TimeoutExpired(argv, timeout)
        return subprocess.CompletedProcess(argv, code, Path(output).read_text(), "")

    def close(self) -> None:
        os.close(self.requests)
        self.lines.close()
        if self.process is not None:
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def serve(read: int, write: int) -> None:
    """Run what is asked for, one program after another, until nobody asks any more."""
    for line in os.fdopen(read):
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            os.close(read)
            os.close(write)
            as_a_program(asked)
        os.write(write, (json.dumps(ended(child, asked["timeout"])) + "\n").encode())


def ended(child: int, timeout: float) -> int | None:
    """The exit code, negative for a signal; None where the child took longer and was killed."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def as_a_program(asked) -> None:
    """In the child: what `python ARGV` does, then its end."""
    code = 1
    try:
        output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for standard in (1, 2):
            os.dup2(output, standard)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), line_buffering=True) for fd in (1, 2)
        )
        os.environ.clear()
        os.environ.update(asked["environ"])
        os.chdir(asked["cwd"])
        sys.argv = asked["argv"]
        if sys.argv[0] == "-m":
            sys.argv = sys.argv[1:]
            sys.path[0] = os.getcwd()
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(sys.argv[0]).parent)
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    import importlib

    for name in IMPORTS:
        importlib.import_module(name)
    serve(int(sys.argv[1]), int(sys.argv[2]))
