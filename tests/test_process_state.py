"""What a process holds beside models, put back for each problem that it computes."""

import os
import sys

import pytest
import torch

from lossmap.import_by_name import resolve_callable
from lossmap.process_state import ProcessState, begin, forget_cached, renew

SOURCE = """\
import torch
import {helper}

torch.set_float32_matmul_precision("high")
COUNT, TABLE = 0, None


class Net:
    made = 0


def net():
    global COUNT, TABLE, LATE
    COUNT, Net.made, LATE = COUNT + 1, Net.made + 1, 5
    {helper}.SCALE *= 2
    TABLE = torch.ones(2)
    torch.set_default_dtype(torch.float64)
    return COUNT, Net.made, {helper}.SCALE, torch.get_float32_matmul_precision()


def seen():
    return COUNT, Net.made, {helper}.SCALE, torch.get_default_dtype()


def table():
    return TABLE


def late():
    return LATE
"""


@pytest.fixture
def base():
    before = ProcessState.now()
    yield before
    before.put()
    assert torch.get_default_dtype() == torch.float32


def test_each_problem_begins_as_in_a_process_of_its_own_and_goes_on_as_it_left_it(base, tmp_path):
    (tmp_path / "helper_of_state.py").write_text("SCALE = 1.0\n")
    path = tmp_path / "own_state.py"
    path.write_text(SOURCE.format(helper="helper_of_state"))

    def build():
        begin(base)
        return resolve_callable(f"{path}:net")(), ProcessState.now()

    first, own = build()
    assert first == (1, 1, 2.0, "high")
    base.put()
    assert torch.get_float32_matmul_precision() == base.settings["precision of matrix products"]
    assert build()[0] == first  # the file is not imported again, and what its import set is set again
    resolve_callable(f"{path}:net")()
    own.put()  # the first one goes on
    assert resolve_callable(f"{path}:seen")() == (1, 1, 2.0, torch.float64)
    assert resolve_callable(f"{path}:table")().tolist() == [1, 1]  # what is built once stays
    begin(base)
    with pytest.raises(NameError):
        resolve_callable(f"{path}:late")()


def test_a_module_named_twice_sets_nothing_a_second_time(base, tmp_path):
    """As Python does: its factory may have set something else since."""
    path = tmp_path / "named_twice.py"
    path.write_text("import torch\ntorch.set_default_dtype(torch.float64)\n\ndef net():\n    pass\n")
    for _ in range(2):
        begin(base)
        resolve_callable(f"{path}:net")
        assert torch.get_default_dtype() == torch.float64
        torch.set_default_dtype(torch.float32)
        resolve_callable(f"{path}:net")
        assert torch.get_default_dtype() == torch.float32


def test_each_problem_has_its_own_environment_folder_and_threads(base, tmp_path):
    path = tmp_path / "sets_all.py"
    path.write_text(
        "import os, sys, torch\nos.environ['WIDTH_OF_NET'] = '7'\nos.environ.pop('TAKEN_AWAY', None)\n"
        "torch.set_num_threads(3)\ntorch.set_flush_denormal(True)\n\ndef net():\n    os.chdir('/')\n"
    )
    os.environ["TAKEN_AWAY"] = "1"
    try:
        before = ProcessState.now()
        for _ in range(2):
            begin(before)
            resolve_callable(f"{path}:net")()
            assert (os.environ["WIDTH_OF_NET"], os.environ.get("TAKEN_AWAY"), os.getcwd()) == ("7", None, "/")
            own = ProcessState.now()
            begin(before)
            assert ("WIDTH_OF_NET" in os.environ, os.environ["TAKEN_AWAY"]) == (False, "1")
            assert os.getcwd() == before.settings["current folder"]
            assert torch.get_num_threads() == before.settings["threads"]
            assert float(torch.tensor(1e-310, dtype=torch.float64) * 0.5) > 0
            own.put()
            assert (os.environ["WIDTH_OF_NET"], os.getcwd(), torch.get_num_threads()) == ("7", "/", 3)
            begin(before)
    finally:
        del os.environ["TAKEN_AWAY"]


