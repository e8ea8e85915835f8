"""The folder of a campaign: results by digest, failures, and an index of what each result says in one row.

    members/DIGEST.h5            a result, with its journal beside it while it is computed
    members/DIGEST.failed.json   why a member could not be begun
    members/DIGEST.done.json     that a member is at its end, where its result alone does not say so
    index.jsonl                  one line a member, the last one counts; made anew from the results where it is missing

The index is a cache: a line counts as long as sizes and times of the member's files are those that it names, and its
text is that of its checksum, since numbers of the table come from it. So a status looks at each file's entry in the
folder, and reads those alone that have changed. No torch.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lossmap.campaign.member import Member
from lossmap.campaign.summary import AUDIT, cost_of, numbers_of
from lossmap.io.code_identity import sources_of
from lossmap.io.disk import explained
from lossmap.io.read import Damaged, NotASurface, is_being_written, journal_of, read
from lossmap.io.surface import Surface
from lossmap.report.text import raised_error
from lossmap.special_files import is_special, plain_text

NEW, UNFINISHED, FAILED, COMPLETE = "new", "unfinished", "failed", "complete"
COUNTED = ("done.json", "failed.json", "h5", "h5.journal")  # endings of the files that say how a member stands
OUTCOMES = (COMPLETE, FAILED, UNFINISHED, NEW)


@dataclass(frozen=True)
class MemberState:
    """How a member stands: what its files say.

    outcome  complete, failed (at its end, but for failed points, or it could not be begun), unfinished, or new
    done     points that are done; failed points; total points that there are, 0 where that is not known yet
    seconds  rank-seconds of its points so far; slowest of one point
    reason   why it failed, in one line
    numbers  its numbers with their bars, by name
    sources  the user's own files that its result was computed with, and their SHA-256
    """

    outcome: str = NEW
    done: int = 0
    failed: int = 0
    total: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    reason: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def at_end(self) -> bool:
        """Whether nothing is left to do."""
        return self.outcome in (COMPLETE, FAILED)


class CampaignFolder:
    """The folder of a campaign; nothing is created before something is written."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(path))
        self.members = self.path / "members"
        self.index = self.path / "index.jsonl"
        self.digests = self.path / "digests.json"

    def create(self) -> None:
        """Make the folder. Raises OSError where that is not possible."""
        self.members.mkdir(parents=True, exist_ok=True)

    def result(self, digest: str) -> Path:
        """The result file of a member."""
        return self.members / f"{digest}.h5"

    def _beside(self, digest: str, what: str) -> Path:
        return self.members / f"{digest}.{what}.json"

    # ---- what is written

    def fail(self, digest: str, text: str, **where: Any) -> None:
        """Keep why a member could not be begun or ended. Raises OSError."""
        _write_whole(self._beside(digest, "failed"), {"text": text, **where})

    def finish(self, digest: str) -> None:
        """Keep that a member is at its end, and which file its result is. Raises OSError."""
        try:
            file = _identity_of(read(self.result(digest)))
        except (NotASurface, FileNotFoundError):  # to look at it says what is wrong
            file = ""
        _write_whole(self._beside(digest, "done"), {"member": digest, "file": file})

    def forget_failure(self, digest: str) -> None:
        """Let a member be begun again."""
        self._beside(digest, "failed").unlink(missing_ok=True)

    def discard_change(self, digest: str) -> bool:
        """Let a member begin anew whose loss changed while it was measured; whether it was such a one.

        Its points are of several functions, so that none of them is kept.
        """
        path = self.result(digest)
        try:
            surface = read(path)
        except (NotASurface, OSError):
            return False
        if not any(surface.change_of(name) for name in surface.status) or is_being_written(path):
            return False
        for stale in (journal_of(path), path, self._beside(digest, "done")):
            stale.unlink(missing_ok=True)
        return True

    def remember(self, digest: str) -> None:
        """Add what a member's files say to the index, so that no later command need read them."""
        stamp = self._stamps(digest).get(digest)
        if stamp:
            self._append([_index_line(digest, stamp, self.look_at(digest))])

    # ---- what is read

    def states(self, members: Iterable[Member]) -> dict[str, MemberState]:
        """How the members stand, by digest; each result that has changed since it was last looked at is read."""
        stamps, index = self._stamps(), self._read_index()
        states: dict[str, MemberState] = {}
        lines: list[str] = []
        for digest in dict.fromkeys(member.digest for member in members):
            stamp = stamps.get(digest, [])
            if not stamp:
                states[digest] = MemberState()
                continue
            entry = index.get(digest)
            if entry is not None and entry["stamp"] == stamp:
                states[digest] = MemberState(**entry["state"])
                continue
            states[digest] = self.look_at(digest)
            lines.append(_index_line(digest, stamp, states[digest]))
        self._append(lines)
        return states

    def look_at(self, digest: str) -> MemberState:
        """How a member stands, by its files."""
        path = self.result(digest)
        failure = self._failure(digest)
        try:
            surface = read(path)
        except FileNotFoundError:
            return MemberState(outcome=FAILED, reason=failure) if failure else MemberState()
        except (NotASurface, OSError) as error:
            return MemberState(outcome=FAILED, reason=str(error))
        done = self._beside(digest, "done")
        if not failure and done.exists() and not self._is_of(digest, surface):
            reason = f"{path} is not the file that was computed for this member: delete it, and run the campaign again"
            return MemberState(outcome=FAILED, reason=reason)  # without its numbers, which are another's
        return _state_of(surface, failure, done.exists())

    def _is_of(self, digest: str, surface: Surface) -> bool:
        """Whether a result is the one that a member ended with, as its mark says; an earlier version's says nothing."""
        try:
            mark = json.loads(plain_text(self._beside(digest, "done")))
            return mark.get("member", digest) == digest and mark.get("file", "") in ("", _identity_of(surface))
        except (OSError, ValueError, AttributeError, RecursionError):
            return True

    def is_running(self, digest: str) -> bool:
        """Whether some process is writing the member's result now."""
        path = self.result(digest)
        return journal_of(path).exists() and is_being_written(path)

    def _failure(self, digest: str) -> str:
        try:
            failure = json.loads(plain_text(self._beside(digest, "failed")))
            return raised_error(str(failure.get("text", "")))
        except (OSError, ValueError, AttributeError, RecursionError):
            return ""

    def _stamps(self, digest: str | None = None) -> dict[str, list[Any]]:
        """By digest the names, sizes and times of all files of a member; of one member, or of all in the folder."""
        if digest is not None:
            names = [f"{digest}.{what}" for what in COUNTED]
        elif self.members.is_dir():
            names = os.listdir(self.members)
        else:
            names = []
        stamps: dict[str, list[Any]] = {}
        for name in sorted(names):
            owner, _, what = name.partition(".")
            if what not in COUNTED:
                continue
            try:
                status = os.stat(self.members / name)
            except FileNotFoundError:  # not there, or renamed over since
                continue
            stamps.setdefault(owner, []).append([what, status.st_size, status.st_mtime_ns])
        return stamps

    def _read_index(self) -> dict[str, Any]:
        index: dict[str, Any] = {}
        try:
            text = plain_text(self.index)
        except (OSError, ValueError):  # a cache: what it does not say is read from the results
            return index
        for line in text.splitlines():
            check, text = line[: len(_check(""))], line[len(_check("")) :]
            if check != _check(text):  # changed since, or of a version that wrote no checksums
                continue
            try:
                entry = json.loads(text)
                MemberState(**entry["state"])
                index[entry["digest"]] = entry
            except (
                KeyError,
                TypeError,
                ValueError,
                RecursionError,
            ):  # not written to its end by another process, or damaged
                continue
        return index

    def _append(self, lines: list[str]) -> None:
        """Add lines to the index; a folder that cannot be written to is no error."""
        if not lines or is_special(self.index):
            return
        try:
            with open(self.index, "a") as file:
                file.write("".join(f"{line}\n" for line in lines))
        except OSError:
            return


