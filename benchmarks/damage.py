"""Flips single bits of result files, and cuts their ends off: does any reader give a wrong number in silence?

    python benchmarks/damage.py [--flips 1500] [--cuts 400] [--seed 0] [--kinds surface ...]
    python benchmarks/damage.py --price

For each kind of result, finished and half done (killed between two points, its journal beside it), the file or its
journal is damaged, and everything that reads results reads it: `lossmap.read` and all groups (what figures and pages
are made of), `status`, the reports, `status --verify`, and what `resume` would continue from and with. The answers
are compared with those of the sound file. Each damage ends in one of

    same       every answer is the one of the sound file
    fewer      points or groups are missing, which `resume` computes again; all that is there is as it was
    refused    one sentence that the file is damaged
    wrong      an answer differs in silence
    crash      any other exception, or the process died

"unprotected" are the same files without digests, as version 0.1 wrote them. `--price` is what digests cost a survey of
1,000 points.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lossmap import results
from lossmap.cli import resume, status
from lossmap.cli.__main__ import main as lossmap
from lossmap.geometry.grid import Field, Grid
from lossmap.io import digests, journal
from lossmap.io.checked import open_checked
from lossmap.io.continuation import stored
from lossmap.io.netcdf_read import read_group_of
from lossmap.io.read import Group, NotASurface, SurfaceFile, journal_of, read
from lossmap.io.surface import DONE, REBUILT, Surface
from lossmap.io.verify import verify
from lossmap.report.render import report_of_group

OUTCOMES = ("same", "fewer", "refused", "wrong", "crash")
QUICK = "--model mlp --samples 48 --device cpu --threads 1 --batch-size 48"
HVP = "--hvp-backend double-backward"
COMMANDS = {
    "surface": f"surface {QUICK} --x=-1:1:4 --y=-1:1:3",
    "eigenmap": f"eigenmap {QUICK} {HVP} --x=-1:1:3 --certify audit --tol 0.1",
    "spectrum": f"spectrum {QUICK} {HVP} --top 2 --bottom 1 --trace-products 6 --density-steps 4 --density-probes 2",
    "layers": f"spectrum {QUICK} {HVP} --layers module --top 1 --bottom 1 --dense-limit 100 --no-density --trace none",
    "dynamics": f"dynamics run {QUICK} {HVP} --top 2 --tol 0.1",
    "health": "health --model mlp --device cpu --threads 1 --examinations weights signals",
}
KILLED_AFTER = {"surface": 7, "eigenmap": 2, "spectrum": 2, "layers": 1, "dynamics": 2}


# ---- results


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it is written."""


def make(folder: Path, kinds: tuple[str, ...]) -> dict[str, Path]:
    """One file of each kind, finished and half done: {name: path}."""
    import torch

    from lossmap import zoo

    here, made = Path.cwd(), {}
    os.chdir(folder)
    try:
        (folder / "run").mkdir(exist_ok=True)
        for step in range(3):
            torch.manual_seed(step)
            torch.save(zoo.build("mlp").state_dict(), folder / "run" / f"step_{step}.pt")
        for kind in kinds:
            if kind == "merged":
                made[kind] = merged(folder)
                continue
            made[kind] = folder / f"{kind}.h5"
            command([*COMMANDS[kind].split(), "--surf-file", f"{kind}.h5"])
            if kind in KILLED_AFTER:
                made[f"{kind}, half done"] = folder / f"half-{kind}.h5"
                with killed_after(KILLED_AFTER[kind]), contextlib.suppress(Killed):
                    command([*COMMANDS[kind].split(), "--surf-file", f"half-{kind}.h5"])
    finally:
        os.chdir(here)
    return made