def test_folders_put_on_the_search_path_are_searched_by_their_own_problem_alone(base, tmp_path):
    """Two folders with modules of one name, found by the search path; and one that two files share, executed once."""
    (tmp_path / "shared_by_both.py").write_text(
        "import os, torch\ntorch.set_default_dtype(torch.float64)\nMADE = []\n"
        f"with open({str(tmp_path / 'executed')!r}, 'a') as file:\n    file.write('x')\n"
    )
    text = (
        "import os, sys\nimport torch\nimport shared_by_both\n"
        "sys.path.insert(0, os.path.join(os.path.dirname(__file__), 'src'))\nimport common_of_two\n\n"
        "def net():\n    from late_of_two import LATE\n    shared_by_both.MADE.append(1)\n"
        "    return common_of_two.WIDTH, LATE, torch.get_default_dtype(), len(shared_by_both.MADE), "
        f"os.path.getsize({str(tmp_path / 'executed')!r})\n"
    )
    for width, name in enumerate("ab"):
        (tmp_path / name / "src").mkdir(parents=True)
        (tmp_path / name / "src" / "common_of_two.py").write_text(f"WIDTH = {width}\n")
        (tmp_path / name / "src" / "late_of_two.py").write_text(f"LATE = {width}\n")
        (tmp_path / name / "net.py").write_text(text)
    sys.path.insert(0, str(tmp_path))
    try:
        before = ProcessState.now()
        for width, name in [*enumerate("ab"), *enumerate("ab")]:
            begin(before)
            answer = resolve_callable(f"{tmp_path / name / 'net.py'}:net")()
            assert answer == (width, width, torch.float64, 1, 1)
        begin(before)
        assert "common_of_two" not in sys.modules and not any(str(tmp_path / "a") in entry for entry in sys.path)
    finally:
        sys.path.remove(str(tmp_path))


HOSTILE = """\
import os
import torch
from torch.overrides import TorchFunctionMode


class Twice(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        value = function(*args, **(kwargs or {}))
        return 2 * value if function is torch.nn.functional.linear else value


def thrice(module, inputs, outputs):
    return 3 * outputs


WHAT
os.umask(0o777)

def net():
    return net
"""


@pytest.mark.parametrize(
    "what",
    [
        "torch.set_autocast_enabled('cpu', True)",
        "mode = torch.inference_mode(); mode.__enter__()",
        "mode = Twice(); mode.__enter__()",
        "torch.nn.modules.module.register_module_forward_hook(thrice)",
        "torch.nn.functional.relu = torch.nn.functional.leaky_relu",
        "torch.nn.functional.relu = lambda inputs, inplace=False: inputs.abs()",
        "torch.nn.ReLU.forward = lambda self, inputs: 2 * inputs",
        "torch.nn.ReLU.__call__ = lambda self, inputs: 2 * inputs",
        "torch.Tensor.__add__ = lambda self, other: torch.sub(self, other)",
    ],
)
def test_no_problem_sees_modes_hooks_and_functions_of_pytorch_that_another_one_has_changed(base, tmp_path, what):
    def value():
        layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        with torch.no_grad():
            layers[0].weight.copy_(torch.tensor([[0.3, 0.3], [-0.3, -0.3]]))
            layers[0].bias.zero_()
            outputs = layers(torch.tensor([[1.0, 3.0]]) + 0.25)
        return outputs.tolist(), outputs.is_inference(), outputs.dtype

    path = tmp_path / "hostile_to_others.py"
    path.write_text(HOSTILE.replace("WHAT", what))
    before, plain = ProcessState.now(), value()
    mask = before.settings["rights of new files"]
    for _ in range(3):  # executed; named again; and again after its state was put
        begin(before)
        assert value() == plain and ProcessState.now().settings["rights of new files"] == mask
        resolve_callable(f"{path}:net")()
        own = ProcessState.now()
        hostile = value()
        assert hostile != plain
        begin(before)
        assert value() == plain
        own.put()
        assert value() == hostile
    begin(before)


HELD = """\
import functools, random
from collections import Counter, deque
from types import SimpleNamespace

import numpy as np
import torch

class Options:
    def __init__(self):
        self.layers = [1]

LISTS, DEEP, QUEUE, SET = [0], {"a": {"b": [1]}}, deque([1]), {1}
OPTIONS, SPACE, COUNT = Options(), SimpleNamespace(scale=1.0), Counter("a")
NUMPYS, PYTORCHS, PYTHONS = np.random.default_rng(0), torch.Generator().manual_seed(0), random.Random(0)
ARRAY, TENSOR, TABLE = np.ones(2), torch.ones(2), None

def counted(step=[0]):
    step[0] += 1
    counted.calls = getattr(counted, "calls", 0) + 1
    return step[0], counted.calls

def made():
    count = 0
    def inner():
        nonlocal count
        count += 1
        return count
    return inner

closure = made()

@functools.lru_cache
def cached():
    return random.random()

def act():
    return 1

def net():
    global TABLE, act
    LISTS.append(2)
    DEEP["a"]["b"][0] += 1
    QUEUE.append(3)
    SET.add(4)
    OPTIONS.layers[0] += 1
    SPACE.scale *= 2
    COUNT["a"] += 1
    ARRAY[0] += 1
    TENSOR.mul_(2)
    TABLE = (TABLE or 0) + 1
    before, act = act(), lambda: 7
    return (
        LISTS, DEEP, QUEUE, SET, OPTIONS.layers, SPACE, COUNT, ARRAY, TENSOR, TABLE, before, counted(), closure(),
        NUMPYS.normal(), torch.rand(1, generator=PYTORCHS), PYTHONS.random(),
    )
"""


