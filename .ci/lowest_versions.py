"""Prints constraints that pin every dependency of pyproject.toml to the lowest version it promises.

    python .ci/lowest_versions.py [EXTRA ...] > constraints-oldest.txt

Extras: all that are named, besides the dependencies themselves. Needs Python 3.11 or newer for its TOML reader.
"""

import re
import sys
from pathlib import Path

import tomllib

# What those versions need themselves: matplotlib 3.8 calls names that pyparsing deprecates from 3.3 on, and tests that
# turn warnings into errors would meet them.
BESIDE = {"pyparsing": "<3.3"}
REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*>=\s*([0-9.]+)")


def lowest(project: dict, extras: list[str]) -> dict[str, str]:
    """{name: version}; of a name that stands in several lists the highest of its lower bounds."""
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    bounds: dict[str, str] = {}
    for line in lines:
        found = REQUIREMENT.match(line)
        if found:
            name, version = found[1].lower().replace("_", "-"), found[2]
            bounds[name] = max(bounds.get(name, "0"), version, key=lambda v: [int(part) for part in v.split(".")])
    return bounds


if __name__ == "__main__":
    table = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    for name, version in sorted(lowest(table, sys.argv[1:]).items()):
        print(f"{name}=={version}")
    for name, bound in BESIDE.items():
        print(f"{name}{bound}")
