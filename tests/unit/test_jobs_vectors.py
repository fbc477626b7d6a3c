"""The bytes of /celluler/jobs/1 do not change by accident."""

from __future__ import annotations

from celluler.content.digest import digest_of
from celluler.identity import seal
from celluler.jobs.telemetry import RoundFigures, amounts
from celluler_protocols import jobs_messages as m
from celluler_protocols.jobs_orders import ChangeOrder, seal_cancel, seal_checkpoint
from tests.support.jobs import ALICE, BOB, NOW_S, sealed_order
from tests.support.vectors import check_vectors


def test_every_message_has_its_golden_bytes() -> None:
    job = digest_of(sealed_order())
    figures = (m.Figure("accuracy", 0.9375), m.Figure("loss", 0.25))
    outcome = m.Outcome("bob/digits:1.0.0", digest_of(b"m"), digest_of(b"w"), figures)
    facts = m.Facts(
        (ALICE.peer_id, BOB.peer_id),
        (m.Excluded(BOB.peer_id, 3, "far from the others"),),
        (m.Moved(ALICE.peer_id, 10, 20),),
        outcome,
    )
    told = RoundFigures(1, 2, 0.5, (0, 1), no_weight=(1,), norms=amounts({0: 0.5}), loss=0.25)
    events = (m.Event(1, float(NOW_S), 0, "", ()), m.Event(2, NOW_S + 0.5, 3, "", figures, told))
    listed = m.Listed(job, ALICE.peer_id, "digits", 1, "waiting for peers", float(NOW_S), NOW_S + 0.5, "c-1")
    check_vectors(
        "jobs",
        m.PROTOCOL_ID,
        m.frames(),
        [
            m.Submit(sealed_order()),
            m.Accepted(job),
            m.Offer(job, b"entry"),
            m.Offered(),
            m.RosterReady(job, b"roster"),
            m.RosterTaken(),
            m.Watch(job, 7, 1500),
            m.Events((), m.Facts()),
            m.Events(events, facts),
            m.Cancel(seal_cancel(ALICE, job, issued_s=NOW_S)),
            m.Cancelled(7),
            m.ListJobs(2**63),
            m.Listing((listed,)),
            m.Refused(6, "two jobs are running", 30),
            m.AskChain(job, 7),
            m.ChainTold(b"roster", 9, (b"link", b"another")),
            m.AskVouch(job, b"entry"),
            m.Vouched(b"vouch"),
            m.Apply(job, b"admission"),
            m.Applied(),
            m.AskState(job),
            m.StateTold(7, digest_of(b"s")),
            m.Checkpoint(seal_checkpoint(ALICE, job, issued_s=NOW_S)),
            m.Checkpointed(7, outcome),
            m.Change(seal(ALICE, ChangeOrder(job, NOW_S, NOW_S + 60, 8, None))),
            m.Changed(),
        ],
    )