def _identity_of(surface: Surface) -> str:
    """What a result file is known by: the random name that it was given when it was begun; empty for files without."""
    return str(surface.attributes.get("file_id") or "")


def _state_of(surface: Surface, failure: str, is_done: bool) -> MemberState:
    counts = [surface.counts(name) for name in surface.status if name != AUDIT]
    done, failed, left = (sum(c[what] for c in counts) for what in ("done", "failed", "left"))
    outcomes = {surface.outcome_of(name) for name in surface.status}
    if not surface.status and surface.groups:  # an examination: it is whole or not there
        outcomes = {COMPLETE}
    outcome = next((word for word in (UNFINISHED, FAILED) if word in outcomes), COMPLETE)
    if outcome != UNFINISHED and not is_done:
        outcome = UNFINISHED
    changed = next(filter(None, (surface.change_of(name) for name in surface.status)), "")
    numbers: dict[str, float] = {}
    if not changed and not failure:  # else they are of another survey, or of several functions
        try:
            numbers = numbers_of(surface)
        except Damaged as error:  # of this member alone
            failure = str(error)
    reason = changed or next((f.reason for f in surface.failures), "")
    if failure:
        outcome, reason = FAILED, failure
    return MemberState(
        outcome,
        done,
        failed,
        done + failed + left,
        reason=reason,
        numbers=numbers,
        sources=sources_of(surface.attributes),
        **cost_of(surface),
    )


def changed_sources(states: Mapping[str, MemberState]) -> list[str]:
    """One sentence for each file of the user's of which some results were computed with another version than others.

    A member's digest holds the files that its settings name; what they import is known once a result is there.
    """
    versions: dict[str, Counter[str]] = {}
    for state in states.values():
        for path, digest in state.sources.items():
            versions.setdefault(path, Counter())[digest] += 1
    return [
        f"{path} was changed while the campaign was computed: of its results "
        + ", ".join(f"{count} by version {digest[:8]}" for digest, count in counts.items())
        + "; to compute some of them again, delete their files and run it once more"
        for path, counts in versions.items()
        if len(counts) > 1
    ]


def _index_line(digest: str, stamp: list[Any], state: MemberState) -> str:
    text = json.dumps({"digest": digest, "stamp": stamp, "state": asdict(state)})
    return _check(text) + text


def _check(text: str) -> str:
    """What stands before the text of a line: its CRC-32."""
    return f"{zlib.crc32(text.encode()):08x} "


def _write_whole(path: Path, value: Any) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with explained(path, "what has been measured is safe; mend that and start the same command again"):
        part.write_text(json.dumps(value))
        part.replace(path)