def command(words: list[str]) -> None:
    """Run a command of lossmap in this process, and be quiet about it."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = lossmap(words)
    if "Killed is raised there" in text.getvalue():  # the command ends with a sentence, as for a person's own code
        raise Killed
    if code not in (0, 75):
        raise RuntimeError(f"{' '.join(words)} ended with {code}:\n{text.getvalue()}")


def merged(folder: Path) -> Path:
    """A file that was merged of two shards."""
    for shard in ("1/2", "2/2"):
        command([*COMMANDS["surface"].split(), "--surf-file", "merged.h5", "--shard", shard])
    command(["merge", "merged.h5"])
    return folder / "merged.h5"


@contextlib.contextmanager
def killed_after(points: int) -> Iterator[None]:
    """Let the writer of a file die when it has recorded so many points."""
    record, close, count = SurfaceFile.record, SurfaceFile.close, iter(range(1, 1_000_000))

    def dying(self: SurfaceFile, *words: Any, **named: Any) -> None:
        record(self, *words, **named)
        if next(count) == points:
            self._journal.close()
            self._closed = True
            raise Killed

    SurfaceFile.record, SurfaceFile.close = dying, lambda self: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        SurfaceFile.record, SurfaceFile.close = record, close  # type: ignore[method-assign]


def unprotected(path: Path) -> Path:
    """A copy without digests, as version 0.1 wrote it; its journal does not say that it holds all."""
    copy = path.with_name(f"unprotected-{path.name}")
    shutil.copyfile(path, copy)
    with h5py.File(copy, "r+") as file:
        del file.attrs[digests.CONTENT]
        del file[digests.GROUP]
    if journal_of(path).exists():
        records = journal.read(journal_of(path)).records
        plain = [r.payload.replace(b'"is_fresh":true', b'"is_fresh":false') for r in records]
        kinds = [record.kind for record in records]
        journal_of(copy).write_bytes(b"".join(map(journal.packed, kinds, plain)))
    return copy


# ---- what readers answer


def answers(path: Path) -> dict[str, Any]:
    """Everything that readers say of a result, by name; of points only those that are done."""
    surface = read(path)
    said: dict[str, Any] = dict(_of_surface(surface))
    for name, group in _groups(surface, path):
        said |= {f"group {name}/{key}": array for key, array in group.arrays.items()}
        said |= {f"attribute {name}/{key}": value for key, value in group.attributes.items()}
        if group.arrays:
            said[f"report {name}"] = report_of_group(name, group.arrays, group.attributes)
    if surface.outcome != "unfinished":
        said["value"] = repr(results.read(path))
    progress = status.progress_of(str(path), surface)
    said["outcome"] = progress["outcome"]
    if surface.status:
        said |= _of_resume(surface, path)
    status.text(progress)
    verify(path)
    return said


def _groups(surface: Surface, path: Path) -> Iterator[tuple[str, Group]]:
    """The groups with their arrays, those in the file too."""
    if surface.integrity.startswith(REBUILT):
        yield from surface.groups.items()
        return
    with open_checked(path) as source:
        for name, group in surface.groups.items():
            # of a task that the journal holds, with its arrays already
            yield name, group if group.arrays or name not in source else read_group_of(source, name)


def _of_surface(surface: Surface) -> Iterator[tuple[str, Any]]:
    grid = surface.grid
    yield "grid", (grid.x, grid.y)
    for measure, names in surface.measures.items():
        states = surface.status[measure].reshape(-1)
        for index in np.flatnonzero(states):
            row = [surface[name].reshape(len(grid), -1)[index] for name in names]
            yield f"point {measure} {index}", np.concatenate([[states[index]], *row])
        for index in np.flatnonzero(states == DONE):
            yield f"seconds {measure} {index}", surface[f"{measure}_seconds"].reshape(-1)[index]
    for name, about in surface.about.items():
        yield f"field {name}", about
    yield "settings", surface.settings
    yield "failures", surface.failures
    for name, points in surface.parts.items():
        yield f"part {name}", points
    for name, value in surface.attributes.items():
        value = _decoded(value)
        if name == "attempts":  # whose points and time the newest snapshot counts
            value = [(attempt["start"], attempt["host"]) for attempt in value]
        yield f"root {name}", value


def _decoded(value: Any) -> Any:
    """An attribute of the root as a value: tables are text in a file, and tables in a journal."""
    if isinstance(value, str) and value.startswith(("{", "[")):
        return json.loads(value)
    return value


def _of_resume(surface: Surface, path: Path) -> dict[str, Any]:
    """What would be continued, and with which settings."""
    if not any(name.startswith("resolved_") for name in surface.attributes):
        return {}
    name = resume.command_of(surface, path)
    settings, folder = resume.settings_of(surface, name, path)
    memory, identity, _ = stored(path, journal.read(journal_of(path)))
    again = memory.surface()
    points = {f"continued {key}": value for key, value in _of_surface(again) if key.startswith("point")}
    return {"command": name, "command's settings": {**settings, "surf_file": ""}, "folder": folder,
            "identity": identity, **points}  # fmt: skip


def judge(sound: Mapping[str, Any], damaged: Mapping[str, Any]) -> str:
    """How the answers of a damaged file compare: same, fewer, or wrong."""
    wrong = [name for name in damaged if name not in sound or not same(sound[name], damaged[name])]
    missing = sound.keys() - damaged.keys()
    if missing and wrong == ["outcome"] and damaged["outcome"] == "unfinished":
        wrong = []
    if wrong:
        return "wrong"
    return "fewer" if missing else "same"


def same(a: Any, b: Any) -> bool:
    """Whether two answers are equal, NaN equal to NaN."""
    from lossmap.values import same_values

    return same_values(a, b)


# ---- damage


def outcome_of(path: Path, sound: Mapping[str, Any]) -> tuple[str, str]:
    """What becomes of a damaged file, and a word about it."""
    try:
        said = answers(path)
    except (NotASurface, ValueError) as error:
        text = str(error)
        is_sentence = "\n" not in text and not any(word in text for word in ("Unable to", "Can't", "Expecting"))
        return ("refused", text) if is_sentence else ("crash", text)
    except Exception as error:
        return "crash", f"{type(error).__name__}: {error}"
    verdict = judge(sound, said)
    wrong = [name for name in said if name not in sound or not same(sound[name], said[name])]
    return verdict, ", ".join(wrong[:3])


def flip(data: bytes, chance: random.Random) -> bytes:
    """The bytes with one bit changed."""
    at, bit = chance.randrange(len(data)), chance.randrange(8)
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


def cut(data: bytes, chance: random.Random) -> bytes:
    """The bytes without their end."""
    return data[: chance.randrange(len(data))]


def damage(
    path: Path, times: int, change: Callable[[bytes, random.Random], bytes], chance: random.Random
) -> tuple[Counter[str], list[str]]:
    """Damage a result so many times, one at a time, and count what becomes of it; what went wrong, in words."""
    files = [file for file in (path, journal_of(path)) if file.exists()]
    sound = {file: file.read_bytes() for file in files}
    said, counts, notes = answers(path), Counter[str](), []
    try:
        for _ in range(times):
            file = chance.choice(files)
            file.write_bytes(change(sound[file], chance))
            verdict, word = outcome_of(path, said)
            counts[verdict] += 1
            if verdict in ("wrong", "crash"):
                notes.append(f"{verdict}: {path.name} ({file.suffix}): {word[:200]}")
            file.write_bytes(sound[file])
    finally:
        for file, data in sound.items():
            file.write_bytes(data)
    return counts, notes


def price(points: int = 1_000) -> str:
    """What digests cost a survey: of all snapshots that it writes, beside points of 10 ms."""
    fields = tuple(Field(name, "nats", name) for name in ("train_loss", "test_loss", "train_acc", "test_acc"))
    spent, seal = [], digests.seal

    def timed(*words: Any) -> None:
        begin = time.process_time()
        seal(*words)
        spent.append(time.process_time() - begin)

    from lossmap.io import whole_file

    whole_file.seal = timed  # type: ignore[attr-defined]
    try:
        with tempfile.TemporaryDirectory() as folder:
            grid = Grid(np.linspace(-1, 1, points))
            with SurfaceFile.open(Path(folder) / "s.h5", grid, measures={"loss": (fields, {})}) as file:
                begin = time.perf_counter()
                for index in range(points):
                    file.record("loss", index, {field.name: 0.5 * index for field in fields}, 0.01)
                recording = time.perf_counter() - begin
            size = (Path(folder) / "s.h5").stat().st_size
            begin = time.perf_counter()
            read(Path(folder) / "s.h5")
            reading = time.perf_counter() - begin
    finally:
        whole_file.seal = seal  # type: ignore[attr-defined]
    survey = points * 0.01 + recording
    return (
        f"{points} points of 10 ms, 4 fields, a file of {size:,} bytes: {len(spent)} snapshots, {1e3 * sum(spent):.1f} "
        f"ms of processor time for digests = {100 * sum(spent) / survey:.2f} % of the survey; "
        f"reading it {1e3 * reading:.1f} ms"
    )


def main() -> int:
    """Run the campaign, and print its table; 1 where any answer was wrong in silence, or anything crashed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=1_500)
    parser.add_argument("--cuts", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=[*COMMANDS, "merged"])
    parser.add_argument("--unprotected", action="store_true", help="the same files without digests as well")
    parser.add_argument("--price", action="store_true")
    options = parser.parse_args()
    if options.price:
        print(price())
        return 0
    total, notes = Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder), tuple(options.kinds))
        if options.unprotected:
            made |= {f"{name}, unprotected": unprotected(path) for name, path in made.items()}
        print(f"{'result':34}{'damage':>11}" + "".join(f"{name:>9}" for name in OUTCOMES))
        for name, path in made.items():
            for word, times, change in (("flips", options.flips, flip), ("cuts", options.cuts, cut)):
                counts, more = damage(path, times, change, random.Random(f"{options.seed} {name} {word}"))
                print(f"{name:34}{times:>5} {word}" + "".join(f"{counts[outcome]:>9}" for outcome in OUTCOMES))
                if "unprotected" not in name:
                    total += counts
                notes += more
    for note in notes[:40]:
        print(note, file=sys.stderr)
    print(f"protected: {sum(total.values()):,} damages, {total['wrong']} wrong in silence, {total['crash']} crashes")
    return int(bool(total["wrong"] or total["crash"]))


if __name__ == "__main__":
    sys.exit(main())
