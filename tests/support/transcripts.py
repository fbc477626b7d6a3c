"""Small real runs in one process, written down as their members would: real machines, real training, the real rule."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.aggregation.digests import mantissas_of, part_hash, reduced_digest
from celluler.aggregation.q16 import decode_parts, part_slices
from celluler.aggregation.rules import rule_named
from celluler.aggregation.wires import round_to
from celluler.content.digest import Codec, cid_of, digest_of
from celluler.content.manifest import describe
from celluler.engines.config import TrainConfig
from celluler.engines.data import load_dataset
from celluler.engines.train import Trainer
from celluler.identity import PeerId, public_key_of, seal
from celluler.jobs.spec import check_job
from celluler.learning.effects import Apply, Exchange, Finished, Send, Train
from celluler.learning.messages import Part
from celluler.learning.roster import RosterEntry, RosterView, bad_updates, open_roster, seal_roster
from celluler.learning.run import Run
from celluler.learning.transcript import Opening, Signatures, TranscriptWriter, signatures_of
from celluler.models.manifest import OpenedManifest, describe_model, open_manifest, seal_manifest
from celluler.models.spec import parse_spec
from celluler.models.weights import initial_weights, load_vector
from celluler_node.processes.worker_wire import encode_update
from celluler_node.training.rules import rules_of
from celluler_protocols.jobs_orders import open_order, seal_order
from simulations.rounds import identity
from tests.support.specs import RELU, as_bytes, dense, digits, save_tensors

SPEC = {
    "spec": 1,
    "input": {"dtype": "float32", "shape": [64]},
    "layers": [dense(16), RELU, dense(10)],
    "objective": {"kind": "classification", "classes": 10},
}
ARCHITECTURE = parse_spec(as_bytes(SPEC))
SUBMITTER, AUTHOR, COORDINATOR = identity(700), identity(701), identity(0)
STEPS, BATCH = 8, 16

Wire = tuple[tuple[int, ...], bytes]
Update = Callable[["Member", int, bool], npt.NDArray[np.float32]]
"""(member, round, fresh) → what it sends; an honest one trains."""


def honest(member: Member, number: int, fresh: bool) -> npt.NDArray[np.float32]:
    return member.trainer.train(number, fresh=fresh)[0]


@dataclass(eq=False)
class Member:
    """One member's half: its machine, its trainer, and what it keeps for the transcript."""

    place: int
    run: Run
    trainer: Trainer
    lazy: Trainer
    """Takes half of the steps."""
    misled: Trainer
    """Trains on other labels."""
    writer: TranscriptWriter
    world: World
    wires: dict[int, Wire] = field(default_factory=dict)
    aggregates: dict[bytes, bytes] = field(default_factory=dict)
    """By digest."""
    finished: bool = False


@dataclass(eq=False)
class World:
    members: list[Member]
    roster: RosterView
    bent: bool = False
    wire: str = "q16"
    queue: deque[tuple[PeerId, PeerId, bytes]] = field(default_factory=deque)
    now: float = 0.0


@dataclass(frozen=True)
class Played:
    """transcripts: one a member, each with the updates of that member only."""

    folder: Path
    transcripts: tuple[Path, ...]
    roster: RosterView
    weights: Path
    data: Path
    result: Path
    opening: Opening

    def model(self, **changes: Any) -> OpenedManifest:
        """The model as a member would publish it."""
        values: dict[str, Any] = {
            "weights": describe(self.result, "model").root,
            "parents": (digest_of(self.opening.base),),
            "job": digest_of(self.opening.order),
            **changes,
        }
        spec = values.pop("spec", as_bytes(SPEC))
        record = describe_model("digits", "1.0.0", spec, values.pop("weights"), created_s=1, **values)
        return open_manifest(seal_manifest(AUTHOR, record))


