"""`lossmap campaign FILE.toml ACTION`: many surveys and examinations as one, with one table and one page at the end.

The file names nets, checkpoints, seeds and measures, from lists, globs and tables. Each combination is a member, known
by its settings and the contents of its files: a changed setting makes a new member, an unchanged one is never computed
twice, and members may be added while it runs. The actions:

  plan      the members, how they stand, and with --rehearse what they will cost
  run       computes what is left, here or under mpirun: the ranks share the points of all members
  resume    the same as run, after an interruption
  retry     run, with failed points and failed members once more
  submit    to SLURM: one job over MPI, jobs in a row (--chain), or an array of jobs (--array 200%20)
  status    how far it is; exits 0 complete, 3 complete but for failures, 75 unfinished
  collect   one tidy table: a row a member, with its settings and its numbers with their bars
  report    one self-contained HTML page over all members
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lossmap.campaign.digests import DigestCache
from lossmap.campaign.folder import CampaignFolder, changed_sources
from lossmap.campaign.member import Member
from lossmap.campaign.table import CODE, collected
from lossmap.cli.campaign_file import CampaignFile
from lossmap.cli.campaign_members import Campaign
from lossmap.cli.campaign_status import fingerprint, missing_lines, outcome_of, plan_text, progress_of, status_text
from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import EXIT_CODES, guarded
from lossmap.cli.job import SubmitSettings
from lossmap.cli.settings import Settings, UsageError, setting
from lossmap.special_files import plain_text

ACTIONS = ("plan", "run", "resume", "retry", "submit", "status", "collect", "report")


@dataclass(frozen=True)
class CampaignSettings:
    """Campaign options."""

    file: str = setting(MISSING, "the campaign's file", metavar="FILE.toml", positional=True)
    action: str = setting(MISSING, f"one of {', '.join(ACTIONS)}", metavar="ACTION", positional=True)
    rehearse: int = setting(0, "plan: number of members of each measure whose cost is measured", metavar="N", minimum=0)
    json: bool = setting(False, "plan, status: machine-readable JSON output")
    watch: bool = setting(False, "status: repeated output until all members are at their end")
    interval: float = setting(5.0, "seconds between two outputs of --watch", metavar="SECONDS", above=0)
    fingerprint: bool = setting(False, "status: only a short text that changes whenever there is progress")
    output: str | None = setting(
        None, "collect: .csv, or .nc for xarray; report: .html; by default in the campaign's folder", metavar="FILE"
    )
    device: str = setting("auto", "run: auto, cpu, cuda, xpu, mps or cuda:1", metavar="DEVICE")
    threads: int | None = setting(
        None, "run: number of threads of a rank; by default its own cores", metavar="COUNT", minimum=1
    )
    rank_0: str = setting(
        "auto", "run: whether rank 0 computes beside dispatching; auto: with up to 32 ranks",
        choices=("auto", "computes", "deals"),
    )  # fmt: skip
    stop_after: float | None = setting(None, "run: seconds after which it stops, resumable", metavar="SECONDS")
    point_timeout: float | None = setting(
        None, "run: seconds after which a point, or a member's preparation or end, is dispatched again, or has failed "
        "in a process alone (exit code 75); inf for never; by default, with several ranks, 20 times the slowest point "
        "of the member so far, a minute at least, and none for a preparation", metavar="SECONDS", above=0,
    )  # fmt: skip
    batch: str | None = setting(
        None, "run, status: members of a submission alone, as `submit` wrote it", metavar="FILE"
    )
    part: str | None = setting(None, "run, status: part I of N of these members, such as 1/200", metavar="I/N")


COMMAND = Command(
    "campaign",
    __doc__ or "",
    (CampaignSettings, SubmitSettings),
    without=frozenset({"each"}),
    examples=(
        "lossmap campaign sweep.toml plan --rehearse 2",
        "mpirun -n 4 lossmap campaign sweep.toml run",
        "lossmap campaign sweep.toml submit --array 200%20 --time 1:00:00 --requeue",
    ),
)
# flags -> the actions that have them; those of a job belong to `submit`
FLAGS_OF = {
    "rehearse": ("plan",),
    "json": ("plan", "status"),
    "watch": ("status",),
    "interval": ("status",),
    "fingerprint": ("status",),
    "output": ("collect", "report"),
    **dict.fromkeys(("device", "threads", "rank_0", "stop_after", "point_timeout"), ("run", "resume", "retry")),
    **dict.fromkeys(("batch", "part"), ("run", "resume", "retry", "status")),
    "ranks_per_gpu": ("run", "resume", "retry", "submit"),
}


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run the action: 0 complete, 2 usage error, 3 complete but for failures, 75 unfinished, resumable."""
    settings = COMMAND.parse(argv)
    options = settings.campaign
    if options.file in ACTIONS:
        raise UsageError(f"the file must come first: lossmap campaign FILE.toml {options.file}")
    if options.action not in ACTIONS:
        raise UsageError(f"the action must be one of {', '.join(ACTIONS)}; got {options.action}")
    for name in sorted(settings.explicit - {"file", "action"}):
        actions = FLAGS_OF.get(name, ("submit",))
        if options.action not in actions:
            raise UsageError(f"--{name.replace('_', '-')} is a flag of {', '.join(actions)}; not of {options.action}")
    code: int = DO[options.action](settings)
    return code


