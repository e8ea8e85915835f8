"""Pages that are made when the site is built: the command reference, from the settings, and the notebooks.

MkDocs calls `on_config` and `on_files`. Nothing made here is stored in the repository, so that no page can be out of
date. The command reference is read off the same dataclasses as the flags and their help.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from lossmap.cli import COMMANDS
from lossmap.cli.command_line import RETIRED, Command, group_titles
from lossmap.cli.settings import plain_type, spellings

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = {"surface.md": "surface.ipynb", "spectrum.md": "spectrum.ipynb", "finetuning.md": "finetuning.ipynb"}
INTRODUCTION = """# Commands

`lossmap COMMAND --help` prints what these pages say. Flags are spelled with hyphens, and underscores are accepted.
Every setting can also stand in a TOML file (`--config run.toml`), by its name with underscores; flags win over it.
`python -m lossmap` is the same as `lossmap`. Under `mpirun` or `srun` the ranks share the work.

| command | what it does |
|---|---|
"""
CODES = """
## Exit codes

| code | meaning |
|---|---|
| 0 | complete |
| 2 | usage error: one sentence on stderr, nothing written or changed |
| 3 | complete, but some points failed; each is listed with its reason |
| 75 | interrupted; run the same command again, or `lossmap resume FILE`, to resume |
| 130, 143 | INT or TERM came a second time |

`mpirun` and `srun` do not pass these codes on reliably: scripts ask `lossmap status FILE`, whose exit code is 0, 3 or
75 by what the file holds.

## Flags of the original tool

These have no purpose any more. They are accepted, and noted in one line where there is something to say:
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put a page for each command into the navigation, and pages of `docs/` that it does not name among the topics."""
    named = re.findall(r"[\w/-]+\.md", json.dumps(config.nav))
    others = sorted({path.name for path in Path(config.docs_dir).glob("*.md")} - set(named))
    for section in config.nav or []:
        if "Topics" in section:
            section["Topics"] += others
    pages = ["commands/index.md", *({name: f"commands/{name}.md"} for name in COMMANDS)]
    for section in config.nav or []:
        for entry in section.get("Reference", []):
            if "Commands" in entry:
                entry["Commands"] = pages
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the pictures of the notebooks."""
    for uri, content in generated():
        files.append(File.generated(config, uri, content=content))
    return files


def generated() -> Iterator[tuple[str, str | bytes]]:
    """The paths of all generated files, below docs/, and their contents."""
    yield "commands/index.md", overview()
    for name in COMMANDS:
        yield f"commands/{name}.md", command_page(name)
    for page, source in NOTEBOOKS.items():
        yield from notebook_page(page, json.loads((ROOT / "examples" / source).read_text()))


def overview() -> str:
    """The page that lists the commands, the exit codes and the retired flags."""
    rows = "\n".join(f"| [`lossmap {name}`]({name}.md) | {summary} |" for name, (*_, summary) in COMMANDS.items())
    retired = "\n".join(f"- `{flag}`: {note or 'the same as `--device cuda`'}" for flag, (_, note) in RETIRED.items())
    return INTRODUCTION + rows + "\n" + CODES + "\n" + retired + "\n"


def command_page(name: str) -> str:
    """The page of one command."""
    module_name, function, summary = COMMANDS[name]
    module = import_module(module_name)
    main = getattr(module, function)
    command = command_object(module, name)
    parts = [f"# lossmap {name}", f"{summary[0].upper()}{summary[1:]}."]
    if command is None:  # `resume`, whose flags are those of the command that it continues
        about, examples = module.__doc__ or "", module.EXAMPLES
        parts += ["Its flags are those of the command that made the result, and its own:"]
        parts += [f"```text\n{module.OWN_FLAGS.strip()}\n```"]
    else:
        about, examples = command.about, command.examples
    parts += [about.strip(), "## Examples", "```sh\n" + "\n".join(examples) + "\n```"]
    if command is not None:
        parts += [group_table(group, command.without) for group in command.groups]
        parts += ["## Settings from a file", "`--config TOML`: TOML file to read settings from; flags win over it."]
    parts += ["## Exit codes", exit_codes(main.__doc__ or "")]
    return "\n\n".join(parts) + "\n"


def command_object(module: Any, name: str) -> Command | None:
    """The `Command` of a subcommand in its module; None where it has none."""
    found = [value for value in vars(module).values() if isinstance(value, Command) and value.name == name]
    return found[0] if found else None


def group_table(group: type, without: frozenset[str]) -> str:
    """The flags of a group of settings as a table under its title."""
    title, text = group_titles(group)
    hints = get_type_hints(group)
    rows = [flag_row(f, hints[f.name]) for f in fields(group) if f.name not in without]
    explanation = [f"```text\n{text}\n```\n"] if text else []
    return "\n".join([f"## {title}\n", *explanation, "| flag | default | meaning |", "|---|---|---|", *rows])


def flag_row(f: Field[Any], hint: Any) -> str:
    """One flag: how it is spelled, its default, its meaning."""
    meta = f.metadata
    names = [f.name.upper()] if meta["positional"] else spellings(f)
    value = meta["metavar"] or ""
    if meta["choices"]:
        value = "{" + ",".join(meta["choices"]) + "}"
    if meta["positional"]:
        names, value = [value or names[0]], ""
    if plain_type(hint) is bool:
        value = ""
    flags = ", ".join(f"`{name}`{{.flag}}" for name in names)
    if value:
        flags += f" `{value}`"
    if f.default is True:
        flags += f", `--no-{f.name.replace('_', '-')}`{{.flag}}"
    return f"| {escaped(flags)} | {default_text(f)} | {escaped(meta['help'])} |"


def default_text(f: Field[Any]) -> str:
    """The default of a setting; nothing where none is set (the meaning then says what is taken)."""
    if f.default is MISSING:
        return "required"
    if f.default in (None, ()):
        return ""
    if isinstance(f.default, bool):
        return "on" if f.default else "off"
    if isinstance(f.default, tuple):
        return f"`{' '.join(map(str, f.default))}`"
    return f"`{f.default}`"


def escaped(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|")


def exit_codes(doc: str) -> str:
    """The codes of a command, from the first line of its main function's docstring."""
    line = " ".join(doc.strip().split("\n\n")[0].split())
    codes = re.findall(r"(\d+) ([^;:]+?)(?=[,;] \d+ |[;.]?$)", line.split(": ", 1)[-1])
    if ": 0 " not in line:
        return line
    rows = "\n".join(f"| {code} | {meaning.strip()} |" for code, meaning in codes)
    return f"| code | meaning |\n|---|---|\n{rows}"


def notebook_page(page: str, notebook: dict[str, Any]) -> Iterator[tuple[str, str | bytes]]:
    """A notebook as a page with its stored outputs, and its pictures beside it."""
    parts = []
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for index, output in enumerate(cell["outputs"]):
            text, picture = output_text(output), output.get("data", {}).get("image/png")
            if picture:
                name = f"{Path(page).stem}-{number}-{index}.png"
                yield f"notebooks/{name}", base64.b64decode("".join(picture))
                parts.append(f"![output of the cell above]({name})")
            elif text:
                parts.append(f"```text\n{text}\n```")
    source = f"*This page shows the notebook `examples/{NOTEBOOKS[page]}`, with the outputs stored in it.*"
    yield f"notebooks/{page}", "\n\n".join([*parts[:1], source, *parts[1:]]) + "\n"


def output_text(output: dict[str, Any]) -> str:
    """What an output of a cell prints."""
    text = output.get("text") or output.get("data", {}).get("text/plain") or ""
    return "".join(text).rstrip()
