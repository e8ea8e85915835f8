"""The checkpoints of a training run by their steps: from their names, and where these say none from inside the files.

Lightning writes `epoch=3-step=400.ckpt` and, beside them, `last.ckpt`, whose step stands in it as `global_step`. Others
write `best.pt`, a copy of some step, and `last.pt`, `final.pt` or `checkpoint.pth`, where the run ended.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path

import numpy as np
import torch

from lossmap.data.checkpoints import (
    checkpoints_in,
    counts_in,
    file_sha256,
    is_checkpoint,
    is_last,
    load_state,
    sorted_as_people_count,
    step_in,
)
from lossmap.landscape.names_of_steps import is_certain, without_other_numbers

log = logging.getLogger(__name__)

# `step=200`, `iter_200`, `epoch=2-acc=71`, each tried for all files; what stands behind is no part of the number
COUNTED = (r"(?:global_?)?steps?", r"it(?:er|eration)?s?", r"ep(?:och)?s?")
OF_WORD = r"(?:^|[^a-z]){}[=_ -]?(\d+)(k?)(?![a-z\d]|[.,]\d|_\d{{3}}(?![a-z\d]))"
WHOLE_NUMBER = r"(?<![\d.])\d+(?!\d|\.\d)|(?<=\D\.)\d+(?!\d|\.\d)"  # 0.71 is none; `model.10` has the number 10
BEST = r"(?<![a-z])best(?![a-z])"
AVERAGE = r"(?<![a-z])(?:ema|swa|averaged?)(?![a-z])"
START = r"(?<![a-z])(?:init(?:ial)?|start|pretrained|untrained)(?![a-z])"
END = r"(?<![a-z])(?:last|latest|final)(?![a-z])(?![-_ ]?(?:layer|block|norm|linear|conv))"
VERSION = r"(?<=\d)-v\d+$"  # of a second file of the same name, as Lightning counts them


def _stem(path: Path) -> str:
    """A file's name without its ending, or both of `checkpoint.pth.tar`."""
    return re.sub(r"\.(?:pth|pt|ckpt|t7)$", "", path.stem)


def _plain(name: str) -> str:
    """A name without what is no step in it; empty of `last-v1`."""
    return "" if is_last(name) else without_other_numbers(re.sub(VERSION, "", name.lower()))


def _step(name: str) -> float | None:
    """The last whole number in a name; None without one."""
    numbers = re.findall(WHOLE_NUMBER, _plain(name))
    return float(numbers[-1]) if numbers else None


def _counted(names: Sequence[str], word: str) -> list[float | None]:
    """The numbers behind a word, of each name; None where it has none."""
    found = [re.findall(OF_WORD.format(word), _plain(name)) for name in names]
    return [float(pairs[-1][0]) * (1000 if pairs[-1][1] else 1) if pairs else None for pairs in found]


def _by_word(files: Sequence[Path]) -> list[float | None] | None:
    """The steps by the first word for one behind which each file has a number of its own; None where there is none."""
    names = [_stem(path) for path in files]
    for word in COUNTED:
        steps = _counted(names, word)
        known = [step for step, name in zip(steps, names, strict=True) if not is_last(name)]
        if known and None not in known and len(set(known)) == len(known):
            return steps
    return None


def _steps(files: Sequence[Path]) -> list[float | None]:
    """The steps that the names of files give, or, where no file's does, those of their folders."""
    steps = _by_word(files) or [_step(_stem(path)) for path in files]
    if any(step is not None for step in steps) or len({path.parent for path in files}) < min(2, len(files)):
        return steps
    return [_step(path.parent.name) for path in files]


def short_names(files: Iterable[Path]) -> list[str]:
    """The files' names, with their folders where names alone are alike."""
    paths = list(files)
    is_alike = len({path.name for path in paths}) < len(paths)
    return [f"{path.parent.name}/{path.name}" if is_alike else path.name for path in paths]


def numbered_in_order(files: Mapping[float, Path]) -> str:
    """A sentence where neither names nor checkpoints give ascending steps; empty where they do."""
    if len(files) == 1 or known_steps(list(files.values())) == list(files):
        return ""
    names = short_names(files.values())
    some = ", ".join(names if len(names) <= 4 else [*names[:3], "...", names[-1]])
    return f"the names of the checkpoints give no ascending steps: they are numbered from 0 in the order {some}"


def guessed_steps(files: Mapping[float, Path]) -> str:
    """A sentence where steps are the last whole numbers of names, which may mean something else; else empty."""
    paths = list(files.values())
    if len(paths) == 1 or _by_word(paths) or list(files) != _steps(paths):
        return ""
    by_folder = all(_step(_stem(path)) is None for path in paths)
    names = [path.parent.name if by_folder else _stem(path) for path in paths]
    if all(is_certain(name) for name in names):
        return ""
    first, *_, last = files
    whose = "folders'" if by_folder else "files'"
    return (
        f"the steps of the checkpoints are guessed, as the last whole numbers of their {whose} names: {first:g} of "
        f"{names[0]} to {last:g} of {names[-1]}"
    )


