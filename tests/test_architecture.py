"""The table of packages, held against every import of the code: what may import what, and where each library lives."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

GROUND = {"report", "interrupt", "memory", "seeding", "sums", "zoo"}  # import nothing of ours, and all may import them
# package -> what it may import of ours beside itself and the ground; "cli" may import all
TABLE = {
    "dynamics": {"spectra", "landscape", "diagnostics", "curvature", "linalg", "io", "parallel", "geometry", "data"},
    "health": {"spectra", "diagnostics", "curvature", "linalg", "geometry", "data"},
    "spectra": {"training", "diagnostics", "curvature", "linalg", "geometry", "data"},
    "landscape": {"curvature", "linalg", "parallel", "io", "geometry", "data"},
    "diagnostics": {"curvature", "linalg", "geometry", "data"},
    "training": {"curvature", "linalg", "data", "geometry"},
    "plotting": {"io", "geometry.grid"},
    "curvature": {"linalg", "data", "geometry"},
    "linalg": set(),
    "io": {"geometry.grid"},
    "parallel": set(),
    "geometry": set(),
    "data": {"geometry"},
}
# library -> the only places that may import it
HOMES = {
    "mpi4py": {"parallel.mpi_library"},
    "h5py": {"io"},
    "matplotlib": {"plotting"},
    "plotly": {"plotting"},
    "torch": {
        "cli", "dynamics", "health", "spectra", "landscape", "diagnostics", "training", "curvature", "linalg",
        "geometry", "data", "zoo", "memory", "seeding", "sums",
    },
    "torch.fx": {"curvature"},
    "scipy": {"curvature", "dynamics", "landscape", "linalg", "data"},
    "PIL": {"data"},
    "safetensors": {"data"},
    "rich": {"cli"},
    "argparse": {"cli", "data.safe_unpickle"},
    "xarray": {"io"},
    "lazy_loader": {""},
}  # fmt: skip
LIGHT = ["lossmap", "lossmap.plotting.figures", "lossmap.io.read", "lossmap.cli.settings", "lossmap.cli.draw"]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((root / "lossmap").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, known: set[str]) -> Iterator[str]:
    """All that a module imports, in whatever form, anywhere in it, under TYPE_CHECKING too; by full names.

    `from package import thing` names the module package.thing where there is one, else the package.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in known or base != base.lower() else base
        elif isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports; importing one wakes the packages above it, which hold nothing."""
    found = modules(root)
    return {
        name: {i for i in imports(name, path, set(found)) if i.split(".")[0] == "lossmap"} - {name}
        for name, path in found.items()
    }


def package_of(name: str) -> str:
    """The first part below lossmap; empty for lossmap itself."""
    return name.split(".")[1] if "." in name else ""


def within(name: str, places: set[str]) -> bool:
    """Whether a module, named below lossmap, lies in one of the places."""
    return any(name == place or name.startswith(place + ".") for place in places)


def upward(root: Path = ROOT) -> list[str]:
    """The imports that the table does not allow."""
    faults = []
    for name, targets in graph(root).items():
        package = package_of(name)
        if package in ("cli", "__main__"):
            continue
        allowed = {package} if package in GROUND else {package} | GROUND | TABLE.get(package, set())
        for target in targets:
            below = target.removeprefix("lossmap").lstrip(".")
            if not within(below, allowed):
                faults.append(f"{name} imports {target}")
    return faults


def cycles(root: Path = ROOT) -> list[str]:
    """The circles of imports between modules."""
    edges, done, path, found = graph(root), set(), [], []

    def visit(name: str) -> None:
        if name in path:
            found.append(" -> ".join([*path[path.index(name) :], name]))
            return
        if name in done or name not in edges:
            return
        path.append(name)
        for other in sorted(edges[name]):
            visit(other)
        done.add(path.pop())

    for name in edges:
        visit(name)
    return found


def strangers(root: Path = ROOT) -> list[str]:
    """The imports of libraries outside their homes."""
    known, faults = set(modules(root)), []
    for name, path in modules(root).items():
        below = name.removeprefix("lossmap").lstrip(".")
        for target in imports(name, path, known):
            for library, homes in HOMES.items():
                if (target == library or target.startswith(library + ".")) and not (
                    within(below, homes) or (below == "" and "" in homes)
                ):
                    faults.append(f"{name} imports {target}")
    return faults


def test_every_package_stands_in_the_table():
    assert {package_of(name) for name in modules()} == {*TABLE, *GROUND, "cli", "__main__", ""}


def test_no_import_runs_upwards():
    assert upward() == []


def test_there_is_no_cycle():
    assert cycles() == []


def test_each_library_has_one_home():
    assert strangers() == []


PLANTED = {
    "a plain import upwards": ("linalg/a.py", "import lossmap.spectra.spectrum\n", upward),
    "a name out of a package above": ("geometry/a.py", "from lossmap.data import problem\n", upward),
    "an import inside a function": ("io/a.py", "def f():\n    from lossmap.plotting.figures import draw\n", upward),
    "an import for typing alone": (
        "parallel/a.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lossmap.io.surface import Surface\n",
        upward,
    ),
    "a relative import upwards": ("linalg/a.py", "from ..data import problem\n", upward),
    "an import by a function": (
        "io/a.py",
        "from importlib import import_module\nimport_module('lossmap.cli.draw')\n",
        upward,
    ),
    "a library away from home": ("geometry/a.py", "def f():\n    import h5py\n", strangers),
    "a part of a library away from home": ("linalg/a.py", "from torch.fx import Node\n", strangers),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(tmp_path, fault):
    place, text, check = PLANTED[fault]
    plant(tmp_path, {place: text})
    assert len(check(tmp_path)) == 1


@pytest.mark.parametrize(
    "second",
    [
        "from lossmap.linalg import a\n",
        "from lossmap.linalg.a import x\n",
        "from . import a\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lossmap.linalg.a import x\n",
        "def f():\n    import lossmap.linalg.a\n",
    ],
)
def test_a_planted_cycle_is_found(tmp_path, second):
    plant(tmp_path, {"linalg/a.py": "from lossmap.linalg import b\nx = 1\n", "linalg/b.py": second})
    assert cycles(tmp_path) == ["lossmap.linalg.a -> lossmap.linalg.b -> lossmap.linalg.a"]


def plant(root: Path, files: dict[str, str]) -> None:
    """A small package with the modules that the planted faults name, and these files."""
    stand = ["spectra/spectrum.py", "data/problem.py", "plotting/figures.py", "io/surface.py", "cli/draw.py"]
    for place, text in {**dict.fromkeys(stand, ""), **files}.items():
        path = root / "lossmap" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    (root / "lossmap" / "__init__.py").touch()


def test_no_package_holds_more_than_15_percent_of_the_lines():
    lines: dict[str, int] = {}
    for name, path in modules().items():
        lines[package_of(name)] = lines.get(package_of(name), 0) + len(path.read_text().splitlines())
    largest = max(lines, key=lambda package: lines[package])
    assert lines[largest] <= 0.15 * sum(lines.values()), f"{largest} holds {lines[largest]} lines"


def test_no_child_of_the_package_bears_the_name_of_a_public_function():
    import lossmap

    children = {path.stem for path in (ROOT / "lossmap").iterdir() if not path.name.startswith("_")}
    assert not children & set(lossmap.__all__)


def test_a_module_opens_by_saying_what_it_is():
    for name, path in modules().items():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{name} has no docstring"


@pytest.mark.parametrize("module", LIGHT)
def test_pictures_and_files_do_not_import_torch_or_mpi(module):
    code = f"import sys, {module}; assert not {{'torch', 'mpi4py'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_names_are_all_there():
    import lossmap

    for name in lossmap.__all__:
        assert getattr(lossmap, name) is not None
    with pytest.raises(AttributeError, match=r"[Nn]o lossmap attribute nothing"):
        _ = lossmap.nothing
    assert set(lossmap.__all__) == set(dir(lossmap))
