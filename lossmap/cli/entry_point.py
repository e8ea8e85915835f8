"""What every subcommand's main function shares: exit codes, and errors turned into one sentence on stderr."""

from __future__ import annotations

import functools
import os
import signal
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from lossmap.io.printable import MissingCharacters, printable
from lossmap.parallel.launcher import launched, rank_in
from lossmap.parallel.messages import WorkerLost

EXIT_CODES = {"complete": 0, "failed": 3, "unfinished": 75}  # by the outcome of a result
MAX_SENTENCE = 1500  # characters of an error, beyond which its first sentence alone is printed
SPEECH_SECONDS = 2.0  # for rank 0 to say what all ranks have met
EXPECTED_ERRORS = (ValueError, OSError, ImportError, KeyError, RuntimeError, ArithmeticError)


def command_words(argv: Sequence[str] | None) -> list[str]:
    """The words of a command line: these, or those of the process."""
    return list(sys.argv[1:] if argv is None else argv)


def error_sentence(error: Exception) -> str:
    """An error as one sentence for a person."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, OSError) and error.filename and error.strerror:  # raised by the system: no sentence yet
        return f"{os.fspath(error.filename)}: {error.strerror}"
    text = str(error) or type(error).__name__
    if len(text) > MAX_SENTENCE:  # PyTorch lists every backend there is after some of its sentences
        text = text.splitlines()[0].split(" This could be because")[0]
    return text


def place_in_user_code(error: BaseException) -> str | None:
    """Where in a person's own file an error arose, such as `net.py, line 3, in forward`; None where in no such file.

    Own files are those of no installed package, of neither Python nor lossmap.
    """
    own, place = os.path.dirname(os.path.dirname(os.path.abspath(__file__))), None
    installed = tuple(os.path.abspath(folder) + os.sep for folder in (own, *sysconfig.get_paths().values()))
    for frame in traceback.extract_tb(error.__traceback__):
        path = os.path.abspath(frame.filename)
        if os.path.isfile(path) and not path.startswith(installed):
            place = f"{os.path.basename(path)}, line {frame.lineno}, in {frame.name}"
    return place


def launched_rank() -> int:
    """The rank of this process by the launcher's variables, before any MPI is started; 0 without a launcher."""
    return rank_in(os.environ)


def _in_one_line(show: Callable[..., None]) -> Callable[..., None]:
    """How warnings are shown: lossmap's own as a sentence, without the place in its code; all others as they were."""

    def shown(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, MissingCharacters):
            print(f"lossmap: {printable(str(message))}", file=sys.stderr, flush=True)
        else:
            show(message, category, *place, **more)

    return shown


def guarded(main: Callable[..., int]) -> Callable[..., int]:
    """A main function whose errors are printed as one sentence, with exit code 2; LOSSMAP_DEBUG=1 raises them."""

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> int:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _in_one_line(warnings.showwarning)
                return main(*args, **kwargs)
        except BrokenPipeError:  # the reader, such as `head`, has closed the pipe: not an error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except WorkerLost as error:  # between two surveys, such as while the problem is set up: all ranks raise it
            from lossmap.parallel.world import abort_world

            return abort_world(f"lossmap: {error}; what has been measured is safe: run the same command again to go on")
        except EXPECTED_ERRORS as error:
            if os.environ.get("LOSSMAP_DEBUG"):
                raise
            if launched_rank() == 0:
                print(f"lossmap: {printable(error_sentence(error))}", file=sys.stderr, flush=True)
            else:  # the launcher kills the others as soon as one ends so, and rank 0 may not have spoken yet
                time.sleep(SPEECH_SECONDS)
            return 2
        except SystemExit as error:  # of a person's code: its number would be taken for that of a result
            place = place_in_user_code(error)
            if place is None:
                raise
            if launched_rank() == 0:
                print(
                    f"lossmap: {place}: the program is ended there, by sys.exit({error.code!r}); let it raise an error",
                    file=sys.stderr,
                    flush=True,
                )
            else:
                time.sleep(SPEECH_SECONDS)
            return 2
        except Exception as error:  # of lossmap's own code a traceback is due
            place = place_in_user_code(error)
            # of several ranks one alone may have failed: raised, it ends the others, who may wait for it
            if place is None or launched(os.environ) > 1 or os.environ.get("LOSSMAP_DEBUG"):
                raise
            text = f"{type(error).__name__}: {error_sentence(error)}"
            print(f"lossmap: {printable(text)} ({place}; LOSSMAP_DEBUG=1 shows the traceback)", file=sys.stderr)
            return 2

    return run