def test_what_a_module_holds_is_as_after_its_import_for_each_problem(base, tmp_path):
    """Lists, dictionaries, objects, generators, defaults, closures: also where another file has changed them."""
    (tmp_path / "held_by_all.py").write_text(HELD)
    for name in "ab":
        (tmp_path / f"{name}_of_held.py").write_text("import held_by_all\n\ndef net():\n    return held_by_all.net()\n")
    (tmp_path / "c_of_held.py").write_text("from held_by_all import *\nLISTS.append(5)\nSPACE.scale = 9.0\n")

    def answer(name):
        begin(base)
        return repr(resolve_callable(f"{tmp_path / name}_of_held.py:net")())

    alone = answer("a")
    own = ProcessState.now()
    third = answer("c")
    assert (answer("b"), answer("a"), answer("c")) == (alone, alone, third) and "9.0" not in alone
    own.put()
    assert sys.modules["held_by_all"].LISTS == [0, 2] and sys.modules["held_by_all"].TABLE == 1
    assert sys.modules["held_by_all"].net()[13] != sys.modules["held_by_all"].net()[13]


HOLDER = """
import collections, contextvars, queue
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

class Slots:
    __slots__ = ("count",)
    def __init__(self):
        self.count = 0
    def up(self):
        self.count += 1

class Registry(dict):
    pass

Point = collections.namedtuple("Point", "x y")
"""


@pytest.mark.parametrize(
    ("thing", "change", "value"),
    [
        ("torch.nn.BatchNorm1d(2)", "THING.running_mean.add_(1)", "THING.running_mean[0].item()"),
        ("torch.nn.Linear(2, 2)", "THING.requires_grad_(False)", "THING.weight.requires_grad"),
        ("torch.nn.Linear(2, 2)", "torch.nn.init.ones_(THING.weight)", "(THING.weight == 1).all().item()"),
        ("np.zeros(20_000)", "np.add(THING, 1, out=THING)", "THING[0]"),
        ("torch.zeros(20_000)", "THING.add_(1)", "THING[0].item()"),
        ("iter(range(9))", "next(THING)", "next(THING)"),
        ("torch.nn.Linear(2, 2)", "THING.register_forward_hook(print)", "len(THING._forward_hooks)"),
        ("torch.nn.Dropout(0.1)", "THING.p += 0.1", "THING.p"),
        ("torch.nn.Sequential(torch.nn.ReLU())", "THING.append(torch.nn.Tanh())", "str(THING)"),
        ("torch.nn.Linear(2, 2)", "THING.weight.sum().backward()", "THING.weight.grad.sum().item()"),
        ("torch.fx.symbolic_trace(torch.nn.ReLU())", "THING.eval()", "THING.training"),
        (
            "DataLoader(range(99), 9, True, generator=torch.Generator())",
            "next(iter(THING))",
            "next(iter(THING)).tolist()",
        ),
        ("TensorDataset(torch.zeros(2))", "THING.tensors[0].add_(1)", "THING[0]"),
        ("torch.eye(3).to_sparse().coalesce()", "THING.values().add_(1)", "THING.to_dense()[0, 0].item()"),
        ("torch.zeros(1).expand(10**13)", "THING[:1].add_(1)", "THING[0].item()"),
        ("np.array([None, []], dtype=object)", "THING[1].append(1)", "len(THING[1])"),
        ("bytearray(2)", "THING.append(1)", "len(THING)"),
        ("list(range(20_000))", "THING.append(THING.pop(0))", "THING[0]"),
        ("Slots()", "THING.count += 1", "THING.count"),
        ("Registry()", "THING[len(THING)] = 1", "len(THING)"),
        ("Point([], [])", "THING.x.append(1)", "len(THING.x)"),
        ("Slots().up", "THING()", "THING.__self__.count"),
        ("queue.Queue()", "THING.put(1)", "THING.qsize()"),
        ("contextvars.ContextVar('n', default=0)", "THING.set(THING.get() + 1)", "THING.get()"),
    ],
)
def test_a_module_is_executed_anew_where_what_it_holds_cannot_be_put_back(base, tmp_path, thing, change, value):
    """A network, a large array, an iterator: each problem has its own, and so has a file that imports the module."""
    name = f"holds_{abs(hash(thing + change))}"
    (tmp_path / f"{name}.py").write_text(
        f"{HOLDER}\nTHING = {thing}\n\ndef change():\n    {change}\n\ndef value():\n    return {value}\n"
    )
    (tmp_path / "net_of_held.py").write_text(
        f"import {name}\n\ndef net():\n    {name}.change()\n    return {name}.value()\n\n"
        f"def late():\n    import {name} as again\n    return again is {name}, again.THING\n"
    )
    path, states = tmp_path / "net_of_held.py", []

    def answer():
        begin(base)
        renew(base, states)
        number = resolve_callable(f"{path}:net")()
        states.append(ProcessState.now())
        return number, resolve_callable(f"{path}:late")

    (first, late), (second, later) = answer(), answer()
    assert first == second
    things = []
    for state, function in zip(states * 2, (late, later) * 2, strict=True):
        state.put()
        is_own, own = function()
        assert is_own  # what each of them imports when it is called is its own
        things.append(own)
    assert things[0] is things[2] is not things[1] and things[1] is things[3]
    states.clear()
    assert answer()[0] == first


