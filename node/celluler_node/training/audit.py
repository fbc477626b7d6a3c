"""Does an audit: gets what a member sent from its averager, and lets our own worker do the steps again."""

from __future__ import annotations

from contextlib import suppress

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


async def audit(effect: Audit, roster: RosterView, averaging: Averaging, trainer: Trainer) -> tuple[float, ...] | None:
    """The deviation of each of its parts; None when what the member sent was not to be had in time; nothing when our
    own worker could not do it, which says nothing of the member."""
    member = roster.members[effect.member]
    with trio.move_on_after(effect.within_s + roster.rules.train_ms / 1000), suppress(WorkerFailed):
        sent = await _inputs(effect, effect.round, effect.commit, roster, averaging, trainer)
        before: bytes | None = b""
        if sent is not None and effect.before is not None:
            before = await _inputs(effect, effect.round - 1, effect.before, roster, averaging, trainer)
        if sent is None or before is None:
            log.info("audit_not_served", member=short(member.peer), round=effect.round)
            return None
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
        return found.deviations
    log.info("audit_not_done", member=short(member.peer), round=effect.round)
    return ()


async def _inputs(
    effect: Audit, number: int, commit: Commit, roster: RosterView, averaging: Averaging, trainer: Trainer
) -> bytes | None:
    return await averaging.inputs(
        roster, effect.member, number, commit, effect.parts, trainer.dimension, effect.within_s / 2
    )


def _exponents(commit: Commit, parts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(commit.exponents[part] for part in parts)
