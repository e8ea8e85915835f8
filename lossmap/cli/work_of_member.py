"""The work of a member that a command measures: the command itself, in one process, cut into points and an end.

The points are those that the command would survey; the end of a spectrum, of sharpness or of a line (its report) and
of an examination is the command itself, which finds its points done. So a member's result is what the command alone
would have written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lossmap.campaign.digests import DigestCache
from lossmap.campaign.member import Prepared, Site
from lossmap.campaign.neighbours import READ
from lossmap.import_by_name import is_imported_otherwise
from lossmap.io.journal import Busy
from lossmap.parallel.world import World

if TYPE_CHECKING:
    from lossmap.cli.settings import Settings

MODULES = {
    name: f"lossmap.cli.{name}" for name in ("surface", "eigenmap", "spectrum", "sharpness", "connect", "health")
}

_read_as: dict[str, str] = {}  # by path the SHA-256 of files with settings when this process first met them


class RankMachine(NamedTuple):
    """What a campaign has chosen for a rank: its device, its threads, and how many ranks share the device's memory."""

    device: str
    threads: int
    ranks_sharing: int


class _Captured(BaseException):
    """Ends a command once its measure and grid are made. No Exception, which the command might report."""

    def __init__(self, measure: Any, grid: Any) -> None:
        super().__init__("the survey is prepared")
        self.measure, self.grid = measure, grid


class MemberWorld(World):
    """A rank alone, on a node whose memory it shares with other ranks of the campaign.

    sharing  how many ranks share this one's memory
    writes   whether it opens the result file
    """

    def __init__(self, sharing: int, writes: bool) -> None:
        super().__init__()
        self.node_size, self.writes = sharing, writes

    def gather(self, value: Any) -> list[Any]:
        """The value once for each rank that shares this one's memory, so that it is divided among them."""
        return [value] * self.node_size


@dataclass(frozen=True)
class CommandWork:
    """What a command measures, as the `Work` of a member.

    command  surface, eigenmap, spectrum, sharpness, connect or health
    values   its settings, plain values; the others have their defaults
    folder   where relative paths start
    files    the files that it reads, by path, with the digests that they had when the member was made
    """

    command: str
    values: Mapping[str, Any]
    folder: str
    files: Mapping[str, str]

    def prepare(self, site: Site) -> Prepared | None:
        """Make measure and grid as the command does; None for an examination, which has no points.

        Raises ValueError where a file has changed since the member was made, Busy where this process has imported it as
        it was before, and what the command raises.
        """
        with self._at_work(site):
            self._check_files()
            if self.command == "health":
                return None
            settings = self.settings(site)
            try:
                self._run(settings, site, survey=self._capture)
            except _Captured as end:
                measures = [end.measure]
                if getattr(end.measure, "certify", None) == "audit" and end.measure.auditable:
                    measures.append(end.measure.audit_twin())
                return Prepared(tuple(measures), end.grid, finish=self._has_end)
            raise RuntimeError(f"{self.command} ended before its points were known")

    def finish(self, site: Site) -> None:
        """Run the command over what is done. Raises Interrupted where the campaign stops meanwhile."""
        from lossmap.interrupt import Interrupted

        with self._at_work(site):
            settings = self.settings(site)
            if self.command == "health":
                code = self._module.run(settings, self._world(site))
            else:
                code = self._run(settings, site)
            if code == 75 or site.stop.reason is not None:
                raise Interrupted({})

    def settings(self, site: Site) -> Settings:
        """The command's settings: the member's own, its result file, and this rank's device and threads."""
        settings: Settings = self._module.COMMAND.parse([], dict(self.values))
        group = {"health": "health"}.get(self.command, "run")
        chosen: dict[str, Any] = {"surf_file": str(site.path)}
        if isinstance(site.machine, RankMachine):
            chosen |= {"device": site.machine.device, "threads": site.machine.threads}
        return settings.changed(group, **chosen)

    @property
    def _module(self) -> Any:
        return import_module(MODULES[self.command])

    @property
    def _has_end(self) -> bool:
        return self.command in ("spectrum", "sharpness", "connect") or any(
            self.values.get(name) for name in ("plot", "page", "vtk")
        )

    def _world(self, site: Site) -> World:
        sharing = site.machine.ranks_sharing if isinstance(site.machine, RankMachine) else 1
        return MemberWorld(sharing, site.creates)

    def _run(self, settings: Settings, site: Site, **keywords: Any) -> int:
        code: int = self._module.run(settings, self._world(site), stop=site.stop, **keywords)
        return code

    def _capture(self, measure: Any, grid: Any, *, store: Any, **_: Any) -> None:
        """In place of `survey`: end the command, its file made and closed."""
        if store is not None:
            # as the command would store them: without this rank's device and threads
            resolved = self._module.COMMAND.parse([], dict(self.values)).resolved() | {"surf_file": str(store.path)}
            store.note(**{f"resolved_{self.command}": {"settings": resolved, "folder": self.folder}})
            store.close()
        raise _Captured(measure, grid)

    def _check_files(self) -> None:
        digests, named = DigestCache(), str(dict(self.values))
        for path, digest in self.files.items():
            if digests.of(path) != digest:
                raise ValueError(f"{path} has changed since the campaign was planned: the same command plans it anew")
            # by code when it was imported, which is executed once; not a checkpoint, which is read for each member
            is_read = Path(path).suffix.lower() in READ and path not in named
            if is_imported_otherwise(Path(path), digest) or (
                is_read and _read_as.setdefault(os.path.realpath(path), digest) != digest
            ):
                raise Busy(f"{path} was changed after this process had imported it: the next one imports it anew")

    @contextlib.contextmanager
    def _at_work(self, site: Site) -> Iterator[None]:
        """In the folder of the campaign's file, with what the command prints in a log beside the result."""
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            with (
                open(site.path.with_suffix(".log"), "a") as log,
                contextlib.redirect_stdout(log),
                contextlib.redirect_stderr(log),
            ):
                yield
        finally:
            os.chdir(before)