def play(
    folder: Path,
    *,
    size: int = 4,
    rounds: int = 3,
    updates: Mapping[int, Update] | None = None,
    partition: str = "iid",
    bent: bool = False,
    wire: str = "q16",
) -> Played:
    """Let so many members train. updates: who sends something else than its work. bent: part 0 is not what the rule
    gives, and nobody minds."""
    x, y = digits()
    weights, data, wrong = folder / "weights", folder / "data", folder / "wrong"
    initial_weights(ARCHITECTURE, b"s" * 32, weights)
    save_tensors(data, {"x": x[:400], "y": y[:400]})
    save_tensors(wrong, {"x": x[:400], "y": (y[:400] + 1) % 10})
    base = seal_manifest(
        AUTHOR, describe_model("base", "0.1.0", as_bytes(SPEC), describe(weights, "model").root, created_s=1)
    )
    order = _order(base, data, size, rounds, partition, wire)
    roster = _roster(order, size)
    opening = Opening(order, base, roster.raw, ARCHITECTURE.dimension)
    world = World([], roster, bent, wire)
    paths = tuple(folder / f"transcript-{place}" for place in range(size))

    def trainer(place: int, samples: Path, steps: int = STEPS) -> Trainer:
        config = TrainConfig(
            run=roster.run, index=place, members=size, inner_steps=steps, batch=BATCH, learning_rate=0.2,
            optimizer="sgd", partition=partition,
        )  # fmt: skip
        return Trainer(ARCHITECTURE, load_vector(ARCHITECTURE, weights), load_dataset(ARCHITECTURE, samples), config)

    files = [path.open("wb") for path in paths]
    for place, file in enumerate(files):
        own = trainer(place, data)
        signer = next(identity(n) for n in range(size) if identity(n).peer_id == roster.members[place].peer)
        run = Run(roster, signer, state_root=own.state_root())
        writer = TranscriptWriter(file, opening, parts=roster.rules.parts)
        world.members.append(
            Member(place, run, own, trainer(place, data, STEPS // 2), trainer(place, wrong), writer, world)
        )
    _conduct(world, updates or {})
    for file in files:
        file.close()
    result = folder / "result"
    world.members[0].trainer.export(result)
    return Played(folder, paths, roster, weights, data, result, opening)


def _order(base: bytes, data: Path, size: int, rounds: int, partition: str, wire: str) -> bytes:
    spec = check_job(
        {
            "apiVersion": "celluler/v1",
            "kind": "TrainJob",
            "name": "digits",
            "model": cid_of(digest_of(base)),
            "data": {"cid": cid_of(describe(data, "dataset").root, Codec.MANIFEST), "partition": partition},
            "train": {
                "inner_steps": STEPS, "rounds": rounds, "batch": BATCH, "learning_rate": 0.2, "optimizer": "sgd",
                "wire": wire,
            },
            "resources": {"peers": {"min": size, "max": size}},
        }
    )  # fmt: skip
    return seal_order(
        SUBMITTER, spec, client_id="c", coordinator=COORDINATOR.peer_id, model=digest_of(base),
        created_s=1, expires_s=1000,
    )  # fmt: skip


def _roster(order: bytes, size: int) -> RosterView:
    job = digest_of(order)
    entries = tuple(
        seal(identity(n), RosterEntry(job, identity(1000 + n).peer_id, (), f"peer-{n}", audit_class="cpu"))
        for n in range(size)
    )
    rules = rules_of(open_order(order), size, size, delta_ms=2000, exchange_ms=3000)
    return open_roster(seal_roster(COORDINATOR, run=job, job=job, entries=entries, rules=rules), COORDINATOR.peer_id)


# --- one member after the other ---------------------------------------------------------------------------------


def _conduct(world: World, updates: Mapping[int, Update]) -> None:
    for member in world.members:
        _perform(member, member.run.start(world.now), updates)
    places = {member.run.roster.members[member.place].peer: member for member in world.members}
    while not all(member.finished for member in world.members):
        if world.queue:
            sender, to, data = world.queue.popleft()
            _perform(places[to], places[to].run.receive(sender, data, world.now), updates)
            continue
        due = {member.place: member.run.next_deadline() for member in world.members}
        world.now = min(time for time in due.values() if time is not None)
        assert world.now < 600, "the run does not finish"
        for member in world.members:
            _perform(member, member.run.tick(world.now), updates)


def _perform(member: Member, effects: tuple[Any, ...], updates: Mapping[int, Update]) -> None:
    peers = [one.peer for one in member.run.roster.members]
    me = peers[member.place]
    for effect in effects:
        more: tuple[Any, ...] = ()
        match effect:
            case Send(to, data, skip):
                chosen = [to] if to is not None else [peer for peer in peers if peer != me and peer not in skip]
                member.world.queue.extend((me, peer, data) for peer in chosen)
            case Train(number, fresh):
                more = _train(member, number, fresh, updates.get(member.place, honest))
            case Exchange():
                more = member.run.exchanged(effect.round, effect.view, _exchange(member, effect), member.world.now)
            case Apply():
                more = _apply(member, effect)
            case Finished(certificate):
                member.finished = True
                member.writer.add(certificate, _signatures(member))
        _perform(member, more, updates)


def _train(member: Member, number: int, fresh: bool, update: Update) -> tuple[Any, ...]:
    values = update(member, number, fresh)
    run, roster = member.run, member.run.roster
    exponents, mantissas = encode_update(values, roster.rules.parts, member.world.wire)
    for trainer in (member.trainer, member.lazy, member.misled):
        trainer.sent(number, decode_parts(exponents, mantissas))
    member.wires[number] = exponents, mantissas.tobytes()
    author = public_key_of(roster.members[member.place].peer)
    hashes = tuple(
        part_hash(roster.run, number, author, part=part, exponent=exponents[part], mantissas=mantissas[piece])
        for part, piece in enumerate(pieces_of(roster))
    )
    return run.trained(number, hashes, exponents, member.trainer.state_root(), member.world.now)


def pieces_of(roster: RosterView) -> tuple[slice, ...]:
    return part_slices(ARCHITECTURE.dimension, roster.rules.parts)


def _exchange(member: Member, effect: Exchange) -> list[Part]:
    rules, results = member.run.roster.rules, []
    for part, piece in enumerate(pieces_of(member.run.roster)):
        wires = [member.world.members[place].wires[effect.round] for place in effect.members]
        f = bad_updates(len(wires), iid=rules.iid)
        rows = np.stack([mantissas_of(mantissas)[piece] for _, mantissas in wires])
        found = rule_named(rules.rule)(np.array([e[part] for e, _ in wires], np.int16), rows, f)
        reduced = replace(found, mantissas=round_to(member.world.wire, found.mantissas))
        if member.world.bent and part == 0:
            reduced.mantissas[0] ^= 1
        used = (1 << len(wires)) - 1
        digest = reduced_digest(
            member.run.roster.run, effect.round, effect.set_hash, part=part, exponent=reduced.exponent, used=used,
            weights=reduced.weights, mantissas=reduced.mantissas,
        )  # fmt: skip
        member.aggregates[digest] = reduced.mantissas.tobytes()
        results.append(Part(digest, reduced.exponent, used, reduced.weights))
    return results


def _apply(member: Member, effect: Apply) -> tuple[Any, ...]:
    pieces = [member.aggregates[part.digest] for part in effect.parts]
    exponents = tuple(part.exponent for part in effect.parts)
    for trainer in (member.trainer, member.lazy, member.misled):
        trainer.apply(effect.round, decode_parts(exponents, mantissas_of(b"".join(pieces))))
    member.writer.add(
        member.run.certificates[effect.round],
        _signatures(member),
        aggregate=dict(enumerate(pieces)),
        wires={member.place: own_pieces(member, effect.round)},
    )
    return member.run.applied(effect.round, member.trainer.state_root(), member.world.now)


def own_pieces(member: Member, number: int) -> dict[int, bytes]:
    whole = member.wires[number][1]
    return {part: whole[2 * piece.start : 2 * piece.stop] for part, piece in enumerate(pieces_of(member.run.roster))}


def _signatures(member: Member) -> Signatures:
    height = member.run._at
    assert height.certificate is not None
    return signatures_of(height._ledger, height.certificate.body)
