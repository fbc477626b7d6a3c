"""The golden bytes of /celluler/rounds/1 and of every signed message that travels in it."""

from __future__ import annotations

from dataclasses import replace

from celluler.identity import seal
from celluler.learning.audit_evidence import AuditEvidence, MomentumEvidence
from celluler.learning.audit_messages import Accuse, Conviction, Judgement, Verdict
from celluler.learning.messages import (
    Admission,
    Body,
    BodyProposal,
    Certificate,
    Commit,
    Entry,
    Equivocation,
    Fraud,
    Invite,
    Mark,
    Part,
    Quorum,
    Reduced,
    SetProposal,
    Status,
    Vote,
    Vouch,
    record_hash,
    set_hash,
    signature_of,
)
from celluler.learning.roster import Role, Roster, RosterEntry, rules_for
from celluler.wire import pack
from celluler_protocols.rounds_messages import PROTOCOL_ID, Absent, Have, Piece, Say, Talk, Want, frames
from simulations.rounds import identity
from tests.support.vectors import check_vectors

RUN, ROOT = b"\x11" * 32, b"\x22" * 32
ALICE, BOB, CAROL = identity(0), identity(1), identity(2)


def examples() -> list[object]:
    commit = Commit(RUN, 3, b"\x33" * 32, ROOT, (b"\x44" * 32, b"\x55" * 32), (-7, -1000), False)
    entries = (Entry(0, record_hash(commit)), Entry(2, b"\x66" * 32))
    part = Part(b"\x77" * 32, -9, 0b11, (1, 0))
    body = Body(3, b"\x33" * 32, set_hash(entries), 0b101, ROOT, (part, part))
    reduced = Reduced(RUN, 3, 1, set_hash(entries), 1, part)
    statement = signature_of(seal(BOB, reduced))
    vote = Vote(RUN, 3, 1, 2, record_hash(body), 0)
    quorum = Quorum(1, (Mark(0, signature_of(seal(ALICE, vote))), Mark(1, signature_of(seal(BOB, vote)))))
    entry = RosterEntry(RUN, identity(1000).peer_id, ("/ip4/127.0.0.1/tcp/4001",), "alice")
    late = seal(CAROL, replace(entry, averager=identity(1002).peer_id, roles=Role.WORKER, audit_class="cpu-1"))
    invite, vouch = Invite(RUN, CAROL.peer_id, 2_000_000_000), Vouch(RUN, CAROL.peer_id)
    word = Mark(0, signature_of(seal(ALICE, vouch)))
    admission = seal(CAROL, Admission(RUN, late, seal(ALICE, invite), (word,)))
    names = (record_hash(commit), b"\x66" * 32)
    accuse = Accuse(RUN, 3, 1, seal(BOB, commit), seal(BOB, replace(commit, round=2)), names, names, (0.25, 1e-6))
    verdict = Verdict(RUN, 3, 1, record_hash(commit), Judgement.GUILTY.value, 0.25)
    signed = [
        invite,
        vouch,
        Admission(RUN, late, None, (word,)),
        entry,
        Roster(RUN, b"\x88" * 32, (seal(ALICE, entry),), rules_for(1, rounds=10)),
        commit,
        SetProposal(RUN, 3, 1, entries, 0b100),
        reduced,
        BodyProposal(RUN, 3, 1, body, (statement, statement), None),
        BodyProposal(RUN, 3, 2, body, (), quorum),
        vote,
        Vote(RUN, 3, 1, 1, None, 0b10),
        Certificate(RUN, body, quorum),
        Certificate(RUN, replace(body, expelled=0b10), quorum),
        Certificate(RUN, replace(body, suspended=0b100, voted=0b11, admitted=(admission,)), quorum),
        Status(RUN, 3, 1, 0, 17, False, 0b101, True, False, 0b10, 0b1, 0, 0b111, entries, True, 0b10, 0b100),
        Equivocation(RUN, 3, seal(BOB, vote), seal(BOB, replace(vote, body=None))),
        Fraud(RUN, 3, seal(BOB, reduced), entries),
        accuse,
        replace(accuse, deviations=()),
        verdict,
        Conviction(RUN, 3, "audit", pack(AuditEvidence(RUN, seal(ALICE, accuse), (seal(ALICE, verdict),)))),
        Conviction(RUN, 3, "momentum", pack(MomentumEvidence(RUN, seal(BOB, commit), None))),
    ]
    sayings: list[object] = [Say(seal(ALICE, record)) for record in signed]
    return [Talk(RUN), *sayings, Want(RUN, ROOT), Have(5), Piece(b"hello"), Absent()]


def test_every_message_has_its_golden_bytes() -> None:
    check_vectors("rounds", PROTOCOL_ID, frames(), examples())