# ---- the actions


def plan(settings: Settings) -> int:
    """Print the members and how they stand, and what is known of their cost."""
    options = settings.campaign
    campaign = Campaign.read(options.file)
    if options.rehearse:
        rehearse(campaign, options.rehearse)
    states = campaign.folder.states(campaign.members)
    costs = read_costs(campaign.folder)
    if options.json:
        print(json.dumps(progress_of(campaign.members, campaign.folder, states, costs, each=True)))
    else:
        print(plan_text(campaign.file.path.name, campaign.members, campaign.folder, states, costs))
    return 0


def rehearse(campaign: Campaign, count: int) -> None:
    """Measure the cost of a few members of each measure that are not begun, spread over them, and keep it."""
    rehearsal: Any = import_module("lossmap.cli.campaign_rehearsal")
    states, costs = campaign.folder.states(campaign.members), read_costs(campaign.folder)
    campaign.folder.create()
    for measure in dict.fromkeys(member.measure for member in campaign.members):
        new = {m.digest: m for m in campaign.members if m.measure == measure and states[m.digest].outcome == "new"}
        members = list(new.values())
        chosen = [members[round(i * (len(members) - 1) / max(1, count - 1))] for i in range(min(count, len(members)))]
        for member in chosen:
            if member.digest not in costs:
                costs[member.digest] = rehearsal.rehearsed(member)
                costs_file(campaign.folder).write_text(json.dumps(costs))


def costs_file(folder: CampaignFolder) -> Path:
    """The file that keeps the estimates of rehearsed members."""
    return folder.path / "estimates.json"


def read_costs(folder: CampaignFolder) -> dict[str, dict[str, float]]:
    """The estimates of rehearsed members by digest; none where there is no such file."""
    try:
        costs = json.loads(plain_text(costs_file(folder)))
    except (OSError, ValueError, RecursionError):
        return {}
    known = costs.items() if isinstance(costs, dict) else ()
    return {k: v for k, v in known if isinstance(v, dict) and isinstance(v.get("seconds"), (int, float))}


def run(settings: Settings, retry_failed: bool = False) -> int:
    """Compute what is left, over all ranks."""
    from lossmap.campaign.run import run_campaign
    from lossmap.cli import device
    from lossmap.cli.setting_groups import RunSettings
    from lossmap.cli.work_of_member import RankMachine
    from lossmap.parallel.shutdown import Stop, job_end
    from lossmap.parallel.world import World

    options, world = settings.campaign, World.start()
    # from the start: a signal may come, and the clock runs, while everything is prepared
    with Stop(after=options.stop_after, until=job_end(os.environ)) as stop:
        whole = world.once(lambda: Campaign.read(options.file))
        campaign = whole.part(options.batch, options.part)
        os.chdir(campaign.file.path.parent)  # where the members' relative paths start
        execution = RunSettings(
            device=options.device, threads=options.threads, rank_0=options.rank_0,
            ranks_per_gpu=settings.submit.ranks_per_gpu,
        )  # fmt: skip
        machine = device.prepare_machine(execution, world)
        if world.rank == 0:
            print(machine.sentence(), flush=True)
        refresh = None
        if campaign is whole:
            refresh = Refresh(campaign.file).members
        run_campaign(
            campaign.members, campaign.folder.path, progress=True, retry_failed=retry_failed, stop=stop, world=world,
            rank_0=options.rank_0, point_timeout=options.point_timeout, refresh=refresh,
            machine=RankMachine(str(machine.device), machine.threads, machine.ranks_sharing),
        )  # fmt: skip
    code = 0
    if world.rank == 0:
        if campaign is whole:  # with the members that were added meanwhile
            campaign = Campaign.read(options.file)
        states = campaign.folder.states(campaign.members)
        print(status_text(campaign.file.path.name, campaign.members, campaign.folder, states), flush=True)
        code = EXIT_CODES[outcome_of(states)]
        if code == 75:
            reason = f" ({stop.reason})" if stop.reason else ""
            print(f"interrupted{reason}; run the same command again to resume")
    return world.leave(world.broadcast(code) if world.is_whole else code)


