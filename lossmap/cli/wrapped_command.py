"""The command behind the two dashes of `estimate` and `submit`: its settings, and the file that it will write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from lossmap.cli import COMMANDS
from lossmap.cli.__main__ import unknown_command
from lossmap.cli.entry_point import command_words
from lossmap.cli.output_path import result_path
from lossmap.cli.settings import Settings, UsageError

# command -> the measure of its result; a survey of a grid, and what is dispatched task by task over no grid
SURVEYS = {"surface": "loss", "eigenmap": "eigen"}
TASKS = {"spectrum": "spectrum", "dynamics": "along", "sharpness": "sharpness", "connect": "loss"}


@dataclass(frozen=True)
class WrappedCommand:
    """A command to be run.

    words     the command and its flags; those of a survey name its result
    result    the file that it will write, from which it can be resumed; None for a command without one
    measure   what of the result it measures; None: all of it
    settings  of a command with such a file; None for others
    about     what a command without such a file writes or reads, by which its job is named
    """

    words: tuple[str, ...]
    result: Path | None = None
    measure: str | None = None
    settings: Settings | None = None
    about: Path | None = None

    @property
    def command(self) -> str:
        """The first of the words."""
        return self.words[0]

    @property
    def overwrites(self) -> bool:
        """Whether it would start anew each time it is run."""
        return self.settings is not None and bool(self.settings.run.overwrite)


def module_of(command: str) -> ModuleType:
    """The module of a subcommand."""
    return import_module(COMMANDS[command][0])


def split_at_dashes(argv: Sequence[str] | None, example: str) -> tuple[list[str], list[str]]:
    """The words before the two dashes, and those behind them. Raises UsageError, with an example, where none are."""
    words = command_words(argv)
    if "--" not in words:
        if {"-h", "--help"} & set(words):
            return words, []
        raise UsageError(f"the command to run must stand behind two dashes: {example}")
    at = words.index("--")
    behind = words[at + 1 :]
    if behind and behind[0] == "lossmap":
        behind = behind[1:]
    if not behind:
        raise UsageError(f"no command stands behind the two dashes; for example: {example}")
    return words[:at], behind


def read_settings(words: Sequence[str]) -> Settings:
    """The settings of a command, checked as it will check them itself. Raises UsageError."""
    module = module_of(words[0])
    parse = module.COMMAND.parse
    if words[0] == "eigenmap":  # whose defaults may come from the file of --like
        parse = module.read_settings
    settings: Settings = parse(list(words[1:]))
    return settings


def wrapped_command(words: Sequence[str]) -> WrappedCommand:
    """The command of these words. Raises UsageError with one sentence."""
    command = words[0]
    if command == "resume":
        files = [word for word in words[1:] if not word.startswith("-")]
        if not files:
            raise UsageError("resume needs the result to go on with: resume FILE")
        return WrappedCommand(tuple(words), Path(files[0]))
    if command not in COMMANDS:
        raise UsageError(unknown_command(command))
    if command == "health":
        return WrappedCommand(tuple(words), about=_about_health(read_settings(words)))
    if command not in {**SURVEYS, **TASKS}:
        return WrappedCommand(tuple(words), about=Path(command))
    settings = read_settings(words)
    if settings.run.shard:
        raise UsageError("--shard is set by submit itself; use --array N")
    result: Path = result_path(settings) if command in SURVEYS else module_of(command).result_path(settings)
    if not settings.run.surf_file:
        words = [*words, "--surf-file", str(result)]
    measure = SURVEYS.get(command) or TASKS[command]
    if command == "spectrum" and settings.spectrum.along:  # `dynamics`, as version 0.1 called it
        measure = TASKS["dynamics"]
    return WrappedCommand(tuple(words), result, measure, settings)


def _about_health(settings: Settings) -> Path:
    """What a report of health is named after: its own file, else the checkpoint or the model."""
    options = settings.health
    written = options.surf_file or (options.json if options.json != "-" else None) or options.figure
    if written:
        return Path(written)
    subject = settings.data.problem or settings.model.model_file or settings.model.model
    return Path(re.sub(r"[^\w.+-]+", "-", Path(subject).name).strip("-") + "_health")