def _one_of_each_format(files: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Files without those that a file of tensors alone stands beside, `step1.pt` and `step1.safetensors`; notes."""
    kept = {path.with_suffix("") for path in files if path.suffix == ".safetensors"}
    notes, paths = list[str](), list[Path]()
    for path in files:
        if path.suffix != ".safetensors" and path.with_suffix("") in kept:
            notes.append(f"{path.name} is left out: {path.with_suffix('.safetensors').name} stands beside it")
        else:
            paths.append(path)
    return paths, notes


def known_steps(files: Sequence[Path]) -> list[float | None]:
    """The steps by name; those that have none there from inside the files, where these count as the names do.

    All from inside where the names' do not ascend, as of `epoch=1-acc=71` and `epoch=2-acc=70`.
    """
    steps = _steps(files)
    by_name = [step for step, path in zip(steps, files, strict=True) if step is not None and not is_last(_stem(path))]
    if len(by_name) > 1 and (np.diff(by_name) <= 0).any() and _by_word(files) is None:
        inside = [step_in(path) for path in files]
        return inside if None not in inside and len(set(inside)) > 1 else steps
    if all(step is not None for step in steps):
        return steps
    inside = [step_in(path) if step is None else None for path, step in zip(files, steps, strict=True)]
    if all(step is None for step in inside):
        return steps
    named = [i for i, step in enumerate(steps) if step is not None]
    if named and step_in(files[named[-1]]) != steps[named[-1]]:  # names count epochs, say
        return [step_in(path) for path in files]
    return [own if step is None else step for step, own in zip(steps, inside, strict=True)]


def found_checkpoints(paths: Iterable[str | Path]) -> tuple[dict[float, Path], list[str]]:
    """As `find_checkpoints`, with its sentences, and without their report."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += checkpoints_in(path)
            continue
        if not path.exists():
            raise FileNotFoundError(f"there is no checkpoint {path}")
        if not is_checkpoint(path):
            raise ValueError(f"{path} is not a checkpoint (judged by its content); leave it out")
        files.append(path)
    if not files:
        raise ValueError("there are no checkpoints to measure; name files, or folders that hold them")
    files = sorted_as_people_count(dict.fromkeys(files))
    files, notes = _one_of_each_format(files)
    files, averages = _without_averages(files)
    inner, more = _without_best(files)
    more = [*averages, *more]
    begins, steps, ends = _apart(inner)
    found, numbered = _numbered(steps)
    in_order = numbered_in_order(found)
    if in_order and (begins or ends):  # nothing tells the order
        found, numbered = _numbered(inner)
        in_order = numbered_in_order(found)
    elif not in_order:
        numbered += [guessed_steps(found), *_with_begins(found, begins), *_with_ends(found, ends)]
    found = dict(sorted(found.items()))
    return found, [note for note in (*notes, *more, *numbered, in_order) if note]


def _without_best(files: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """A run's checkpoints without its best, where others have numbers; with one that has a step of its own; notes."""
    best = [path for path in files if re.search(BEST, _names_of(files)[path])]
    others = [path for path in files if path not in best]
    if _by_word(files) or sum(_step(_names_of(files)[path]) is not None for path in others) < 2:
        return list(files), []
    note = "{} is left out: it is the best of the run by some measure, one of its steps or of one that is not known"
    return others, [note.format(path.name) for path in best]


def _without_averages(files: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """A run's checkpoints without averages of its weights, which are none of its steps, where the others are; notes.

    A run that has averages alone is one of these.
    """
    names = _names_of(files)
    averages = [path for path in files if re.search(AVERAGE, names[path])]
    others = [path for path in files if path not in averages]
    if sum(_step(names[path]) is not None for path in others) < 2:
        return list(files), []
    if not averages:
        return others, []
    some = ", ".join(path.name for path in averages[:3]) + (", ..." if len(averages) > 3 else "")
    what = "averages of weights by their names, and none" if len(averages) > 1 else "an average of weights, and none"
    return others, [f"left out of the run: {some} ({what} of its steps)"]


def _names_of(files: Sequence[Path]) -> dict[Path, str]:
    """What tells files apart, in small letters: their names, or those of their folders where names are alike."""
    by_folder = len(files) > 1 and len({_stem(path) for path in files}) == 1
    return {path: (path.parent.name if by_folder else _stem(path)).lower() for path in files}


def _apart(files: Sequence[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """The checkpoints of a run's beginning, of its steps, and of its end, by their names; all of its steps without any.

    An end is `final.pt`, or the bare name of those with numbers; not Lightning's `last.ckpt`, whose step stands in it.
    """
    names = _names_of(files)

    def is_bare(name: str) -> bool:
        return _step(name) is None and any(re.fullmatch(rf"{re.escape(name)}[-_]?\d+", each) for each in names.values())

    own = [path for path in files if is_last(_stem(path)) and step_in(path) is not None]
    begins = [
        path for path in files if path not in own and re.search(START, names[path]) and _step(names[path]) is None
    ]
    ends = [path for path in files if path not in own and (re.search(END, names[path]) or is_bare(names[path]))]
    ends = [path for path in ends if path not in begins]
    steps = [path for path in files if path not in begins and path not in ends]
    return (begins, steps, ends) if any(_step(names[path]) is not None for path in steps) else ([], list(files), [])


def _with_begins(found: dict[float, Path], begins: Sequence[Path]) -> list[str]:
    """Put the checkpoints of a run's beginning in front of those of its steps; returns notes."""
    notes = []
    for path in reversed(begins):
        first = min(found)
        step = 0.0 if first > 0 else first - 1
        found[step] = path
        notes.append(f"{path.name} is taken for the run's beginning: it has step {step:g}")
    return notes


def _with_ends(found: dict[float, Path], ends: Sequence[Path]) -> list[str]:
    """Put the checkpoints of a run's end behind those of its steps, but for copies of the last; returns notes."""
    every = [*ends, *found.values()]
    notes, names = [], dict(zip(every, short_names(every), strict=True))
    for path in ends:
        step = max(found)
        last = found[step]
        if _is_same(path, last):
            notes.append(f"{names[path]} is left out: it is {names[last]} once more")
            continue
        own = _step_of_end(path, last, step)
        found[own] = path
        notes.append(f"{names[path]} is taken for the run's end, behind {names[last]}: it has step {own:g}")
    return notes


def _step_of_end(path: Path, last: Path, step: float) -> float:
    """The step of a checkpoint behind the last with a number, by what both hold of how far they are; else the next.

    What counts as the numbers do: the number itself, or one less, as epochs are counted from 0 inside and from 1 in
    names.
    """
    inside, before = counts_in(path), counts_in(last)
    for key in inside:
        offset = step - before.get(key, -inf)
        if offset in (0.0, 1.0) and inside[key] > before[key]:
            return inside[key] + offset
    return step + 1


def _is_same(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same tensors."""
    if a.stat().st_size == b.stat().st_size and file_sha256(a) == file_sha256(b):
        return True
    try:
        one, other = load_state(a), load_state(b)
    except (OSError, ValueError):  # said where its tensors are read
        return False
    return one.keys() == other.keys() and all(torch.equal(t, other[name]) for name, t in one.items())


def _numbered(files: Sequence[Path]) -> tuple[dict[float, Path], list[str]]:
    """The files by their steps, in this order; numbered from 0 where not all have one that ascends; notes."""
    files, notes = list(files), list[str]()
    known = known_steps(files)
    if all(step is not None for step in known):
        of_step = {step: path for step, path in zip(known, files, strict=True) if not is_last(_stem(path))}
        for step, path in zip(known, list(files), strict=True):
            if is_last(_stem(path)) and of_step.setdefault(step, path) != path:
                files.remove(path)
                notes.append(f"{path.name} is of step {step:g}, as {of_step[step].name} is: it is left out")
        known = known_steps(files) if notes else known
    steps = [step for step in known if step is not None]
    if len(steps) == len(files) and len(set(steps)) == len(steps) and (known != _steps(files) or _by_word(files)):
        order = np.argsort(steps)
        steps, files = [steps[i] for i in order], [files[i] for i in order]
    if len(steps) < len(files) or (np.diff(steps) <= 0).any():
        steps = [float(i) for i in range(len(files))]
    return dict(zip(steps, files, strict=True)), notes


def find_checkpoints(paths: Iterable[str | Path]) -> dict[float, Path]:
    """Checkpoints by step, in the order in which people count; folders stand for the checkpoints in them.

    A step is the number behind `step`, `iter` or `epoch` in a file's name, the first of these words that gives each
    file its own; or its last whole number, or, where no file's has one, in its folder's, such as
    `checkpoint-500/model.safetensors`; of a file without one that which stands in it (`global_step`, `step`), where the
    others count alike, and of all files where those of names do not ascend. Where not all have one, or they do not
    ascend, they are numbered from 0. Numbers with decimals or exponents, as in `epoch=3-acc=0.71` and `loss=1.2e-04`,
    are no steps, nor are those behind a metric's word, `seed`, `fold`, `v` and the like, sizes (`7b`, `resnet50`) and
    hashes. Of `step1.pt` and `step1.safetensors` the latter is taken. Lightning's `last.ckpt` is left out beside
    another of its step; so is `best.pt` beside numbered files, and `last`, `latest`, `final` or a bare `checkpoint.pth`
    where it is the last of these once more: else it stands behind them, and `init` or `pretrained` in front.

    Files left out, guessed steps and numbers from 0 are reported.

    Raises FileNotFoundError for a path that does not exist, ValueError for a file that is not a checkpoint, judged by
    its content, and where there is none.
    """
    files, notes = found_checkpoints(paths)
    for note in notes:
        log.warning("%s", note)
    return files
