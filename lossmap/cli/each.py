"""`lossmap submit --each PATTERN -- COMMAND ... --model-file {}`: the short way to a campaign over files.

It writes the campaign's file, in which `{}` has become every file that fits the pattern; from then on it is a campaign
like any other, which `lossmap campaign` runs, watches, collects and reports.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lossmap.cli.campaign_members import Campaign
from lossmap.cli.campaign_submit import submit_campaign
from lossmap.cli.job import SubmitSettings
from lossmap.cli.measure_settings import GROUPS
from lossmap.cli.settings import Settings, UsageError
from lossmap.cli.wrapped_command import read_settings
from lossmap.special_files import is_special

PLACE = "{}"


def submit_each(options: SubmitSettings, words: Sequence[str], explicit: frozenset[str]) -> int:
    """Write the campaign of `--each`, and submit it: an array with a job for each file where no size is given.

    words     the command behind the dashes, with `{}` in the value of one flag
    explicit  the flags of submit that were given

    Raises UsageError with one sentence.
    """
    text = campaign_text(str(options.each), words)
    name = options.name if "name" in explicit else f"{words[0]}-each"
    path = Path(f"{name}.toml").absolute()
    if path.exists() and (is_special(path) or path.read_text() != text):
        raise UsageError(f"{path.name} is there and says something else; name another campaign with --name")
    campaign = Campaign.read(str(path), text)
    if not options.dry_run:
        path.write_text(text)
        print(f"{len(campaign.members):,} members, in {path.name}")
    states = campaign.folder.states(campaign.members)
    members = [member for member in campaign.members if not states[member.digest].at_end]
    is_sized = bool(explicit & {"array", "nodes", "ranks_per_node", "gpus_per_node", "chain"})
    return submit_campaign(path, campaign.folder, members, options, one_job_each=not is_sized)


def campaign_text(pattern: str, words: Sequence[str]) -> str:
    """The TOML file of a command over all files that fit a pattern. Raises UsageError."""
    command = words[0]
    if command not in GROUPS:
        raise UsageError(f"--each is for {', '.join(GROUPS)}; got {command}")
    if not any(PLACE in word for word in words[1:]):
        raise UsageError(f"--each needs {PLACE} where the file belongs, such as --model-file {PLACE}")
    if not glob.glob(pattern, recursive=True):
        raise UsageError(f"--each: no file fits {pattern!r}")
    settings = read_settings(words)
    values = _explicit(settings)
    with_place = [name for name, value in values.items() if PLACE in json.dumps(value)]
    if len(with_place) != 1 or values[with_place[0]] != PLACE:
        raise UsageError(f"--each: {PLACE} must be the whole value of one flag, such as --model-file {PLACE}")
    own = {name: value for name, value in values.items() if name not in with_place}
    lines = [f"[{command}]", *(f"{name} = {_toml(value)}" for name, value in own.items())]
    over = ["[over]", f"{with_place[0]} = {{glob = {_toml(pattern)}}}"]
    return "\n".join([*over, "", *lines, ""])


def _explicit(settings: Settings) -> dict[str, Any]:
    resolved = settings.resolved()
    return {name: resolved[name] for name in sorted(settings.explicit) if name in resolved}


def _toml(value: Any) -> str:
    """A plain value as TOML, whose strings, numbers, booleans and lists are written as in JSON."""
    return json.dumps(value)
