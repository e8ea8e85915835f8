"""What ends a point or a command before its end: the value of a measure that is asked to stop, and a person's code.

Python's exceptions that are no `Exception` (KeyboardInterrupt, SystemExit, GeneratorExit) mean that the program is to
end; raised by a person's code they are an error of that code, as any other, and are told from a Ctrl-C. `os._exit` ends
a process without any word: called by a person's code, it raises (`exits_are_raised`).
"""

from __future__ import annotations

import dis
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class Interrupted(Exception):
    """Raised by a measure that was asked to stop inside a point; `state` lets it go on there later.

    state  a dict of arrays and plain values, small enough to be sent and saved; may be empty
    """

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        super().__init__("the point was left before its end")
        self.state: dict[str, Any] = state or {}


class ProgramEnded(SystemExit):
    """Raised in place of `os._exit`."""


@contextmanager
def exits_are_raised() -> Iterator[None]:
    """Inside, `os._exit` raises ProgramEnded where a person's code calls it, in this process and this thread.

    Not in a process that this code has forked, nor where anything else calls it.
    """
    leave, process, thread = os._exit, os.getpid(), threading.get_ident()
    is_inside = True

    def _exit(status: int) -> NoReturn:
        caller = sys._getframe(1).f_code.co_filename
        if is_inside and (os.getpid(), threading.get_ident()) == (process, thread) and _is_own_file(caller):
            raise ProgramEnded(f"os._exit({status})")
        leave(status)

    os._exit = _exit
    try:
        yield
    finally:
        is_inside = False  # code that has imported the name keeps it
        os._exit = leave


def place_in_user_code(error: BaseException) -> str | None:
    """Where in a person's own file an error arose, such as `net.py, line 3, in forward`; None where in no such file.

    Own files are those of no installed package, of neither Python nor lossmap.
    """
    return place_in_own_file(traceback.extract_tb(error.__traceback__))


def place_in_own_file(stack: traceback.StackSummary) -> str | None:
    """The innermost place of a stack in a person's own file, as `place_in_user_code`."""
    place = None
    for frame in stack:
        if _is_own_file(frame.filename):
            place = f"{os.path.basename(frame.filename)}, line {frame.lineno}, in {frame.name}"
    return place


def is_error_of_user_code(error: BaseException) -> bool:
    """Whether what was raised counts as an error of a person's code: every `Exception`, and what that code raises else.

    A Ctrl-C strikes between two instructions, a person's `raise` is one.
    """
    if isinstance(error, (Exception, SystemExit)):  # which sys.exit raises
        return True
    trace = error.__traceback__
    if trace is None or type(error).__module__.partition(".")[0] == __name__.partition(".")[0]:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    if not _is_own_file(code.co_filename):
        return not isinstance(error, KeyboardInterrupt) and place_in_user_code(error) is not None
    return dis.opname[code.co_code[trace.tb_lasti]] in ("RAISE_VARARGS", "RERAISE")


def _is_own_file(name: str) -> bool:
    own, path = os.path.dirname(os.path.abspath(__file__)), os.path.abspath(name)
    installed = tuple(os.path.abspath(folder) + os.sep for folder in (own, *sysconfig.get_paths().values()))
    return os.path.isfile(path) and not path.startswith(installed)
