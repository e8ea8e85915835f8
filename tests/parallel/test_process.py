"""What a process does with the machine before PyTorch is loaded."""

import subprocess
import sys

from lossmap.parallel.process import TURNS, let_threads_sleep

ASKED = """
import contextlib, os
os.environ.pop("GOMP_SPINCOUNT", None), os.environ.pop("OMP_WAIT_POLICY", None)
from lossmap.cli.__main__ import main
with contextlib.suppress(SystemExit):
    main(["surface", "--help"])
print(os.environ["GOMP_SPINCOUNT"])
"""


def test_commands_let_threads_sleep_that_wait_for_others():
    ended = subprocess.run([sys.executable, "-c", ASKED], check=True, capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == str(TURNS)


def test_what_the_person_has_set_stays_and_a_loaded_library_is_left_alone(monkeypatch):
    for own in ({"GOMP_SPINCOUNT": "5"}, {"OMP_WAIT_POLICY": "active"}):
        environ = dict(own)
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        let_threads_sleep(environ)
        assert environ == own
        monkeypatch.undo()
    environ = {}
    monkeypatch.setitem(sys.modules, "torch", object())
    let_threads_sleep(environ)
    assert environ == {}
