"""Members of an audited run that skip their work, accuse falsely, lie about what they found, or hide it.

With the chain that they share, as it was certified, and the truth about who trained. A liar is an honest member whose
words are changed on their way out, and who has some of its own in every round.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from celluler.identity import Identity, seal
from celluler.learning.audit_messages import Accuse, Conviction, Judgement, Verdict
from celluler.learning.messages import Body, Commit, Entry, mask, open_message, record_hash, set_hash
from celluler.learning.roster import (
    Electorate,
    RosterEntry,
    RosterView,
    open_roster,
    rules_for,
    seal_roster,
)

PARTS = 2
TOLERANCE = 1e-3


def digest(*pieces: Any) -> bytes:
    return blake2b(repr(pieces).encode(), digest_size=32).digest()


@lru_cache(maxsize=256)
def identity(number: int) -> Identity:
    return Identity(digest("audit identity", number))


@lru_cache(maxsize=64)
def roster_of(size: int, audits: int, classes: tuple[str, ...] = ()) -> RosterView:
    """classes: of the members in the order of their numbers, all alike unless given."""
    run = digest("audited run", size)
    entries = []
    for number in range(size):
        name = classes[number] if classes else "cpu"
        entry = RosterEntry(run, identity(1000 + number).peer_id, (), f"peer-{number}", audit_class=name)
        entries.append(seal(identity(number), entry))
    rules = rules_for(
        size, rounds=1024, parts=PARTS, delta_ms=2_000, exchange_ms=3_000, train_ms=4_000, audits=audits,
        tolerance=TOLERANCE,
    )  # fmt: skip
    raw = seal_roster(identity(999), run=run, job=digest("job"), entries=tuple(entries), rules=rules)
    return open_roster(raw, identity(999).peer_id)


@lru_cache(maxsize=64)
def keys_of(roster: RosterView) -> tuple[Identity, ...]:
    """By place."""
    by_peer = {identity(number).peer_id: identity(number) for number in range(len(roster))}
    return tuple(by_peer[member.peer] for member in roster.members)


# --- the shared chain ---------------------------------------------------------------------------------------------


class Chain:
    """Rounds as they were certified. lazy: (round, member) whose update is not what its steps give."""

    def __init__(self, roster: RosterView, seed: int) -> None:
        self.roster, self.seed = roster, seed
        self.bodies: list[Body] = []
        self.electorates: list[Electorate] = []
        self.commits: list[dict[int, bytes]] = []
        self.off: dict[tuple[int, int], float] = {}
        self._electorate = Electorate(roster)

    def extend(self, inside: Iterable[int], odd: Iterable[int], off: dict[int, float], expelled: int) -> None:
        """The next round. inside: members of its set; odd: those of them that lie about their momentum."""
        number, odd = len(self.bodies), set(odd)
        prev = record_hash(self.bodies[-1]) if self.bodies else self.roster.digest
        last = self.bodies[-1].members if self.bodies else 0
        raws, entries = {}, []
        for member in sorted(inside):
            hashes = tuple(digest(self.seed, number, member, part) for part in range(PARTS))
            fresh = (not last >> member & 1) is not (member in odd)
            commit = Commit(self.roster.run, number, prev, digest("root", number), hashes, (0,) * PARTS, fresh)
            raws[member] = seal(keys_of(self.roster)[member], commit)
            entries.append(Entry(member, record_hash(commit)))
        self.off |= {(number, member): deviation for member, deviation in off.items()}
        names = set_hash(tuple(entries))
        self.bodies.append(Body(number, prev, names, mask(raws), digest("root", number), (), expelled))
        self.commits.append(raws)
        self.electorates.append(self._electorate)
        self._electorate = replace(self._electorate, expelled=self._electorate.expelled | expelled)

    def deviation(self, number: int, member: int, by: int) -> float:
        """What a replay gives: the same to within a little for all."""
        jitter = digest(self.seed, number, member, by)[0] / 255
        return self.off.get((number, member), 1e-5) * (1 + 2e-2 * jitter)


# --- members ------------------------------------------------------------------------------------------------------


class Honest:
    """Trains, serves, and says what its machine says."""

    lazy = 0.0
    """How often its update is not what its steps give."""
    off = 0.3
    odd_momentum = False

    def __init__(self, place: int, chain: Chain, rng: random.Random) -> None:
        self.place, self.chain, self.rng = place, chain, rng
        self.roster, self.key = chain.roster, keys_of(chain.roster)[place]

    def serves(self, place: int) -> bool:
        return True

    def say(self, to: Sequence[int], raw: bytes) -> Iterable[tuple[int, bytes]]:
        return [(place, raw) for place in to]

    def deeds(self) -> Iterable[tuple[int, bytes]]:
        """What it says of its own accord in a round."""
        return ()

    @property
    def others(self) -> list[int]:
        return [place for place in range(len(self.roster)) if place != self.place]

    def to_all(self, record: Any) -> list[tuple[int, bytes]]:
        raw = seal(self.key, record)
        return [(place, raw) for place in self.others]

    def accusation(self, number: int, target: int, deviations: tuple[float, ...]) -> Accuse | None:
        """One whose form is right."""
        chain = self.chain
        if not 0 <= number < len(chain.bodies) or target not in chain.commits[number]:
            return None
        raw = chain.commits[number][target]
        carries = not open_message(raw).record.fresh
        before = chain.commits[number - 1].get(target) if carries and number else None
        names = [tuple(record_hash(open_message(one).record) for one in c.values()) for c in chain.commits]
        inside_before = names[number - 1] if before is not None else ()
        return Accuse(self.roster.run, number, target, raw, before, names[number], inside_before, deviations)


class Lazy(Honest):
    lazy = 1.0


class SometimesLazy(Honest):
    lazy = 0.3


class LazyAndHiding(Lazy):
    """Does not work, and gives what it sent to nobody."""

    def serves(self, place: int) -> bool:
        return False


class LazyAndPicky(Lazy):
    """Does not work, and gives what it sent to some only."""

    def serves(self, place: int) -> bool:
        return place % 2 == 0


class AtTheBorder(Lazy):
    """Lies so near the tolerance that some find it above and others below."""

    off = TOLERANCE * 0.99


class FalseMomentum(Honest):
    odd_momentum = True


class AccusesFalsely(Honest):
    """Says of others that they did not work."""

    def deeds(self) -> Iterable[tuple[int, bytes]]:
        record = self.accusation(len(self.chain.bodies) - 1, self.rng.choice(self.others), (0.7,) * PARTS)
        return [] if record is None else self.to_all(record)


class CriesUnserved(Honest):
    """Says of others that they serve nothing."""

    def deeds(self) -> Iterable[tuple[int, bytes]]:
        record = self.accusation(len(self.chain.bodies) - 1, self.rng.choice(self.others), ())
        return [] if record is None else self.to_all(record)


class Floods(Honest):
    """Accuses everybody of everything: rounds long gone and to come, itself, strangers, sets that never were."""

    def deeds(self) -> Iterable[tuple[int, bytes]]:
        words: list[tuple[int, bytes]] = []
        here = len(self.chain.bodies) - 1
        for number in (here, here - 1, here - 6):
            for target in range(len(self.roster)):
                record = self.accusation(number, target, (0.7,) * PARTS)
                if record is not None:
                    words += self.to_all(self.rng.choice((record, self._twisted(record))))
        return self.rng.sample(words, min(len(words), 40))

    def _twisted(self, record: Accuse) -> Accuse:
        return self.rng.choice((
            replace(record, round=record.round + 3),
            replace(record, target=63),
            replace(record, target=self.place),
            replace(record, inside=record.inside[1:]),
            replace(record, inside=(digest("no commit"), *record.inside[1:])),
            replace(record, deviations=(0.1,)),
            replace(record, deviations=(1e-9,) * PARTS),
            replace(record, before=None, inside_before=()),
            replace(record, commit=record.commit[:-1]),
        ))  # fmt: skip


class Perjurer(Honest):
    """Says guilty of everybody whom anybody accuses, and of some whom nobody does."""

    judgement = Judgement.GUILTY

    def say(self, to: Sequence[int], raw: bytes) -> Iterable[tuple[int, bytes]]:
        signed = open_message(raw)
        words = [(place, raw) for place in to]
        if signed.signer == self.key.peer_id and isinstance(signed.record, Verdict):
            return [(place, seal(self.key, self.lie(signed.record))) for place in to]
        return words

    def lie(self, record: Verdict) -> Verdict:
        found = {Judgement.GUILTY: 0.5, Judgement.INNOCENT: 0.0, Judgement.UNSERVED: 0.0}[self.judgement]
        return replace(record, judgement=self.judgement.value, deviation=found)

    def deeds(self) -> Iterable[tuple[int, bytes]]:
        number, target = len(self.chain.bodies) - 1, self.rng.choice(self.others)
        if target not in self.chain.commits[number]:
            return []
        name = record_hash(open_message(self.chain.commits[number][target]).record)
        return self.to_all(self.lie(Verdict(self.roster.run, number, target, name, Judgement.GUILTY.value, 0.5)))


class Conspirator(Perjurer, AccusesFalsely):
    """Accuses falsely and supports whoever accuses."""

    def deeds(self) -> Iterable[tuple[int, bytes]]:
        return [*AccusesFalsely.deeds(self), *Perjurer.deeds(self)]


class Defender(Perjurer):
    """Finds everybody innocent."""

    judgement = Judgement.INNOCENT


class TwoTongues(Perjurer):
    """Guilty to some, innocent to others, of the same update."""

    def say(self, to: Sequence[int], raw: bytes) -> Iterable[tuple[int, bytes]]:
        signed = open_message(raw)
        if signed.signer != self.key.peer_id or not isinstance(signed.record, Verdict):
            return [(place, raw) for place in to]
        pro = replace(signed.record, judgement=Judgement.INNOCENT.value, deviation=0.0)
        return [(place, seal(self.key, pro if place % 2 else self.lie(signed.record))) for place in to]


class SaysNothing(Honest):
    """Neither accuses nor judges."""

    def say(self, to: Sequence[int], raw: bytes) -> Iterable[tuple[int, bytes]]:
        return [] if open_message(raw).signer == self.key.peer_id else [(place, raw) for place in to]


class ConvictsOthers(Honest):
    """Passes accusations and single verdicts off as evidence."""

    def deeds(self) -> Iterable[tuple[int, bytes]]:
        number = len(self.chain.bodies) - 1
        record = self.accusation(number, self.rng.choice(self.others), (0.7,) * PARTS)
        body = b"nothing" if record is None else seal(self.key, record)
        kind = self.rng.choice(("audit", "unserved", "refuted-audits", "momentum", "fraud", "gossip"))
        return self.to_all(Conviction(self.roster.run, number, kind, body))


LIARS: tuple[type[Honest], ...] = (
    Lazy, SometimesLazy, LazyAndHiding, LazyAndPicky, AtTheBorder, FalseMomentum, AccusesFalsely, CriesUnserved, Floods,
    Perjurer, Conspirator, Defender, TwoTongues, SaysNothing, ConvictsOthers,
)  # fmt: skip
