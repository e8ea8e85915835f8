"""The plan of the house, held against the code: which wing imports which, and which library lives where."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lossmap"
ROOMS = sorted(PACKAGE.rglob("*.py"))

# wing -> what it may import of ours; a wing is the first part below lossmap
MAY = {
    "space": {"space"},
    "zoo": {"zoo"},
    "farm": {"farm"},
    "measure": {"measure", "space"},
    "store": {"store", "space.grid"},
    "draw": {"draw", "store", "space.grid"},
    "survey": {"survey", "farm", "store", "space.grid"},
    "options": {"options", "farm.launch"},
    "objects": {"objects", "options", "space", "zoo", "farm", "store"},
}
# library -> the only places that may import it
HOMES = {
    "mpi4py": {"farm/team.py"},
    "h5py": {"store/"},
    "matplotlib": {"draw/"},
    "plotly": {"draw/"},
    "torch": {"space/", "zoo/", "measure/", "commands/", "objects.py", "train.py"},
    "scipy": {"space/", "measure/"},
    "PIL": {"space/"},
    "safetensors": {"space/"},
    "rich": {"commands/"},
    "argparse": {"options.py", "space/pickles.py"},
    "xarray": {"store/"},
}


def imported(room):
    """The modules that a room imports, anywhere in it."""
    for node in ast.walk(ast.parse(room.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place(room)}: a relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place(room):
    return room.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("room", ROOMS, ids=place)
def test_arrows_run_down(room):
    wing = place(room).split("/")[0].removesuffix(".py")
    ours = {m.removeprefix("lossmap.") for m in imported(room) if m.startswith("lossmap.")} - {"namesake"}
    if wing == "commands":
        doors = {p.stem for p in (PACKAGE / "commands").glob("*.py") if "def main(" in p.read_text()}
        for module in ours:
            wing, _, room = module.partition(".")
            assert not (wing == "commands" and room.split(".")[0] in doors), f"a door imports the door {module}"
        return
    if wing not in MAY:
        return
    for module in ours:
        assert any(module == m or module.startswith(m + ".") for m in MAY[wing]), f"{wing} imports {module}"


@pytest.mark.parametrize("room", ROOMS, ids=place)
def test_each_library_has_one_home(room):
    for module in imported(room):
        homes = HOMES.get(module.split(".")[0])
        if homes is not None:
            assert any(place(room).startswith(h) for h in homes), f"{place(room)} imports {module}"


def test_there_are_no_circles():
    graph = {}
    for room in ROOMS:
        name = "lossmap." + place(room).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        tree = ast.parse(room.read_text())
        top = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
        ours = (n.module or "" for n in top if isinstance(n, ast.ImportFrom))
        graph[name] = {module for module in ours if module.startswith("lossmap.")}
    done, path = set(), []

    def visit(name):
        assert name not in path, f"a circle: {' -> '.join([*path, name])}"
        if name in done or name not in graph:
            return
        path.append(name)
        for other in graph[name]:
            visit(other)
        done.add(path.pop())

    for name in graph:
        visit(name)


def test_a_room_opens_by_saying_what_it_is():
    for room in ROOMS:
        assert ast.get_docstring(ast.parse(room.read_text())), f"{place(room)} has no docstring"


LIGHT = ["lossmap", "lossmap.draw.figures", "lossmap.store.surface", "lossmap.options", "lossmap.commands.draw"]


@pytest.mark.parametrize("module", LIGHT)
def test_pictures_and_files_do_not_wake_torch_or_mpi(module):
    code = f"import sys, {module}; assert not {{'torch', 'mpi4py'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_names_are_all_there():
    import lossmap

    for name in lossmap.__all__:
        assert getattr(lossmap, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = lossmap.nothing
    assert set(lossmap.__all__) == set(dir(lossmap))
