"""All that the cases take from lossmap, and how they answer: when modules move or names change, change this file alone.

`judged` prints what lossmap gives beside the truth and ends with 0 where all is right, 1 where not. A refusal is right where `refused` says so: an error that lossmap
raises with a sentence in which one of the words stands (never an IndexError, KeyError, AttributeError or TypeError from within).
"""

import io
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
warnings.filterwarnings("ignore")

import torch

torch.set_num_threads(1)


from warm import Warm

import lossmap.memory
from lossmap import (
    EigenvalueMap,
    Grid,
    Problem,
    Surface,
    draw,
    eigenpairs,
    layer_spectra,
    losses,
    random_plane,
    read,
    singular_values,
    spectrum,
    survey,
)
from lossmap import spectral_density as density
from lossmap.curvature.autotune import prepare
from lossmap.plotting.spectra import draw_layers

_warm = Warm(here=True)  # before anything of a case has happened


def extremes(matrix, **told):
    """Both ends of a matrix known by its products."""
    return eigenpairs(matrix, "ends", **told)


def operator(problem, parameters="weights", matrix="hessian"):
    """The curvature as an operator: `@`, `.size`."""
    return getattr(lossmap, matrix)(problem, parameters=parameters)


def prepared(problem, parameters="weights", **told):
    """What a map of eigenvalues makes once, the probe of ways of products with it."""
    return prepare(problem, parameters, **told)


def eigenvalues(problem, plane, points=(0.0,), parameters="weights", **told):
    """What the map of extreme eigenvalues reads at points of a line: a dict of floats each."""
    made = EigenvalueMap({"train": prepared(problem, parameters)}, plane, certify="none", **told)
    return [made((float(p),)) for p in points]


def centre(problem, name="train_loss", batch=None):
    """The surface's value where the model stands.

    batch  the batch that the probe would choose on some machine; None: left to lossmap on this one
    """
    told = {} if batch is None else {"plan": {"batch_size": batch}}
    s = survey(losses(problem, random_plane(problem.model, axes=1, seed=0), **told), Grid.line(-1, 1, 3))
    return float(s[name][1])


def largest(s):
    """(value, error) of the largest eigenvalue of a spectrum."""
    return s.largest


def smallest(s):
    return s.smallest


def trace_of(s):
    """(value, low, high) of the trace, with the interval that is told."""
    return (s.trace.value, *s.trace.interval())


def words_of(s):
    """All that a person reads of a spectrum or of layers."""
    return repr(s)


def free_memory_functions():
    """Every function of the package that says how much memory is free, by name."""
    return {"lossmap.memory.free_memory": lambda: lossmap.memory.free_memory(torch.device("cpu"))}


def command(*words, cwd=None, timeout=100):
    """The command line: (exit code, all that it wrote)."""
    return program("-m", "lossmap", *words, cwd=cwd, timeout=timeout)


def program(*words, cwd=None, timeout=100):
    """What `python WORDS` does: (exit code, all that it wrote)."""
    r = _warm.run(words, cwd=cwd or Path.cwd(), output=folder() / "output.txt", timeout=timeout)
    return r.returncode, r.stdout


def folder():
    """An empty folder that goes when the case ends."""
    made = tempfile.TemporaryDirectory(prefix="case-")
    folder.kept.append(made)
    return Path(made.name)


folder.kept = []
_log = io.StringIO()
_handler = logging.StreamHandler(_log)
logging.getLogger().addHandler(_handler)
logging.getLogger("lossmap").setLevel(logging.INFO)


def logged():
    """What lossmap has logged so far."""
    return _log.getvalue()


def attempt(f):
    """(value, None), or (None, the error)."""
    try:
        return f(), None
    except Exception as error:
        return None, error


WITHIN = (IndexError, KeyError, AttributeError, TypeError, AssertionError, ZeroDivisionError)


def refused(error, *words):
    """Whether an error is a refusal in a clear sentence: not one from within, and it names what is wrong."""
    if error is None or isinstance(error, WITHIN):
        return False
    return any(w.lower() in str(error).lower() for w in words)


def honest(value_and_error, truth, scale, slack=2e-3):
    """Right within its own bar and the accuracy asked for."""
    value, error = value_and_error[:2]
    return abs(value - truth) <= abs(error) + slack * abs(scale)


def shown(x):
    if isinstance(x, BaseException):
        return f"{type(x).__name__}: {str(x).splitlines()[0][:110] if str(x) else ''}"
    if isinstance(x, float):
        return f"{x:.6g}"
    if isinstance(x, (tuple, list)):
        return (
            "("
            + ", ".join(shown(float(v) if hasattr(v, "dtype") and getattr(v, "ndim", 0) == 0 else v) for v in x)
            + ")"
        )
    return str(x)


def judged(rows):
    """Print rows of (what, lossmap gives, truth, right), and end."""
    wrong = 0
    for what, gives, truth, right in rows:
        wrong += not right
        print(f"{'ok   ' if right else 'WRONG'} {what}: lossmap {shown(gives)} | truth {shown(truth)}")
    print(f"{len(rows) - wrong} of {len(rows)} right")
    sys.exit(bool(wrong))
