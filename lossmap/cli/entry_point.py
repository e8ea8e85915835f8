"""What every subcommand's main function shares: exit codes, and errors turned into one sentence on stderr."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from lossmap.interrupt import ProgramEnded, exits_are_raised, is_error_of_user_code, place_in_user_code
from lossmap.io.printable import MissingCharacters, printable
from lossmap.parallel.idle_watch import idle_watch
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


def _end_world() -> NoReturn:
    from lossmap.parallel.world import end_world  # with NumPy, which a command may do without

    end_world()


def guarded(main: Callable[..., int]) -> Callable[..., int]:
    """A main function whose errors are printed as one sentence, with exit code 2; LOSSMAP_DEBUG=1 raises them."""

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> int:
        try:
            with warnings.catch_warnings(), exits_are_raised(), idle_watch(os.environ, _end_world):
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
        except Exception as error:  # of lossmap's own code a traceback is due
            place = place_in_user_code(error)
            # of several ranks one alone may have failed: raised, it ends the others, who may wait for it
            if place is None or launched(os.environ) > 1 or os.environ.get("LOSSMAP_DEBUG"):
                raise
            text = f"{type(error).__name__}: {error_sentence(error)}"
            print(f"lossmap: {printable(text)} ({place}; LOSSMAP_DEBUG=1 shows the traceback)", file=sys.stderr)
            return 2
        except BaseException as error:  # such as SystemExit and KeyboardInterrupt, where a person's code raised it
            if not _reports_user_code(error):
                raise
            return 2

    return run


def _reports_user_code(error: BaseException) -> bool:
    """Whether an exception that is to end the program was raised by a person's code; if so it is printed.

    The number that `sys.exit` was called with would be taken for that of a result.
    """
    place = place_in_user_code(error)
    if place is None or not is_error_of_user_code(error) or os.environ.get("LOSSMAP_DEBUG"):
        return False
    text = f"{type(error).__name__} is raised there"
    if isinstance(error, ProgramEnded):
        text = f"the program is ended there, by {error}"
    elif isinstance(error, SystemExit):
        text = f"the program is ended there, by sys.exit({error.code!r})"
    if launched_rank() == 0:
        print(f"lossmap: {place}: {printable(text)}; let it raise an error", file=sys.stderr, flush=True)
    else:
        time.sleep(SPEECH_SECONDS)
    return True
