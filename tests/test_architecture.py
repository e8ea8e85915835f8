"""The table of packages, held against every import of the code: what may import what, and where each library lives."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# import nothing of ours but the first, and all may import them
LOWEST = "accelerators"
GROUND = {
    LOWEST,
    "attributes",
    "copies",
    "device_errors",
    "download",
    "images",
    "installed",
    "report",
    "interrupt",
    "keywords",
    "memory",
    "module_walks",
    "numerics",
    "process_state",
    "rebound",
    "safe_unpickle",
    "seeding",
    "shortcuts",
    "special_files",
    "sums",
    "trees",
    "values",
    "weak",
    "zoo",
}
# package -> what it may import of ours beside itself and the ground; "cli" may import all
TABLE = {
    "callbacks": {"dynamics", "spectra", "training", "diagnostics", "curvature", "linalg", "geometry", "data", "io"},
    "campaign": {"landscape", "spectra", "health", "dynamics", "parallel", "io", "results", "geometry.grid"},
    "studies": {
        "campaign",
        "dynamics",
        "landscape",
        "topology",
        "training",
        "curvature",
        "linalg",
        "io",
        "parallel",
        "geometry",
        "data",
    },
    "dynamics": {"spectra", "landscape", "diagnostics", "curvature", "linalg", "io", "parallel", "geometry", "data"},
    "health": {"spectra", "diagnostics", "curvature", "linalg", "geometry", "data"},
    "spectra": {"training", "diagnostics", "curvature", "linalg", "geometry", "data"},
    "landscape": {"curvature", "linalg", "parallel", "io", "geometry", "data", "import_by_name", "stable"},
    "diagnostics": {"curvature", "linalg", "geometry", "data", "stable"},
    "training": {"curvature", "linalg", "data", "geometry"},
    "topology": {"io", "geometry.grid"},
    "results": {"io", "geometry.grid"},
    "plotting": {"io", "geometry.grid"},
    "curvature": {"linalg", "data", "geometry", "stable"},
    "curvature.linearize": {"stable"},  # and nothing of curvature above it
    "stable": set(),
    "linalg": set(),
    "io": {"geometry.grid"},
    "parallel": set(),
    "geometry": set(),
    "data": {"geometry", "import_by_name", "stable"},
    "import_by_name": set(),
}
# library -> the only places that may import it
HOMES = {
    "mpi4py": {"parallel.mpi_library"},
    "h5py": {"io"},
    "matplotlib": {"plotting"},
    "torch": {
        "cli", "callbacks", "studies", "dynamics", "health", "spectra", "landscape", "diagnostics", "training",
        "curvature", "linalg",
        "geometry.degenerate", "geometry.directions", "geometry.parameter_vector", "geometry.training_path",
        "geometry.unregistered", "geometry.wrappers", "accelerators", "copies", "data", "zoo", "memory", "module_walks",
        "numerics", "process_state", "safe_unpickle", "seeding", "shortcuts", "stable", "sums", "trees", "results",
    },
    "torch.fx": {"curvature.linearize", "landscape.fold_batchnorm", "landscape.permutation_groups"},
    "numpy": {*TABLE, "cli", "images", "process_state", "report", "safe_unpickle", "seeding", "sums", "values"},
    "scipy": {"curvature", "dynamics", "studies", "landscape", "linalg", "images"},
    "lightning": {"callbacks.with_lightning"},
    "pytorch_lightning": {"callbacks.with_lightning"},
    "PIL": {"images"},
    "safetensors": {"data"},
    "transformers": {"callbacks.with_transformers", "data.huggingface_folder", "data.huggingface_data"},
    "datasets": {"data.huggingface_data"},
    "peft": {"data.huggingface_folder"},
    "rich": {"landscape.progress"},
    "IPython": {"landscape.progress"},
    "argparse": {"cli", "safe_unpickle"},
    "xarray": {"io"},
    "lazy_loader": {""},
    "tomli": {"cli.config_file", "parallel.slurm_site"},  # Python 3.10 has no tomllib
}  # fmt: skip
# the modules that import by a name which is not written out: a command, a model, what a person named, and what is done
# with a result by a package above its own (tables in `values` and `results`)
BY_NAME = {
    "cli.__main__",
    "cli.wrapped_command",
    "zoo",
    "import_by_name",
    "values",
    "results",
    "callbacks.with_lightning",
    "cli.work_of_member",
    "io.xarray_table",
}
LIGHT = [
    "lossmap",
    "lossmap.plotting.figures",
    "lossmap.io.read",
    "lossmap.cli.settings",
    "lossmap.cli.draw",
    "lossmap.cli.campaign_file",
    "lossmap.landscape.run_survey",
    "lossmap.campaign.run",
]


UNKNOWN = "a module whose name is not written out"
STANDARD = {*sys.stdlib_module_names, "tomllib"}  # tomllib: since Python 3.11


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((root / "lossmap").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


@cache
def imports(name: str, path: Path) -> tuple[str, ...]:
    """The names of `read_imports`, read once for all tests."""
    return tuple(read_imports(name, path))


def read_imports(name: str, path: Path) -> Iterator[str]:
    """All that a module imports, in whatever form, anywhere in it, under TYPE_CHECKING too; by full names.

    `from package import thing` names package.thing, which is a module or a thing in the package. An import by a
    function (`import_module`, `__import__`) counts where its name is written out; else it is named `UNKNOWN`.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    importers = {"import_module", "__import__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            importers |= {alias.asname or alias.name for alias in node.names if alias.name in importers}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if called in importers:
                yield written_out(node, package)


def written_out(call: ast.Call, package: str) -> str:
    """The module that a call of `import_module` imports; `UNKNOWN` where its name is not written out."""
    arguments = [*call.args, *(k.value for k in call.keywords if k.arg == "name")]
    if not (arguments and isinstance(arguments[0], ast.Constant)):
        return UNKNOWN
    name = str(arguments[0].value)
    parts, level = package.split("."), len(name) - len(name.lstrip("."))
    if not level:
        return name
    return ".".join([*parts[: len(parts) - level + 1], name.lstrip(".")])


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports."""
    found = modules(root)
    return {
        name: {module_of(target, found) for target in imports(name, path) if target.split(".")[0] == "lossmap"} - {name}
        for name, path in found.items()
    }


def with_packages(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same with the packages that the imported modules lie in: to import `lossmap.a.b` runs `lossmap.a` first."""
    return {
        name: targets | {above for target in targets for above in parents_of(target)} - {name, *parents_of(name)}
        for name, targets in edges.items()
    }


def module_of(target: str, known: Mapping[str, Path]) -> str:
    """The module that `package.thing` names: itself, or the nearest above it that is there."""
    while target not in known and "." in target:
        target = target.rpartition(".")[0]
    return target


def parents_of(name: str) -> list[str]:
    """The packages that a module lies in, without lossmap, which holds nothing but lazy names."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(2, len(parts))]


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
        below = name.removeprefix("lossmap").lstrip(".")
        own = max((row for row in {*TABLE, *GROUND, package} if within(below, {row})), key=len, default=package)
        allowed = {own, LOWEST} if package in GROUND else {own} | GROUND | TABLE.get(own, set())
        faults += [f"{name} imports {t}" for t in targets if not within(t.removeprefix("lossmap").lstrip("."), allowed)]
    return faults


def nameless(root: Path = ROOT) -> list[str]:
    """The modules that import by a name which is not written out, so that no table can hold it."""
    return [
        f"{name} imports {UNKNOWN}"
        for name, path in modules(root).items()
        if UNKNOWN in imports(name, path) and not within(name.removeprefix("lossmap").lstrip("."), BY_NAME)
    ]


def cycles(root: Path = ROOT) -> list[str]:
    """The circles of imports between modules."""
    edges, done, path, found = with_packages(graph(root)), set(), [], []

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
    faults = []
    for name, path in modules(root).items():
        below = name.removeprefix("lossmap").lstrip(".")
        for target in imports(name, path):
            library = max((known for known in HOMES if f"{target}.".startswith(f"{known}.")), key=len, default="")
            if not library and target.partition(".")[0] in {"lossmap", UNKNOWN, *STANDARD}:
                continue
            if not (library and (within(below, HOMES[library]) or below in HOMES[library])):
                faults.append(f"{name} imports {target}")
    return faults


def test_every_package_stands_in_the_table():
    packages = {row.partition(".")[0] for row in TABLE}
    assert {package_of(name) for name in modules()} == {*packages, *GROUND, "cli", "__main__", ""}


def test_the_table_itself_runs_downwards():
    rows = {row: {target.partition(".")[0] for target in targets} for row, targets in TABLE.items() if "." not in row}
    assert set(TopologicalSorter(rows).static_order()) >= set(rows)  # raises CycleError where it does not


def test_imports_by_name_stand_where_they_must():
    assert nameless() == []


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
    "an import under another name": ("linalg/a.py", "import lossmap.data.problem as p\n", upward),
    "an import of everything": ("linalg/a.py", "from lossmap.data.problem import *\n", upward),
    "an import of a package's everything": ("linalg/a.py", "from lossmap.data import *\n", upward),
    "an import of the public API": ("linalg/a.py", "from lossmap import survey\n", upward),
    "an import that a package hands on": ("linalg/__init__.py", "from lossmap.data.problem import x\n", upward),
    "an import from a subpackage": ("curvature/linearize/a.py", "from lossmap.linalg import a\n", upward),
    "an import in a package below a package": ("linalg/b/c/a.py", "from lossmap.data import problem\n", upward),
    "an import by a function": (
        "io/a.py",
        "from importlib import import_module\nimport_module('lossmap.cli.draw')\n",
        upward,
    ),
    "an import by a function under another name": (
        "io/a.py",
        "from importlib import import_module as load\nload(name='lossmap.cli.draw')\n",
        upward,
    ),
    "a relative import by a function": (
        "linalg/a.py",
        "import importlib\ndef f():\n    importlib.import_module('..data.problem', __package__)\n",
        upward,
    ),
    "an import by a name that is made": ("io/a.py", "import importlib\nimportlib.import_module(f'{x}.y')\n", nameless),
    "a library away from home": ("geometry/a.py", "def f():\n    import h5py\n", strangers),
    "a part of a library away from home": ("linalg/a.py", "from torch.fx import Node\n", strangers),
    "a part of a library by its name in the library": ("linalg/a.py", "from torch import fx\n", strangers),
    "a library by a function": ("io/a.py", "import importlib\nimportlib.import_module('torch.nn')\n", strangers),
    "a library of Python's own away from home": ("data/a.py", "import argparse\n", strangers),
    "a library without a home": ("data/a.py", "import pandas\n", strangers),
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


def test_a_planted_cycle_by_way_of_what_packages_hand_on_is_found(tmp_path):
    first = {"linalg/__init__.py": "from lossmap.linalg.a import x\n", "linalg/a.py": "import lossmap.curvature.c\n"}
    second = {"curvature/__init__.py": "from .b import y\n", "curvature/b.py": "import lossmap.linalg.d\ny = 1\n"}
    plant(tmp_path, {**first, **second, "curvature/c.py": "", "linalg/d.py": ""})
    (circle,) = cycles(tmp_path)
    assert {"lossmap.linalg", "lossmap.linalg.a", "lossmap.curvature", "lossmap.curvature.b"} == set(
        circle.split(" -> ")
    )


def test_a_planted_package_that_is_not_in_the_table_may_import_nothing(tmp_path):
    plant(tmp_path, {"extra/a.py": "import lossmap.linalg\nimport torch\n", "linalg/a.py": ""})
    assert upward(tmp_path) == ["lossmap.extra.a imports lossmap.linalg"]
    assert strangers(tmp_path) == ["lossmap.extra.a imports torch"]


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
def test_what_needs_no_network_starts_without_torch_and_mpi(module):
    """A rank of a survey starts in .4 s of a core; PyTorch and SciPy's distributions take 2 s more."""
    code = f"import sys, {module}; assert not {{'torch', 'mpi4py', 'scipy.stats'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_names_are_all_there():
    import lossmap

    for name in lossmap.__all__:
        assert getattr(lossmap, name) is not None
    with pytest.raises(AttributeError, match=r"[Nn]o lossmap attribute nothing"):
        _ = lossmap.nothing
    assert set(lossmap.__all__) == set(dir(lossmap))
