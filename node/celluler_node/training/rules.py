"""The rules of a run, as its job's order asks for them: what the coordinator signs, and what a stranger compares.

The clocks are the coordinator's to choose; everything else follows from the order and from who takes part.
"""

from __future__ import annotations

from celluler.learning.roster import RoundRules, rules_for
from celluler_protocols.jobs_orders import OpenedOrder

DELTA_MS = 5_000
EXCHANGE_MS = 15_000
TRAIN_MS = 600_000
STALL_MS = 45_000


def rules_of(
    order: OpenedOrder,
    members: int,
    voters: int,
    *,
    delta_ms: int = DELTA_MS,
    exchange_ms: int = EXCHANGE_MS,
    train_ms: int = TRAIN_MS,
    stall_ms: int = STALL_MS,
) -> RoundRules:
    """voters: those of the members that have a vote. Raises LocalError for a group that no member would accept."""
    spec, train = order.spec, order.spec.train
    return rules_for(
        members,
        voters=voters,
        rounds=train.rounds,
        rule=spec.rule,
        iid=spec.data.partition == "iid",
        parts=train.parts,
        topology="mesh" if train.consensus == "gossip" else train.topology,
        audits=round(1000 * train.audits),
        tolerance=train.tolerance,
        probation=spec.admission.probation,
        suspension=spec.admission.suspension,
        inviter=order.submitter,
        delta_ms=delta_ms,
        exchange_ms=exchange_ms,
        train_ms=train_ms,
        stall_ms=stall_ms,
    )
