"""A campaign's TOML file: which settings, of which checkpoints, seeds and tables, are measured by which commands.

    folder = "sweep"                              of the results; by default named after the file
    labels = ["lr"]                               columns of the table that are carried along, and are no settings

    [settings]                                    of every member
    model = "mlp"

    [over]                                        every combination of these
    model_file = {glob = "runs/*/step_*.pt"}      or a list of files
    seed = [0, 1]

    [table]                                       the rows of a CSV file, whose columns are settings or labels
    file = "nets.csv"

    [surface]                                     what is measured: settings of `lossmap surface`
    x = "-1:1:11"
    [[spectrum]]                                  several times, and over settings of its own
    over = {samples = [256, 1024]}

Later ones win: settings, table, over, those of the measure. Paths are relative to the file's folder. No torch.
"""

from __future__ import annotations

import csv
import difflib
import glob
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lossmap.campaign.digests import DigestCache
from lossmap.campaign.member import Member, member_digest
from lossmap.cli.campaign_inputs import LastInputs, identity_of
from lossmap.cli.config_file import toml_text_tree, toml_tree
from lossmap.cli.measure_settings import GROUPS
from lossmap.cli.settings import UsageError, convert, former_names, nearest_names
from lossmap.cli.work_of_member import CommandWork
from lossmap.special_files import SPECIAL, is_special

FUTURE = {"dynamics"}  # measures of the field that a campaign cannot run, refused by name
PARTS = {"folder", "labels", "settings", "over", "table"}
# what the campaign itself decides for its members
DECIDED = {
    "surf_file", "overwrite", "dry_run", "shard", "team", "rank_0", "stop_after", "retry_failed", "point_timeout",
    "show", "like", "along", "json", "figure", "fail_on_serious",
}  # fmt: skip
# what changes how a member is computed, but not what: no part of its digest
EXECUTION = {
    "device", "threads", "ranks_per_gpu", "batch_size", "probe", "download", "data_path", "unsafe_load", "yes",
    "plot", "page", "vtk", "log", "linear", "loss_max", "vmax", "vmin", "vlevel",
}  # fmt: skip
MAX_MEMBERS = 1_000_000  # of one campaign, at some 2 kB of memory each
Values = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """One `[command]` of the file: its settings, those over which it goes, and the names of those in which it differs
    from other measurements by the same command, which stand in its members' names.
    """

    command: str
    values: Values
    over: Mapping[str, Sequence[Any]]
    distinct: tuple[str, ...] = ()


