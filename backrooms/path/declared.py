"""What relays say of who runs them, beside what can be seen: claims that do not fit, and kin that is not declared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from backrooms.path.roster import Candidate

MOST_NAMED = 3
"""Other relays that a note names; of more it tells how many."""


def notes(row: Candidate, relays: Mapping[bytes, Candidate]) -> list[str]:
    """Sentences about one relay. They are no verdict: a path keeps such relays apart where the rules say so."""
    others = [other for other in relays.values() if other.id != row.id]
    found = []
    claimed = [relays[one] for one in row.relay.family if one in relays and row.id not in relays[one].relay.family]
    if claimed:
        found.append(f"names {_names(claimed)} as its family, which {_do(claimed)} not name it")
    claiming = [one for one in others if row.id in one.relay.family and one.id not in row.relay.family]
    if claiming:
        found.append(f"is named as family by {_names(claiming)}, and does not name {_them(claiming)}")
    undeclared = [one for one in others if not _declared(row, one)]
    for what, same in (
        ("says that it is run by the operator of", [one for one in undeclared if row.operator == one.operator != ""]),
        ("gives the contact of", [one for one in undeclared if _contact(row) == _contact(one) != ""]),
        ("is in the /16 or /32 of", [one for one in undeclared if not row.subnets.isdisjoint(one.subnets)]),
        ("is in the AS of", [one for one in undeclared if not row.asns.isdisjoint(one.asns)]),
    ):
        if same:
            found.append(f"{what} {_names(same)}, without a family of both")
    countries = sorted({place.country for place in row.places if place.country})
    if len(countries) > 1:
        found.append(f"has addresses in {' and '.join(countries)}")
    systems = sorted({str(place) for place in row.places if place.asn or place.country})
    if systems:
        found.append(f"is, by the local table, in {'; '.join(systems)}")
    return found


def _declared(a: Candidate, b: Candidate) -> bool:
    return b.id in a.kin or not a.relay.family_keys.isdisjoint(b.relay.family_keys)


def _contact(row: Candidate) -> str:
    return " ".join(row.relay.certificate.facts.contact.casefold().split())


def _names(rows: Iterable[Candidate]) -> str:
    names = sorted(row.relay.nickname for row in rows)
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _do(rows: list[Candidate]) -> str:
    return "does" if len(rows) == 1 else "do"


def _them(rows: list[Candidate]) -> str:
    return "it" if len(rows) == 1 else "them"
