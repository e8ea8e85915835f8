"""The page on messages: each exists in the package, and each kind of exception that people meet is listed."""

import ast
import builtins
import re
from pathlib import Path

from lossmap.parallel.slurm import TEMPLATE

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reference" / "troubleshooting.md").read_text()
MODULES = [ast.parse(path.read_text()) for path in sorted((ROOT / "lossmap").rglob("*.py"))]
FILLED = "\0"  # what an f-string fills in


def literals(tree):
    """The string literals of a module that are no docstrings."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else FILLED for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value


def messages():
    """The messages in the first column of the tables."""
    tables = PAGE.split("## The command line")[1].split("## Errors in Python")[0]
    for cell in re.findall(r"^\| (`.+?`) \| ", tables, re.MULTILINE):
        yield from re.findall(r"`([^`]+)`", cell)


def test_every_message_exists():
    texts = "\n".join(text for tree in MODULES for text in literals(tree)) + TEMPLATE.read_text()
    quoted = list(messages())
    assert len(quoted) > 50
    for message in quoted:
        parts = [re.escape(part.strip()) for part in message.split("...") if part.strip()]
        assert re.search(r"[^\n]{0,80}?".join(parts), texts), f"no message says {message!r}"


def raised():
    """The names of the exceptions that the package raises, but for those that never leave it."""
    inner = {"Interrupted", "WorkerLost", "PeerFailed", "Estimated", "SystemExit", "Damaged", "_Captured"}
    inner |= {"AttributeError", "NotImplementedError", "StopIteration", "TimeoutError"}  # protocols of the language
    inner |= {"_SeveralPrefixes"}  # a ValueError to all but its module
    classes = {n.name for tree in MODULES for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
    for tree in MODULES:
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func).rpartition(".")[2]
                if (hasattr(builtins, name) or name in classes) and name not in inner:
                    yield name


def test_every_kind_of_exception_is_listed():
    listed = set(re.findall(r"`(\w+)`", PAGE.split("## Errors in Python")[1]))
    assert len(set(raised())) > 10
    assert set(raised()) - listed == set()
