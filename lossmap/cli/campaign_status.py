"""How a campaign stands, for people and for machines: counts by measure, failures, what it took and will take."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lossmap.campaign.folder import OUTCOMES, CampaignFolder, MemberState, changed_sources
from lossmap.campaign.member import Member
from lossmap.campaign.table import aligned
from lossmap.report.price import span_text

MAX_SHOWN = 5  # failures, and members in progress, that the text names
States = Mapping[str, MemberState]
Costs = Mapping[str, Mapping[str, float]]


def different(members: Iterable[Member]) -> list[Member]:
    """The members, each digest once."""
    return list({member.digest: member for member in members}.values())


def outcome_of(states: States) -> str:
    """The outcome of all: unfinished, failed (complete but for failures) or complete."""
    if not all(state.at_end for state in states.values()):
        return "unfinished"
    return "failed" if any(state.outcome == "failed" for state in states.values()) else "complete"


def fingerprint(states: States) -> str:
    """A number that grows whenever a point is settled or a member is at its end, and what it counts."""
    ended = sum(state.at_end for state in states.values())
    points = sum(state.done + state.failed for state in states.values())
    return f"{ended + points} steps: {ended} members, {points} points"


def status_text(name: str, members: Sequence[Member], folder: CampaignFolder, states: States) -> str:
    """How a campaign stands, for a person."""
    one_each = different(members)
    lines = [_headline(name, members, states), *_table(one_each, states)]
    failed = [m for m in one_each if states[m.digest].outcome == "failed"]
    for member in failed[:MAX_SHOWN]:
        state = states[member.digest]
        points = f"{state.failed} of {state.total} points: " if state.failed else ""
        lines.append(f"failed: {member.name}: {points}{state.reason}")
    if len(failed) > MAX_SHOWN:
        lines.append(f"and {len(failed) - MAX_SHOWN:,} more have failed (--json lists all)")
    lines += changed_sources(states)
    begun = [m for m in one_each if states[m.digest].outcome == "unfinished"]
    for member in begun[:MAX_SHOWN]:
        state = states[member.digest]
        what = "running" if folder.is_running(member.digest) else "begun"
        lines.append(f"{what}: {member.name}, {state.done} of {state.total} points")
    if len(begun) > MAX_SHOWN:
        lines.append(f"and {len(begun) - MAX_SHOWN} more are begun")
    return "\n".join(lines)


def missing_lines(missing: Sequence[str]) -> list[str]:
    """Members of which a file is gone, for a person; `missing` has a sentence for each."""
    lines = [f"a file is gone: {sentence}" for sentence in missing[:MAX_SHOWN]]
    if len(missing) > MAX_SHOWN:
        lines.append(f"and of {len(missing) - MAX_SHOWN:,} more members a file is gone")
    return lines


def plan_text(name: str, members: Sequence[Member], folder: CampaignFolder, states: States, costs: Costs) -> str:
    """What a campaign would compute, for a person."""
    one_each = different(members)
    lines = [_headline(name, members, states), *_table(one_each, states), f"results: {folder.members}"]
    lines += cost_lines(one_each, states, costs)
    if outcome_of(states) == "unfinished":
        lines.append(f"to compute: lossmap campaign {shlex.quote(name)} run, also under mpirun; or submit")
    return "\n".join(lines)


def _headline(name: str, members: Sequence[Member], states: States) -> str:
    text = f"{name}: {len(members):,} members"
    if len(states) < len(members):
        text += f", {len(states):,} of them different"
    counts = {word: sum(state.outcome == word for state in states.values()) for word in OUTCOMES}
    return f"{text}; {', '.join(f'{count:,} {word}' for word, count in counts.items() if count)}"


def _table(members: Sequence[Member], states: States) -> list[str]:
    rows = [["measure", "members", *OUTCOMES, "points done", "rank time"]]
    for measure in dict.fromkeys(member.measure for member in members):
        own = [states[member.digest] for member in members if member.measure == measure]
        counts = [f"{sum(state.outcome == word for state in own):,}" for word in OUTCOMES]
        points, seconds = sum(state.done for state in own), sum(state.seconds for state in own)
        rows.append([measure, f"{len(own):,}", *counts, f"{points:,}", span_text(seconds)])
    return [f"  {line}" for line in aligned(rows)]


def progress_of(
    members: Sequence[Member],
    folder: CampaignFolder,
    states: States,
    costs: Costs | None = None,
    each: bool = False,
) -> dict[str, Any]:
    """How a campaign stands, as values that JSON can hold.

    each  whether every member is listed, or only those that have failed
    """
    one_each = different(members)
    shown = [m for m in one_each if each or states[m.digest].outcome == "failed"]
    listed = [
        {
            "name": m.name,
            "digest": m.digest,
            "measure": m.measure,
            "outcome": states[m.digest].outcome,
            "reason": states[m.digest].reason,
            "file": str(folder.result(m.digest)),
        }
        for m in shown
    ]
    progress: dict[str, Any] = {
        "outcome": outcome_of(states),
        "folder": str(folder.path),
        "members": len(members),
        "different": len(states),
        "counts": {word: sum(state.outcome == word for state in states.values()) for word in OUTCOMES},
        "points": {
            "done": sum(state.done for state in states.values()),
            "failed": sum(state.failed for state in states.values()),
            "total": sum(state.total for state in states.values()),
        },
        "seconds": sum(state.seconds for state in states.values()),
        "notes": changed_sources(states),
        "all" if each else "failures": listed,
    }
    if costs is not None:
        progress["cost"] = cost_of_rest(one_each, states, costs)
    return progress


# ---- cost


def cost_of_rest(members: Sequence[Member], states: States, costs: Costs) -> dict[str, dict[str, float]]:
    """By measure, what is left: members, rank-seconds (a mean of those that are known), and the range of one.

    Known are members at their end, by what they took, and rehearsed ones, by their estimate.
    """
    rest: dict[str, dict[str, float]] = {}
    for measure in dict.fromkeys(member.measure for member in members):
        own = [member for member in members if member.measure == measure]
        left = [member for member in own if not states[member.digest].at_end]
        known = [states[m.digest].seconds for m in own if states[m.digest].outcome == "complete"]
        measured = len(known)
        known += [costs[m.digest]["seconds"] for m in own if m.digest in costs and not states[m.digest].at_end]
        known = [seconds for seconds in known if seconds > 0]
        if not known or not left:
            continue
        mean = sum(known) / len(known)
        own_costs = {m.digest: costs[m.digest]["seconds"] for m in left if m.digest in costs}
        # of a member that is begun, its points that are done count as an equal share
        shares = {m.digest: 1 - states[m.digest].done / max(1, states[m.digest].total) for m in left}
        seconds = sum(own_costs.get(m.digest, mean) * shares[m.digest] for m in left)
        rest[measure] = {
            "members": len(left), "rank_seconds": seconds, "smallest": min(known), "largest": max(known),
            "measured": measured, "rehearsed": len(own_costs),
        }  # fmt: skip
    return rest


def cost_lines(members: Sequence[Member], states: States, costs: Costs) -> list[str]:
    """What is left and what it will cost, for a person."""
    rest = cost_of_rest(members, states, costs)
    lines = []
    for measure, cost in rest.items():
        known = [f"{cost[what]:.0f} {what}" for what in ("measured", "rehearsed") if cost[what]]
        lines.append(
            f"cost: {measure}, {cost['members']:,.0f} left, about {span_text(cost['rank_seconds'])} of one rank "
            f"(by {' and '.join(known)}, {span_text(cost['smallest'])} to {span_text(cost['largest'])} each)"
        )
    left = {m.measure for m in members if not states[m.digest].at_end} - set(rest)
    if left:
        lines.append(
            f"cost: nothing is known yet of {', '.join(sorted(left))}; --rehearse 2 measures two members of each"
        )
    if rest:
        total = sum(cost["rank_seconds"] for cost in rest.values())
        lines.append(f"cost: in all {total / 3600:.3g} rank-hours; with 4 ranks at best {span_text(total / 4)}")
    return lines
