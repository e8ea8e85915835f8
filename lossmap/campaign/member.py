"""A member of a campaign: one survey or examination, known by the digest of its settings and its files' contents.

    digest = SHA-256 of (measure, settings, contents of the files), the first 16 hexadecimal digits

The name of a file is not part of it, its contents are: a checkpoint that was moved is the same member, one that was
written over is another. A result is kept under its digest, so that a changed setting makes a new member and an
unchanged one is never computed twice. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lossmap.campaign.digests import DigestCache, text_digest
from lossmap.io.surface import to_plain

if TYPE_CHECKING:
    from lossmap.geometry.grid import Grid
    from lossmap.parallel.shutdown import Stop

DIGITS = 16  # of a digest, as a result's name; two of 10^6 members meet with probability 3e-8


@dataclass(frozen=True)
class Site:
    """Where a member is computed: what its work needs to know of the process.

    path     its result file
    stop     whether to stop
    creates  whether the result file is created, or continued, by this call; else another process has it open
    machine  what the campaign has chosen for this rank, such as its device and threads; for the work alone
    """

    path: Path
    stop: Stop
    creates: bool = True
    machine: Any = None


@dataclass(frozen=True)
class Prepared:
    """A member ready to be measured point by point.

    measures  in the order in which they are evaluated; the first over the whole grid, a second one audits it
    grid      the points
    finish    whether `Work.finish` is to be called when all points are done
    """

    measures: tuple[Any, ...]
    grid: Grid
    finish: bool = False


class Work(Protocol):
    """What a member computes. It pickles, since it is sent to the rank that computes it."""

    def prepare(self, site: Site) -> Prepared | None:
        """Make measure and grid; where `site.creates`, create the result file or continue it, and close it.

        None: there are no points, and `finish` does everything. Raises Busy where another process writes the file.
        """

    def finish(self, site: Site) -> None:
        """What is to be done when all points are done; nobody has the file open."""


@dataclass(frozen=True)
class Member:
    """One member of a campaign: what is measured, with which settings, from which files.

    Two members with the same measure, settings and contents of files are one: it is computed once, and both have its
    numbers. What `build` does beside its settings and files (its code) is not part of the digest.

    Args:
        name: for people, such as `seed 1, epoch 10`; it need not be unique.
        build: makes what is measured, on the rank that measures it: a callable without arguments that returns
            (measure, grid) as `survey` takes them. It must pickle: a function of a module, or an instance of a small
            frozen dataclass with `__call__`.
        settings: what tells this member from others, as plain values; the columns of the campaign's table.
        files: paths of the files that it reads, which count by their contents.
        measure: the kind of measure, such as `surface`.
        labels: further columns of the table, which are not part of the digest.
        digest: 16 hexadecimal digits; by default computed from measure, settings and files.

    Example:
        >>> import lossmap
        >>> a, b = (lossmap.Member(name, print, {"seed": 1}) for name in ("a", "b"))
        >>> a.digest == b.digest, a.digest == lossmap.Member("a", print, {"seed": 2}).digest
        (True, False)

    """

    name: str
    build: Callable[[], Any] | Work
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    measure: str = "surface"
    labels: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", dict(to_plain(dict(self.settings))))
        object.__setattr__(self, "labels", dict(to_plain(dict(self.labels))))
        object.__setattr__(self, "files", tuple(map(str, self.files)))
        if not self.digest:
            contents = DigestCache().of_all(self.files)
            object.__setattr__(self, "digest", member_digest(self.measure, self.settings, sorted(contents.values())))

    def __hash__(self) -> int:
        return hash((self.name, self.digest))


def member_digest(measure: str, settings: Mapping[str, Any], contents: Any) -> str:
    """The digest of a member.

    measure   its kind
    settings  plain values
    contents  the digests of its files, as plain values: by setting, or sorted
    """
    return text_digest([measure, to_plain(dict(settings)), contents])[:DIGITS]