class Refresh:
    """Looks whether a campaign's file names further members, while it runs.

    file  as it was read at the start
    """

    def __init__(self, file: CampaignFile) -> None:
        self.file, self._seen = file, file.signature()

    def members(self) -> list[Member]:
        """All members, where the file, its table or the files of its patterns have changed; else none.

        A file that cannot be read now, since somebody is editing it, is looked at again the next time.
        """
        try:
            file = CampaignFile.read(self.file.path)
            signature = file.signature()
            if signature == self._seen:
                return []
            members = file.members(DigestCache(CampaignFolder(self.file.folder).digests))
        except (UsageError, OSError):
            return []
        self._seen = signature
        return members


def retry(settings: Settings) -> int:
    """Compute what is left, failed points and members among it."""
    return run(settings, retry_failed=True)


def submit(settings: Settings) -> int:
    """Hand the campaign to SLURM."""
    from lossmap.cli.campaign_submit import submit_campaign

    campaign = Campaign.read(settings.campaign.file)
    states = campaign.folder.states(campaign.members)
    members = [m for m in campaign.members if not states[m.digest].at_end]
    return submit_campaign(campaign.file.path, campaign.folder, members, settings.submit)


def status(settings: Settings) -> int:
    """Print how far it is; the exit code says so too."""
    from lossmap.cli.campaign_submit import queue_sentences

    options = settings.campaign
    while True:
        campaign = Campaign.read(options.file, computes=False).part(options.batch, options.part)
        states = campaign.folder.states(campaign.members)
        outcome = outcome_of(states)
        if options.fingerprint:
            print(fingerprint(states))
            return 0
        if options.watch and not options.json and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        queue = queue_sentences(campaign.folder) if outcome == "unfinished" and options.batch is None else []
        if options.json:
            progress = progress_of(campaign.members, campaign.folder, states)
            print(json.dumps(progress | {"queue": queue, "missing": campaign.missing}), flush=True)
        else:
            text = status_text(campaign.file.path.name, campaign.members, campaign.folder, states)
            missing = missing_lines(campaign.missing)
            print("\n".join([text, *missing, *(f"in the queue: {sentence}" for sentence in queue)]), flush=True)
        if not options.watch or outcome != "unfinished":
            return EXIT_CODES[outcome]
        try:
            time.sleep(options.interval)
        except KeyboardInterrupt:
            return EXIT_CODES[outcome]


def collect(settings: Settings) -> int:
    """Write the table."""
    campaign = Campaign.read(settings.campaign.file, computes=False)
    table = collected(campaign.members, campaign.folder)
    campaign.folder.create()
    path = Path(settings.campaign.output or campaign.folder.path / "table.csv")
    if path.suffix == ".nc":
        table.to_xarray().to_netcdf(path, engine="h5netcdf")
    elif path.suffix == ".csv":
        table.to_csv(path)
    else:
        raise UsageError(f"--output must end in .csv, or .nc for xarray; got {path.name}")
    for note in changed_sources(campaign.folder.states(campaign.members)):
        print(f"{note} (column {CODE})")
    print("".join(f"{line}\n" for line in missing_lines(campaign.missing)), end="")
    print(f"{len(table)} members, {len(table.columns)} columns: {path}")
    return 0


def report(settings: Settings) -> int:
    """Write the page."""
    from lossmap.plotting.campaign_page import campaign_page

    campaign = Campaign.read(settings.campaign.file, computes=False)
    table = collected(campaign.members, campaign.folder)
    campaign.folder.create()
    path = Path(settings.campaign.output or campaign.folder.path / "report.html")
    if path.suffix != ".html":
        raise UsageError(f"--output must end in .html; got {path.name}")
    notes = [*changed_sources(campaign.folder.states(campaign.members)), *missing_lines(campaign.missing)]
    columns = {name for member in campaign.members for name in (*member.settings, *member.labels)}
    campaign_page(table.rows, campaign.file.path.name, path, notes, columns)
    print("".join(f"{note}\n" for note in notes), end="")
    print(f"report: {path}")
    return 0


DO: dict[str, Callable[[Settings], int]] = {
    "plan": plan,
    "run": run,
    "resume": run,
    "retry": retry,
    "submit": submit,
    "status": status,
    "collect": collect,
    "report": report,
}