def test_a_file_that_cannot_be_executed_anew_says_what_it_is_executed_for(base, tmp_path):
    (tmp_path / "registers_once.py").write_text(
        "import sys\nimport torch\n\nNET = torch.nn.Linear(2, 2)\nif hasattr(sys, 'registered_once'):\n"
        "    raise RuntimeError('there is one')\nsys.registered_once = True\n"
    )
    path = tmp_path / "net_of_once.py"
    path.write_text("from registers_once import NET\n\ndef net():\n    NET.weight.data.mul_(2)\n    return NET\n")
    try:
        begin(base)
        renew(base, [])
        resolve_callable(f"{path}:net")()
        begin(base)
        renew(base, [])
        said = (
            "there is one; the file is executed once more, since .* has changed NET in (net_of|registers)_once.py: make"
        )
        with pytest.raises(ValueError, match=said):
            resolve_callable(f"{path}:net")
    finally:
        del sys.registered_once


def test_things_that_stay_as_they_are_are_made_once(base, tmp_path):
    """Used as they are meant to be; among them locks, and what no pickle holds."""
    path = tmp_path / "teacher_of_all.py"
    path.write_text(
        "import logging, re, threading\nimport torch\n\nTEACHER = torch.nn.Linear(2, 2).eval()\n"
        "QUICK = torch.fx.symbolic_trace(torch.nn.Linear(2, 2))\n"
        "OTHERS = [logging.getLogger('x'), re.compile('a'), threading.Lock(), torch.device('cpu'), torch.float32,\n"
        "          torch.nn.LazyLinear(2), torch.optim.SGD(TEACHER.parameters()), torch.zeros(2, device='meta')]\n"
        "\ndef net():\n    x = torch.ones(3, 2)\n    TEACHER(x), QUICK(x), OTHERS[0].info('a'), OTHERS[1].match('b')\n"
        "    with OTHERS[2], torch.no_grad():\n        TEACHER.weight.mul_(2).div_(2)\n    return TEACHER\n"
    )
    begin(base)
    renew(base, [])  # what other tests have left
    made = resolve_callable(f"{path}:net")()
    begin(base)
    renew(base, [])
    assert resolve_callable(f"{path}:net")() is made


def test_cached_functions_are_computed_for_each_problem(base, tmp_path):
    path = tmp_path / "cached_of_held.py"
    path.write_text(
        "import functools\nDRAWN = [0]\n@functools.lru_cache\ndef net():\n    DRAWN[0] += 1\n    return DRAWN[0]\n"
    )
    first = resolve_callable(f"{path}:net")
    assert first() == first() == 1
    begin(base)
    forget_cached()
    assert resolve_callable(f"{path}:net").cache_info().currsize == 0 and first() == 1


def test_a_module_that_two_files_import_replaces_in_pytorch_what_it_did_itself_alone(base, tmp_path):
    """The first file has replaced something itself before; the second one sees nothing of that."""
    (tmp_path / "patches_of_both.py").write_text(
        "import torch\ntorch.set_default_dtype(torch.float64)\ntorch.nn.functional.elu = lambda inputs: inputs\n"
    )
    text = "import torch\n{0}\nimport patches_of_both\n\ndef net():\n    return net\n"
    (tmp_path / "first_of_both.py").write_text(text.format("torch.nn.functional.celu = lambda inputs: 2 * inputs"))
    (tmp_path / "second_of_both.py").write_text(text.format("torch.nn.functional.selu = lambda inputs: 3 * inputs"))
    functional = torch.nn.functional
    plain, before = (functional.elu, functional.celu, functional.selu), ProcessState.now()
    seen = {"first": (False, False, True), "second": (False, True, False)}
    for name in ("first", "second", "first", "second"):
        begin(before)
        assert (functional.elu, functional.celu, functional.selu) == plain
        resolve_callable(f"{tmp_path}/{name}_of_both.py:net")()
        now = (functional.elu, functional.celu, functional.selu)
        assert tuple(a is b for a, b in zip(now, plain, strict=True)) == seen[name]
        assert torch.get_default_dtype() == torch.float64
    begin(before)
