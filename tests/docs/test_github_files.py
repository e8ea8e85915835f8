"""The files of a public project are valid by their published schemas, and claim no version that is excluded."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCHEMAS = {
    "vendor.github-workflows": sorted(GITHUB.glob("workflows/*.yml")),
    "vendor.github-issue-forms": sorted(p for p in GITHUB.glob("ISSUE_TEMPLATE/*.yml") if p.name != "config.yml"),
    "vendor.github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "vendor.dependabot": [GITHUB / "dependabot.yml"],
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}
HAS_CHECKER = importlib.util.find_spec("check_jsonschema") is not None


def load(path):
    return pytest.importorskip("yaml").safe_load(path.read_text())


def checked(schema, paths):
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, paths)]
    return subprocess.run(words, capture_output=True, text=True)


@pytest.mark.skipif(not HAS_CHECKER, reason="check-jsonschema is not installed")
@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_files_are_valid_by_their_schema(schema):
    assert SCHEMAS[schema]
    done = checked(schema, SCHEMAS[schema])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not HAS_CHECKER, reason="check-jsonschema is not installed")
def test_the_check_finds_a_fault(tmp_path):
    text = (GITHUB / "workflows" / "tests.yml").read_text()
    (tmp_path / "tests.yml").write_text(text.replace("runs-on:", "runs-off:"))
    assert checked("vendor.github-workflows", [tmp_path / "tests.yml"]).returncode == 1


def version(text):
    return tuple(int(part) for part in text.split("."))


def matrix():
    return load(GITHUB / "workflows" / "tests.yml")["jobs"]["tests"]["strategy"]["matrix"]


def test_the_workflow_runs_the_pythons_that_the_package_names():
    oldest = version(PROJECT["requires-python"].removeprefix(">="))
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert matrix()["python"] == named
    assert version(named[0]) == oldest and all(version(python) >= oldest for python in named)


def test_the_workflow_runs_the_oldest_torch_of_the_bounds_and_the_newest():
    bound = next(d for d in PROJECT["dependencies"] if re.match(r"torch\b", d)).removeprefix("torch>=")
    assert matrix()["torch"] == [f"torch=={bound}.*", "torch"]


def test_the_workflows_install_extras_that_there_are():
    text = "\n".join(path.read_text() for path in GITHUB.glob("workflows/*.yml"))
    extras = {name for group in re.findall(r"\.\[([\w,]+)\]", text) for name in group.split(",")}
    assert extras and extras <= set(PROJECT["optional-dependencies"])
    targets = set(re.findall(r"run: make (\w+)", text))
    assert targets and targets <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_pre_commit_runs_what_make_check_runs():
    hooks = [hook for repo in load(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {hook["id"] for hook in hooks} == {"ruff", "ruff-format", "mypy"}
    for hook in hooks:
        assert hook["language"] == "system" and hook["name"]
        assert (ROOT / hook["entry"].split()[0]).name in ("ruff", "mypy")
    recipe = (ROOT / "Makefile").read_text().split("\ncheck:")[1].split("\n\n")[0]
    assert "/ruff check" in recipe and "/mypy" in recipe


def test_the_version_is_the_same_everywhere():
    import lossmap

    assert load(ROOT / "CITATION.cff")["version"] == lossmap.__version__
    newest = re.search(r"^## \[?(\d[\d.]*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == lossmap.__version__