@dataclass(frozen=True)
class CampaignFile:
    """What a campaign's file says, checked; `members` makes its members.

    path      of the file
    folder    of the results
    measures  what is measured
    """

    path: Path
    folder: Path
    labels: tuple[str, ...]
    settings: Values
    over: Mapping[str, Any]
    table: Path | None
    measures: tuple[Measurement, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str], text: str | None = None) -> CampaignFile:
        """Read and check the file; of one that is not yet written, its text. Raises UsageError with one sentence."""
        file = Path(path).absolute()
        tree = toml_tree(file, "the campaign") if text is None else toml_text_tree(text, file, "the campaign")
        unknown = [key for key in tree if key not in PARTS and key not in GROUPS]
        if unknown:
            raise UsageError(_unknown_part(file.name, unknown[0]))
        parts = {name: _table(file.name, name, tree.get(name, {})) for name in ("settings", "over", "table")}
        measures = tuple(m for name in GROUPS if name in tree for m in _measurements(file.name, name, tree[name]))
        if not measures:
            raise UsageError(f"{file.name} names no measure; add one of [{'], ['.join(GROUPS)}]")
        table = parts["table"].get("file")
        if set(parts["table"]) - {"file"} or (parts["table"] and not isinstance(table, str)):
            raise UsageError(f'{file.name}: [table] must be one line, such as file = "nets.csv"')
        labels = tree.get("labels", [])
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise UsageError(f'{file.name}: labels must be a list of columns, such as ["lr"]; got {labels!r}')
        folder = tree.get("folder", file.stem)
        return cls(
            file,
            file.parent / str(folder),
            tuple(labels),
            _present_names(parts["settings"]),
            _present_names(parts["over"]),
            None if table is None else file.parent / table,
            measures,
        )

    def members(
        self, digests: DigestCache | None = None, inputs: LastInputs | None = None, missing: list[str] | None = None
    ) -> list[Member]:
        """Every member: rows of the table, combinations of `over`, measures and theirs, in this order.

        digests  a cache of the digests of files
        inputs   keeps what counted of each file that settings name, for the time when it is gone
        missing  takes a sentence for each member of which a file is gone; such a member is as `inputs` know it

        Raises UsageError with one sentence for what no command knows and, without `missing`, for files that are gone.
        """
        make = _MemberMaker(self, digests or DigestCache(), inputs or LastInputs(), missing)
        rows = [*self._rows()]
        lists = [_lists(self.over, self.path), *(_lists(m.over, self.path) for m in self.measures)]
        common, *owns = (math.prod(map(len, values)) for values in lists)
        if len(rows) * common * sum(owns) > MAX_MEMBERS:
            raise UsageError(
                f"{self.path.name} names {len(rows) * common * sum(owns):,} members; one campaign takes {MAX_MEMBERS:,}"
            )
        combinations = [*_combinations(self.over, self.path)]
        measured = [(m, [*_combinations(m.over, self.path)]) for m in self.measures]
        known = {f.name for m in self.measures for f in _fields_of(m.command).values()}
        for name in (*self.settings, *self.over, *(rows[0][0] if rows else ())):
            if name not in known:
                raise UsageError(f"{self.path.name}: {_unknown_setting(name, known)}")
        return [
            make(measurement, {**row, **combination}, own, labels)
            for row, labels in rows
            for combination in combinations
            for measurement, owns in measured
            for own in owns
        ]

    def signature(self) -> Any:
        """What changes whenever the file, its table, or the files that fit its patterns do; cheap."""
        paths = [self.path, *([] if self.table is None else [self.table])]
        stamps = [(path.stat().st_mtime_ns, path.stat().st_size) for path in paths]
        overs = [self.over, *(measure.over for measure in self.measures)]
        return stamps, [list(_combinations(over, self.path)) for over in overs]

    def _rows(self) -> Iterator[tuple[Values, Values]]:
        """The rows of the table: settings and labels of each; one empty row without a table."""
        if self.table is None:
            yield {}, {}
            return
        if is_special(self.table):
            raise UsageError(f"the table {self.table} {SPECIAL}")
        try:
            with open(self.table, newline="", encoding="utf-8-sig") as file:  # with the mark that Excel writes first
                reader = csv.DictReader(file, strict=True)  # a quote without its end would swallow rows
                rows = list(reader)
        except OSError as error:
            raise UsageError(f"the table {self.table}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise UsageError(f"the table {self.table} must be text in UTF-8: {error}") from None
        except csv.Error as error:
            raise UsageError(
                f"the table {self.table} cannot be read near line {reader.line_num + 1}: {error}"
            ) from None
        if not rows:
            raise UsageError(f"the table {self.table} holds no row")
        columns = [name.strip() for name in reader.fieldnames or ()]
        if len(set(columns)) < len(columns):
            twice = next(name for name in columns if columns.count(name) > 1)
            raise UsageError(f"the table {self.table} has the column {twice!r} twice")
        for number, row in enumerate(rows, 2):
            if None in row or None in row.values():
                raise UsageError(f"the table {self.table} has another number of cells in line {number} than columns")
            cells = {name.strip(): value.strip() for name, value in row.items() if value.strip()}
            values = {name: value for name, value in cells.items() if name not in self.labels}
            yield _present_names(values), {name: _number(v) for name, v in cells.items() if name in self.labels}


def campaign_members(path: str | os.PathLike[str]) -> list[Member]:
    r"""The members of a campaign's TOML file, as `lossmap campaign FILE` computes them.

    Each pickles, so that any scheduler can compute it: `executor.submit(lossmap.run_member, member, "results")`.

    Args:
        path: of the TOML file.

    Returns:
        The members in their order. Those with equal digests are one.

    Raises:
        ValueError: with one sentence, where the file is not there, is no TOML, names an unknown setting or measure, or
            a file that is not there.

    Example:
        >>> import pathlib, tempfile, lossmap
        >>> file = pathlib.Path(tempfile.mkdtemp(), "sweep.toml")
        >>> _ = file.write_text('[settings]\nmodel = "mlp"\n[over]\nseed = [0, 1]\n[surface]\nx = "-1:1:5"\n')
        >>> [member.name for member in lossmap.campaign_members(file)]
        ['surface: seed 0', 'surface: seed 1']

    """
    return CampaignFile.read(path).members()


class _MemberMaker:
    """Makes members, and keeps what many of them share: converted values and digests of files."""

    def __init__(self, file: CampaignFile, digests: DigestCache, inputs: LastInputs, missing: list[str] | None) -> None:
        self.file, self.digests, self.inputs, self.missing = file, digests, inputs, missing
        self._gone: dict[tuple[str, str], str] = {}  # settings that name a file that is gone, and what is said of it
        self._converted: dict[tuple[str, str, str], Any] = {}
        self._identities: dict[tuple[str, str], tuple[Any, dict[str, str]]] = {}

    def __call__(self, measurement: Measurement, varied: Values, own: Values, labels: Values) -> Member:
        command, known = measurement.command, _fields_of(measurement.command)
        values = {**self.file.settings, **varied, **measurement.values, **own}
        values = {name: self._convert(command, known[name], v) for name, v in values.items() if name in known}
        identity: Values = {}
        files: dict[str, str] = {}
        for name, value in values.items():
            if name not in EXECUTION and value != known[name].default:
                identity[name], contents = self._identity(name, value)
                files |= contents
        if command == "connect":
            _check_ends(self.file.path.name, values)
        names = [name for name in dict.fromkeys([*varied, *measurement.distinct, *own]) if name in values]
        title = ", ".join([*(_short(n, values[n]) for n in names), *(f"{k} {v}" for k, v in labels.items())])
        full_name = f"{command}: {title}" if title else command
        if self.missing is not None:
            gone = [self._gone.get((name, json.dumps(value))) for name, value in values.items() if name in identity]
            self.missing += [f"{full_name}: {text}" for text in gone if text]
        return Member(
            full_name,
            CommandWork(command, values, str(self.file.path.parent), files),
            values,
            tuple(files),
            command,
            labels,
            member_digest(command, identity, "command"),
        )

    def _convert(self, command: str, known: Field[Any], value: Any) -> Any:
        key = (command, known.name, json.dumps(value))
        if key not in self._converted:
            self._converted[key] = _converted(known, _group_of(command, known.name), value)
        return self._converted[key]

    def _identity(self, name: str, value: Any) -> tuple[Any, dict[str, str]]:
        key = (name, json.dumps(value))
        if key not in self._identities:
            self._identities[key] = self._present_identity(key, value)
        return self._identities[key]

    def _present_identity(self, key: tuple[str, str], value: Any) -> tuple[Any, dict[str, str]]:
        try:
            counted, contents = identity_of(key[0], value, self.file.path.parent, self.digests)
        except UsageError as error:
            if self.missing is None:
                raise
            counted = self.inputs.last(*key)
            self._gone[key] = f"{error}; its result is shown as of that file"
            if counted is None:
                self._gone[key] = f"{error}; no earlier command has seen that file"
            return value if counted is None else counted, {}
        if contents:
            self.inputs.keep(*key, counted)
        return counted, contents


def _converted(field: Field[Any], group: type, value: Any) -> Any:
    """A setting's value in its type; of a table's cells, which are text, switches too."""
    if isinstance(value, dict):
        value = json.dumps(value)
    if isinstance(field.default, bool) and isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if isinstance(value, (list, tuple)) and not isinstance(field.default, tuple):
        raise UsageError(f"{field.name} must be one value here; a list of values belongs into [over]")
    value = convert(field, group, value)
    return list(value) if isinstance(value, tuple) else value


def _check_ends(file: str, values: Mapping[str, Any]) -> None:
    """Raise UsageError unless the settings of a line name both of its ends."""
    named = {name: values[name] for name in ("model_file", "ends", "other") if values.get(name)}
    if sum(len(value) if name == "ends" else 1 for name, value in named.items()) != 2:
        got = ", ".join(f"{name} = {json.dumps(value)}" for name, value in named.items()) or "none"
        raise UsageError(
            f'{file}: [connect] is of a line with two ends, such as model_file = "a.pt" and other = "b.pt"; got {got}'
        )


def _fields_of(command: str) -> dict[str, Field[Any]]:
    """The settings of a command by name."""
    return _FIELDS[command]


def _group_of(command: str, name: str) -> type:
    return next(group for group in GROUPS[command] if any(f.name == name for f in fields(group)))


# Settings of the groups of a command that it does not take: no plane is spanned there.
_WITHOUT = {command: {"model_file2", "model_file3"} for command in ("connect", "health", "sharpness", "spectrum")}
_FIELDS = {
    command: {f.name: f for group in groups for f in fields(group) if f.name not in _WITHOUT.get(command, ())}
    for command, groups in GROUPS.items()
}
_FORMER = former_names(group for groups in GROUPS.values() for group in groups)


def _present_names(values: Mapping[str, Any]) -> Values:
    """Settings under their names: underscores, and no former names. Raises UsageError for what a campaign decides."""
    present = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        name = _FORMER.get(name, name)
        if name in DECIDED:
            raise UsageError(f"{key} is decided by the campaign for each member: leave it out")
        if name == "refine":
            raise UsageError(f"{key} is for single surveys: members of a campaign are measured at all their points")
        if name == "loss_error":
            raise UsageError(f"{key} is for single surveys: members of a campaign read all their samples")
        if name in present:
            raise UsageError(f"{name} stands there twice, the second time as {key}: leave one of them out")
        present[name] = value
    return present


def _measurements(file: str, command: str, entry: Any) -> Iterator[Measurement]:
    """The measurements of one entry: a table, or a list of tables."""
    measurements = []
    for one in entry if isinstance(entry, list) else [entry]:
        table = _table(file, command, one)
        over = _present_names(_table(file, f"{command}.over", table.get("over", {})))
        values = _present_names({k: v for k, v in table.items() if k != "over"})
        for name in (*values, *over):
            if name not in _fields_of(command):
                raise UsageError(f"{file}: [{command}] {_unknown_setting(name, _fields_of(command))}")
        measurements.append(Measurement(command, values, over))
    every = [measurement.values for measurement in measurements]
    for measurement in measurements:
        distinct = [name for name, value in measurement.values.items() if any(v.get(name) != value for v in every)]
        yield replace(measurement, distinct=tuple(distinct))


def _table(file: str, name: str, value: Any) -> Values:
    if not isinstance(value, dict):
        raise UsageError(f"{file}: [{name}] must be a table; got {value!r}")
    return value


def _combinations(over: Mapping[str, Any], file: Path) -> Iterator[Values]:
    """Every combination of the values, the last name's varying fastest."""
    for values in itertools.product(*_lists(over, file)):
        yield dict(zip(over, values, strict=True))


def _lists(over: Mapping[str, Any], file: Path) -> list[list[Any]]:
    """The values of each setting."""
    return [[*_choices(name, choice, file)] for name, choice in over.items()]


def _choices(name: str, choice: Any, file: Path) -> Iterator[Any]:
    """The values of one setting: a list, or the files that fit a pattern, numbers in their names in order."""
    if isinstance(choice, list) and choice:
        yield from choice
    elif isinstance(choice, dict) and set(choice) == {"glob"}:
        patterns = choice["glob"] if isinstance(choice["glob"], list) else [choice["glob"]]
        for pattern in patterns:
            names = glob.glob(str(pattern), root_dir=file.parent, recursive=True)
            if not names:
                raise UsageError(f"{file.name}: no file in {file.parent} fits {pattern!r}, for {name}")
            yield from sorted(names, key=_natural)
    else:
        raise UsageError(
            f'{file.name}: {name} in [over] must be a list of values, or {{glob = "runs/*.pt"}}; got {choice!r}'
        )


def _natural(name: str) -> list[Any]:
    """A key by which step_9 comes before step_10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def _number(cell: str) -> Any:
    """A cell of a label as a number where it is one."""
    try:
        value = float(cell)
    except ValueError:
        return cell
    return int(value) if value.is_integer() and re.fullmatch(r"[+-]?\d+", cell) else value


def _short(name: str, value: Any) -> str:
    """A setting in a member's name; of a checkpoint its folder and stem alone."""
    if name in ("model_file", "other"):
        path = Path(value)
        short = "/".join(part for part in (path.parent.name, path.stem) if part)
        return short if name == "model_file" else f"to {short}"
    shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{name} {shown}"


def _unknown_setting(name: str, known: Any) -> str:
    nearest = nearest_names(name, known)
    hint = f"; did you mean {' or '.join(nearest)}?" if nearest else "; a column without a meaning belongs into labels"
    return f"unknown setting {name!r}{hint}"


def _unknown_part(file: str, name: str) -> str:
    if name in FUTURE:
        return f"{file}: [{name}] is no measure of a campaign in this version; it must be one of {', '.join(GROUPS)}"
    nearest = difflib.get_close_matches(name, [*PARTS, *GROUPS], 2, 0.6)
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"it may hold {', '.join([*sorted(PARTS), *GROUPS])}"
    return f"{file}: unknown part {name!r}; {hint}"
