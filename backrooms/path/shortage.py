"""Why there is no path, in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backrooms.path.constraints import Position

if TYPE_CHECKING:
    from backrooms.path.selector import Choice


def why_not(choice: Choice, finished: bool) -> str:
    """Why there is no path, in numbers and without the destination's name."""
    selector = choice.selector
    excluded = sum(row.id in selector.constraints.exclude for row in selector.rows)
    parts = [f"{len(selector.rows)} relays known", f"{excluded} excluded"]
    unknown = sum(selector.constraints.distinct_subnets and not row.subnets for row in selector.rows)
    if unknown > 0:
        parts.append(f"{unknown} of unknown subnet")
    if choice.avoid:
        parts.append(f"{len(choice.avoid)} avoided this time")
    for position in dict.fromkeys(choice.positions):
        rules = selector.ruled_out(position)
        if rules:
            most = ", ".join(f"{count} by {rule}" for rule, count in rules[:3])
            if len(rules) > 3:
                most += f", {sum(count for _, count in rules[3:])} by {len(rules) - 3} more"
            parts.append(f"{sum(count for _, count in rules)} excluded as {position.value} ({most})")
    parts += _about_exits(choice)
    if choice.hops > 1:
        left = [row for row in selector.table(Position.MIDDLE).rows if row.id not in choice.avoid]
        parts.append(f"{len(left)} usable relays")
        if selector.constraints.distinct_subnets:
            parts.append(f"in {len({net for row in left for net in row.subnets})} subnets")
        systems = {asn for row in left for asn in row.asns}
        if systems:
            parts.append(f"in {len(systems)} autonomous systems, which must differ")
        operators = {row.operator for row in left if row.operator}
        if operators:
            parts.append(f"of {len(operators)} named operators, who must differ")
        if selector.constraints.distinct_families:
            parts.append("families must differ")
    for index, ids in choice.limits.items():
        left = [row for row in choice.tables[index].rows if row.id not in choice.avoid]
        parts.append(f"{len(left)} of {len(ids)} {'second ' if index else ''}guards usable")
    if selector.strict:
        parts.append("entry and exit in one country or bloc")
    if not finished:
        parts.append("the search was ended before all combinations were seen")
    relays = "1 relay" if choice.hops == 1 else f"{choice.hops} relays"
    return f"no path of {relays}: {', '.join(parts)}; nothing was relaxed"


def _about_exits(choice: Choice) -> list[str]:
    if not choice.exit_required:
        return []
    exits = choice.selector.table(choice.positions[-1], (None, False)).rows
    last = choice.hops - 1
    lasts = sum(choice.unsuited(row, last, {}) is None for row in choice.tables[last].rows)
    what = "single hops and the target" if choice.hops == 1 else "the target"
    port = "" if choice.target.port is None else f" (port {choice.target.port})"
    parts = [f"{len(exits)} usable exits, of which {lasts} allow {what}{port}"]
    if choice.selector.exits is not None:
        parts.append(f"{len(choice.selector.exits)} exits fit what the route allows")
    return parts
