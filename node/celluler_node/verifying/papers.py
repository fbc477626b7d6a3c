"""What a run was about: the job, the model it began from and the roster, each signed, each naming the next.

Knows nothing of what happened in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from celluler.content.digest import Digest, digest_of
from celluler.errors import ProtocolViolation
from celluler.jobs.checkpoints import SUFFIX, rounds_in
from celluler.learning.roster import Role, RosterView, RoundRules, open_roster
from celluler.learning.transcript import Opening
from celluler.models.manifest import OpenedManifest, open_manifest
from celluler_node.training.rules import rules_of
from celluler_node.verifying.arithmetic import IntegerArithmetic
from celluler_protocols.jobs_orders import OpenedOrder, open_order


@dataclass(frozen=True, slots=True)
class Papers:
    """What a run was about, as far as signatures tie it together."""

    order: OpenedOrder
    base: OpenedManifest
    roster: RosterView

    @property
    def arithmetic(self) -> IntegerArithmetic:
        """By which its aggregates were made."""
        return IntegerArithmetic(self.order.spec.train.wire)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a published model says of itself. body, spec: the kind of what it computes, and its document as
    parsed from JSON. rounds: how many are in it; None for all that there are, which is what a checkpoint has not."""

    job: Digest | None
    parents: tuple[bytes, ...]
    weights: Digest
    body: str
    spec: Any
    rounds: int | None = None


def claim_of(model: OpenedManifest) -> Claim:
    record = model.record
    job = None if record.job is None else Digest(record.job)
    rounds = rounds_claimed(record.name, record.version)
    return Claim(job, record.parents, Digest(record.weights), record.body, json.loads(record.spec), rounds)


def rounds_claimed(name: str, version: str) -> int | None:
    """Of a model that is a checkpoint by its name and version, after how many rounds."""
    return rounds_in(version) if name.endswith(SUFFIX) else None


def open_papers(opening: Opening, model: Claim | None) -> Papers:
    """Order, base model and roster, each signed, each naming the next. Raises PeerViolation when they do not."""
    order, base = open_order(opening.order), open_manifest(opening.base)
    roster = open_roster(opening.roster, order.signed.record.coordinator)
    if digest_of(opening.base) != order.signed.record.model:
        raise ProtocolViolation("the run did not begin from the model that its job names")
    if roster.job != order.job or roster.run != order.job:
        raise ProtocolViolation("the roster is of another job")
    if opening.dimension != base.architecture.dimension:
        raise ProtocolViolation(f"updates of {opening.dimension} values for {base.architecture.dimension} parameters")
    _check_rules(order, roster)
    if model is not None:
        if model.job != order.job:
            raise ProtocolViolation("the model names another job than this run's")
        body = base.record.body, json.loads(base.record.spec)
        if base.digest not in model.parents or (model.body, model.spec) != body:
            raise ProtocolViolation("the model is not the one that the run began from, trained further")
    return Papers(order, base, roster)


def _check_rules(order: OpenedOrder, roster: RosterView) -> None:
    """The coordinator wrote the rules into the roster; they must be those that the job asks for, but for its clocks."""
    rules, voters = roster.rules, sum(Role.VALIDATOR in member.roles for member in roster.members)
    clocks = {name: getattr(rules, name) for name in ("delta_ms", "exchange_ms", "train_ms", "stall_ms")}
    wanted = rules_of(order, len(roster), voters, **clocks)
    for field in fields(RoundRules):
        said, asked = getattr(rules, field.name), getattr(wanted, field.name)
        if said != asked:
            raise ProtocolViolation(f"the run went by {field.name} {said}; the job says {asked}")
