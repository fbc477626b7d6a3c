"""Golden bytes of a transcript: small enough to read, and verified like any other but for the training."""

from __future__ import annotations

import io
import json
import os

from celluler.identity import seal
from celluler.learning.messages import (
    Body,
    Certificate,
    Commit,
    Entry,
    Mark,
    Part,
    Quorum,
    Reduced,
    SetProposal,
    Vote,
    record_hash,
    set_hash,
    signature_of,
)
from celluler.learning.roster import RosterEntry, RosterView, open_roster, rules_for, seal_roster
from celluler.learning.transcript import Opening, Signatures, Transcript, TranscriptWriter
from celluler.learning.verify import Archive
from celluler_node.verifying.arithmetic import IntegerArithmetic
from simulations.rounds import identity
from tests.support.vectors import FOLDER

ALICE, JOB, START, END = identity(0), b"\x11" * 32, b"\x22" * 32, b"\x33" * 32
EXPONENTS, WIRE = (-7, -9), (bytes.fromhex("0040fbff"), bytes.fromhex("ff7f"))  # 16384, -5 | 32767
MATHS = IntegerArithmetic()


def roster() -> RosterView:
    entry = RosterEntry(JOB, identity(1000).peer_id, ("/ip4/127.0.0.1/tcp/4001",), "alice")
    rules = rules_for(1, rounds=1, parts=2)
    return open_roster(seal_roster(ALICE, run=JOB, job=JOB, entries=(seal(ALICE, entry),), rules=rules), ALICE.peer_id)


def certified(view: RosterView, body: Body) -> Certificate:
    vote = Vote(JOB, body.round, 0, 2, record_hash(body), 0)
    return Certificate(JOB, body, Quorum(0, (Mark(0, signature_of(seal(ALICE, vote))),)))


def written(view: RosterView) -> bytes:
    """One member, one round, an update of three values in two parts; its mean is itself."""
    file = io.BytesIO()
    writer = TranscriptWriter(file, Opening(b"order", b"base", view.raw, 3), parts=2)
    hashes = tuple(
        MATHS.part_hash(JOB, 0, ALICE.public_key, part=part, exponent=EXPONENTS[part], mantissas=WIRE[part])
        for part in range(2)
    )
    commit = Commit(JOB, 0, view.digest, START, hashes, EXPONENTS, True)
    entries = (Entry(0, record_hash(commit)),)
    aggregate, parts = {}, []
    for part in range(2):
        exponent, mantissas, weights = MATHS.reduce(view.rules.rule, 0, EXPONENTS[part : part + 1], [WIRE[part]])
        digest = MATHS.reduced_digest(
            JOB, 0, set_hash(entries), part=part, exponent=exponent, used=1, weights=weights, mantissas=mantissas
        )
        aggregate[part] = mantissas
        parts.append(Part(digest, exponent, 1, weights))
    body = Body(0, view.digest, set_hash(entries), 1, START, tuple(parts))
    statements = tuple(seal(ALICE, Reduced(JOB, 0, 0, set_hash(entries), part, parts[part])) for part in range(2))
    signed = Signatures((seal(ALICE, commit),), seal(ALICE, SetProposal(JOB, 0, 0, entries, 0)), statements)
    writer.add(certified(view, body), signed, aggregate=aggregate, wires={0: dict(enumerate(WIRE))})
    last = Commit(JOB, 1, record_hash(body), END, (), (), False)
    closing = Body(1, record_hash(body), set_hash((Entry(0, record_hash(last)),)), 1, END, ())
    writer.add(certified(view, closing), Signatures((seal(ALICE, last),)))
    return file.getvalue()


def test_a_transcript_is_as_its_golden_bytes_and_verifies() -> None:
    view = roster()
    path = FOLDER / "transcript.json"
    golden = {
        "format": "transcript 1",
        "dimension": 3,
        "parts": 2,
        "rounds": 1,
        "members": [ALICE.peer_id],
        "final_state_root": END.hex(),
        "file": written(view).hex(),
    }
    if os.environ.get("CELLULER_WRITE_VECTORS"):
        path.write_text(json.dumps(golden, indent=1) + "\n")
    assert json.loads(path.read_text()) == golden
    transcript = Transcript(io.BytesIO(bytes.fromhex(golden["file"])))  # type: ignore[arg-type]
    archive = Archive([transcript], view, MATHS)
    links = list(archive.walk())
    assert archive.complete
    assert links[-1].body.state_root == END
    found = archive.examine(links[0])
    assert (found.updates, found.parts, found.reduced) == ((0,), 2, 2)
