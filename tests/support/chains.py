"""Chains of certificates for which nobody ran: bodies as somebody wants them, signed by whoever is to sign."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from celluler.identity import Identity, seal
from celluler.learning.admission import make_admission
from celluler.learning.messages import (
    Body,
    Certificate,
    Invite,
    Mark,
    Part,
    Quorum,
    Vote,
    Vouch,
    places,
    record_hash,
    signature_of,
)
from celluler.learning.roster import ALL_ROLES, Role, RosterView
from celluler.learning.standing import Standing
from simulations.rounds import digest, identity
from simulations.rounds.cast import COORDINATOR, entry_of


@cache
def signer_of(peer: str) -> Identity:
    return next(identity(number) for number in range(100) if identity(number).peer_id == peer)


class Chain:
    """What was certified so far, and the standing after it."""

    def __init__(self, roster: RosterView) -> None:
        self.roster, self.standing = roster, Standing.of(roster)
        self.certificates: list[Certificate] = []

    def body(self, **changes: Any) -> Body:
        """One that every honest member would vote for, but for the changes. weightless: places given no weight."""
        standing, weightless = self.standing, changes.pop("weightless", ())
        members = changes.get("members", standing.senders)
        weights = tuple(int(place not in weightless) for place in places(members))
        used = (1 << len(weights)) - 1
        parts = () if standing.closing else (Part(digest("part"), 0, used, weights),) * self.roster.rules.parts
        before = standing.before
        given = {
            "round": standing.round, "prev": standing.prev, "set_hash": digest("set", standing.round),
            "members": members, "state_root": digest("state", standing.round), "parts": parts,
            "voted": 0 if before is None else before.voters,
        }  # fmt: skip
        return Body(**(given | changes))

    def certificate(self, body: Body, voters: Iterable[int] | None = None) -> Certificate:
        roster = self.standing.roster
        vote = Vote(roster.run, body.round, 0, 2, record_hash(body), 0)
        chosen = self.standing.electorate.places if voters is None else sorted(voters)
        marks = (Mark(one, signature_of(seal(signer_of(roster.members[one].peer), vote))) for one in chosen)
        return Certificate(roster.run, body, Quorum(0, tuple(marks)))

    def add(self, voters: Iterable[int] | None = None, **changes: Any) -> Standing:
        """One more height, held against what stands. Raises as `Standing.accept`."""
        certificate = self.certificate(self.body(**changes), voters)
        self.standing = self.standing.accept(certificate)
        self.certificates.append(certificate)
        return self.standing

    def until(self, round_number: int) -> Standing:
        while self.standing.round < round_number:
            self.add()
        return self.standing


def invite(roster: RosterView, number: int, *, by: int = COORDINATOR, expires_s: int = 1_000) -> bytes:
    return seal(identity(by), Invite(roster.run, identity(number).peer_id, expires_s))


def vouch(roster: RosterView, place: int, number: int) -> bytes:
    return seal(signer_of(roster.members[place].peer), Vouch(roster.run, identity(number).peer_id))


def application(roster: RosterView, number: int, *, roles: Role = ALL_ROLES, vouchers: Iterable[int] = ()) -> bytes:
    """A sealed admission of the peer with this number: invited, or vouched for by those at these places."""
    words = [vouch(roster, place, number) for place in vouchers]
    entry = seal(identity(number), entry_of(roster.run, number, roles))
    shown = None if words else invite(roster, number)
    return make_admission(roster, identity(number), entry, invite=shown, vouches=words)
