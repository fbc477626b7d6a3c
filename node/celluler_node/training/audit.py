"""Does an audit: gets what a member sent from its averager, and lets our own worker do the steps again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
import trio

from celluler.errors import WorkerFailed
from celluler.identity import short
from celluler.learning.effects import Audit
from celluler.learning.messages import Commit
from celluler.learning.roster import RosterView
from celluler_node.training.averaging import Averaging
from celluler_node.training.trainer import Trainer

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Audited:
    """deviations: of each part looked at; None when what the member sent was not to be had in time; nothing when our
    own worker could not do it, which says nothing of the member. sent: what it did send, by round, part after part."""

    deviations: tuple[float, ...] | None
    sent: Mapping[int, bytes] = field(default_factory=dict)


async def audit(effect: Audit, roster: RosterView, averaging: Averaging, trainer: Trainer) -> Audited:
    """Never raises for what others do or fail to do."""
    member = roster.members[effect.member]
    with trio.move_on_after(effect.within_s + roster.rules.train_ms / 1000), suppress(WorkerFailed):
        sent = await _inputs(effect, effect.round, effect.commit, roster, averaging, trainer)
        before: bytes | None = b""
        if sent is not None and effect.before is not None:
            before = await _inputs(effect, effect.round - 1, effect.before, roster, averaging, trainer)
        if sent is None or before is None:
            log.info("audit_not_served", member=short(member.peer), round=effect.round)
            return Audited(None)
        found = await trainer.replay(
            effect.round,
            effect.member,
            effect.parts,
            _exponents(effect.commit, effect.parts),
            sent,
            () if effect.before is None else _exponents(effect.before, effect.parts),
            before,
        )
        log.info(
            "audited", member=short(member.peer), round=effect.round, same=found.same, deviation=max(found.deviations)
        )
        return Audited(found.deviations, {effect.round: sent} | ({effect.round - 1: before} if before else {}))
    log.info("audit_not_done", member=short(member.peer), round=effect.round)
    return Audited(())


async def _inputs(
    effect: Audit, number: int, commit: Commit, roster: RosterView, averaging: Averaging, trainer: Trainer
) -> bytes | None:
    return await averaging.inputs(
        roster, effect.member, number, commit, effect.parts, trainer.dimension, effect.within_s / 2
    )


def _exponents(commit: Commit, parts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(commit.exponents[part] for part in parts)
