"""Who plays: keys, rosters and the states of the model world. The same every time, so that signatures are made once."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Any

from celluler.identity import Identity, seal
from celluler.learning.roster import ALL_ROLES, Role, RosterEntry, RosterView, open_roster, rules_for, seal_roster

COORDINATOR, AVERAGERS = 999, 1000
"""Numbers of keys that are no members'; an averager's is AVERAGERS more than its member's."""


def digest(*pieces: Any) -> bytes:
    return blake2b(repr(pieces).encode(), digest_size=32).digest()


GENESIS = blake2b(b"state before round 0", digest_size=32).digest()


@lru_cache(maxsize=256)
def identity(number: int) -> Identity:
    return Identity(digest("identity", number))


@lru_cache(maxsize=64)
def roster_of(
    size: int,
    rounds: int,
    parts: int,
    stall_ms: int = 600_000,
    *,
    topology: str = "mesh",
    roles: tuple[Role, ...] = (),
    probation: int = 32,
    suspension: int = 32,
) -> RosterView:
    """A roster of `size` members, cached: its signatures are not what a schedule is about.

    roles: by place; all of them for everybody unless given.
    """
    more = (topology, roles, probation, suspension)
    run = digest("run", size, rounds, parts, *(() if more == ("mesh", (), 32, 32) else more))
    numbers = sorted(range(size), key=lambda number: identity(number).public_key)
    given = roles or (ALL_ROLES,) * size
    entries = [seal(identity(number), entry_of(run, number, role)) for number, role in zip(numbers, given, strict=True)]
    rules = rules_for(
        size, rounds=rounds, parts=parts, voters=sum(Role.VALIDATOR in role for role in given), topology=topology,
        delta_ms=2_000, exchange_ms=3_000, train_ms=30_000, stall_ms=stall_ms, probation=probation,
        suspension=suspension,
    )  # fmt: skip
    raw = seal_roster(identity(COORDINATOR), run=run, job=digest("job"), entries=tuple(entries), rules=rules)
    return open_roster(raw, identity(COORDINATOR).peer_id)


def entry_of(run: bytes, number: int, roles: Role = ALL_ROLES) -> RosterEntry:
    """What somebody offers itself with."""
    averager = identity(AVERAGERS + number).peer_id
    return RosterEntry(run, averager, ("/ip4/127.0.0.1/tcp/1",), f"peer-{number}", roles)


@lru_cache(maxsize=64)
def signers_of(size: int) -> dict[str, Identity]:
    return {identity(number).peer_id: identity(number) for number in range(size)}
