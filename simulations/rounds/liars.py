"""Members that lie: an honest run whose words are changed on their way out, and whose hands do less than they say."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from celluler.identity import Identity, seal
from celluler.learning.messages import (
    Admission,
    BodyProposal,
    Certificate,
    Commit,
    Entry,
    Equivocation,
    Fraud,
    Mark,
    Quorum,
    Reduced,
    SetProposal,
    Status,
    Vote,
    Vouch,
    open_message,
    record_hash,
    set_hash,
    signature_of,
)
from celluler.learning.roster import RosterView
from simulations.rounds.cast import digest, entry_of, identity

Words = Iterable[tuple[str, bytes]]  # (to, bytes)


class Honest:
    """Says what its run says."""

    delivers_parts = True
    reduces_wrongly = False
    faces = 1
    delay_s = 0.0

    def __init__(self, roster: RosterView, signer: Identity, rng: random.Random) -> None:
        self.roster, self.signer, self.rng = roster, signer, rng
        """roster: with those admitted so far."""

    @property
    def others(self) -> tuple[str, ...]:
        return tuple(member.peer for member in self.roster.members if member.peer != self.signer.peer_id)

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        return [(peer, raw) for peer in to]

    def serves(self, place: int) -> bool:
        """Whether it gives inputs to this member when it checks."""
        return self.delivers_parts

    def halves(self, to: Sequence[str], one: bytes, other: bytes) -> Words:
        """One thing to some, another to the rest."""
        return [(peer, self.rng.choice((one, other))) for peer in to]


class Silent(Honest):
    delivers_parts = False

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        return []


class TwoUpdates(Honest):
    """Commits to two different updates."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        if signed.signer == self.signer.peer_id and isinstance(signed.record, Commit):
            other = replace(signed.record, fresh=not signed.record.fresh)
            return self.halves(to, raw, seal(self.signer, other))
        return super().say(to, raw)


class TwoSets(Honest):
    """Leads some to one set and others to another, and proposes bodies of its own making."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        record = signed.record
        if signed.signer != self.signer.peer_id:
            return super().say(to, raw)
        if isinstance(record, SetProposal):
            bar = 0 if record.barred else 1 << self.rng.choice(record.entries).member
            fewer = record.entries[1:] if len(record.entries) > self.roster.rules.q else record.entries
            return self.halves(to, raw, seal(self.signer, replace(record, entries=fewer, barred=bar)))
        if isinstance(record, BodyProposal) and record.body.parts:
            parts = (replace(record.body.parts[0], digest=digest("made up")), *record.body.parts[1:])
            return self.halves(to, raw, seal(self.signer, replace(record, body=replace(record.body, parts=parts))))
        return super().say(to, raw)


class TwoVotes(Honest):
    """Votes for and against, and for every body it sees."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        record = signed.record
        if signed.signer == self.signer.peer_id and isinstance(record, Vote):
            against = Vote(record.run, record.round, record.view, record.phase, None, self.rng.getrandbits(3))
            return self.halves(to, raw, seal(self.signer, against))
        if isinstance(record, BodyProposal | Vote):
            name = record_hash(record.body) if isinstance(record, BodyProposal) else record.body
            phase = self.rng.choice((1, 2))
            mine = seal(self.signer, Vote(record.run, record.round, record.view, phase, name, 0))
            return [*super().say(to, raw), *((peer, mine) for peer in self.others)]
        return super().say(to, raw)


class Traitor(Honest):
    """Works with a cunning network: in even views it votes for the body to one member and against it to the rest, so
    that this one may decide alone; in odd views it votes for whatever is proposed, as if it had never been locked."""

    def __init__(self, roster: RosterView, signer: Identity, rng: random.Random) -> None:
        super().__init__(roster, signer, rng)
        self.proposed: dict[tuple[int, int], bytes] = {}

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        record = signed.record
        if isinstance(record, BodyProposal):
            self.proposed[record.round, record.view] = record_hash(record.body)
        if signed.signer != self.signer.peer_id or not isinstance(record, Vote):
            return super().say(to, raw)
        body = self.proposed.get((record.round, record.view))
        pro, contra = (seal(self.signer, replace(record, body=choice, lacking=0)) for choice in (body, None))
        if record.view % 2:
            return [(peer, pro) for peer in to]
        chosen = self.roster.members[favoured(self.roster, record.round, record.view)].peer
        return [(peer, pro if peer == chosen else contra) for peer in to]


def favoured(roster: RosterView, round_number: int, view: int) -> int:
    """Whom a cunning network lets decide: neither the leader of this view nor of the next."""
    return (round_number + view + 2) % len(roster)


class Withholds(Honest):
    """Takes part, but never votes."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        mine = signed.signer == self.signer.peer_id
        return [] if mine and isinstance(signed.record, Vote) else super().say(to, raw)


class TwoFaces(Honest):
    """Reduces to one result for some and to another for the rest, and signs both."""

    faces = 2

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        if signed.signer == self.signer.peer_id and isinstance(signed.record, Reduced):
            result = replace(signed.record.result, digest=digest("other face", signed.record.result.digest))
            return self.halves(to, raw, seal(self.signer, replace(signed.record, result=result)))
        return super().say(to, raw)


class Poisons(Honest):
    """Keeps to every rule, and sends an update that the aggregation gives no weight."""


class KeepsParts(Honest):
    """States what it reduced, and gives the bytes to nobody."""

    delivers_parts = False


class Late(Honest):
    """Says everything up to two deltas too late."""

    delay_s = 4.0


class Forges(Honest):
    """Certificates without a quorum, made from whatever it has seen."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        record = signed.record
        words = list(super().say(to, raw))
        if isinstance(record, BodyProposal):
            body = replace(record.body, members=record.body.members, state_root=digest("forged"))
            vote = Vote(record.run, body.round, record.view, 2, record_hash(body), 0)
            sealed = seal(self.signer, vote)
            mark = Mark(self.roster.index_of(self.signer.peer_id) or 0, sealed[-64:])
            marks = tuple(Mark(place, mark.signature) for place in range(self.roster.rules.q))
            for quorum in (Quorum(record.view, marks), Quorum(record.view, (mark,) * self.roster.rules.q)):
                forged = seal(self.signer, Certificate(record.run, body, quorum))
                words += [(peer, forged) for peer in self.others]
        return words


class Garbage(Honest):
    """Noise, mutilated messages, absurd claims, and honest members' words under its own name."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        words = list(super().say(to, raw))
        place = self.rng.randrange(len(raw))
        noise = self.rng.choice(
            (
                self.rng.randbytes(self.rng.randrange(200)),
                raw[:place],
                raw[:place] + bytes((raw[place] ^ 1,)) + raw[place + 1 :],
                seal(self.signer, self._absurd(open_message(raw).record)),
            )
        )
        return [*words, *((peer, noise) for peer in self.others)]

    def _absurd(self, record: Any) -> Any:
        if isinstance(record, Status):
            return replace(record, round=1024, view=65_535, sequence=2**32 - 1, wanted=())
        return replace(record, view=60_000) if hasattr(record, "view") else record


LIARS: tuple[type[Honest], ...] = (
    Silent, TwoUpdates, TwoSets, TwoVotes, Withholds, TwoFaces, Poisons, KeepsParts, Late, Forges, Garbage,
)  # fmt: skip


class ReducesWrongly(Honest):
    """Signs a result that the rule does not give, the same for all, and serves whoever checks."""

    reduces_wrongly = True


class HidesInputs(Honest):
    """Reduces wrongly and gives no input to anybody who checks."""

    reduces_wrongly = True

    def serves(self, place: int) -> bool:
        return False


class ServesHalf(Honest):
    """Reduces wrongly and gives inputs to some only, so that some cannot see it."""

    reduces_wrongly = True

    def serves(self, place: int) -> bool:
        return place % 2 == 0


class KeepsInputs(Honest):
    """Reduces rightly and gives no input to anybody who checks."""

    def serves(self, place: int) -> bool:
        return False


class AccusesFalsely(Honest):
    """Says of every result that it is wrong."""

    def __init__(self, roster: RosterView, signer: Identity, rng: random.Random) -> None:
        super().__init__(roster, signer, rng)
        self.sets: dict[bytes, tuple[Entry, ...]] = {}

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        words, signed = list(super().say(to, raw)), open_message(raw)
        record = signed.record
        if isinstance(record, SetProposal):
            self.sets[set_hash(record.entries)] = record.entries
        if isinstance(record, Reduced) and signed.signer != self.signer.peer_id and record.set_hash in self.sets:
            lie = seal(self.signer, self.accusation(record, raw))
            words += [(peer, lie) for peer in self.others]
        return words

    def accusation(self, record: Reduced, raw: bytes) -> Fraud:
        return Fraud(record.run, record.round, raw, self.sets[record.set_hash])


class AccusesNonsense(AccusesFalsely):
    """Accusations and contradictions that are none, and some without inputs that exist."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        record = open_message(raw).record
        words = list(super().say(to, raw))
        if isinstance(record, Commit | Vote):
            twice = seal(self.signer, Equivocation(record.run, record.round, raw, raw))
            words += [(peer, twice) for peer in self.others]
        return words

    def accusation(self, record: Reduced, raw: bytes) -> Fraud:
        entries = (Entry(0, digest("no commit")), *self.sets[record.set_hash][1:])
        if self.rng.random() < 0.5:
            return Fraud(record.run, record.round, raw, entries)
        mine = replace(record, set_hash=set_hash(entries))
        return Fraud(record.run, record.round, seal(self.signer, mine), entries)


class ClaimsProof(Honest):
    """Says that it holds proof against everybody, and never that it has checked."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        if signed.signer == self.signer.peer_id and isinstance(signed.record, Status):
            everybody = (1 << len(self.roster)) - 1
            return super().say(to, seal(self.signer, replace(signed.record, checked=False, proven=everybody)))
        return super().say(to, raw)


class ExpelsOthers(ClaimsProof):
    """As leader has bodies expel whom it likes."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        record = signed.record
        if signed.signer == self.signer.peer_id and isinstance(record, BodyProposal) and record.proof is None:
            victim = 1 << self.rng.randrange(len(self.roster))
            return super().say(to, seal(self.signer, replace(record, body=replace(record.body, expelled=victim))))
        return super().say(to, raw)


CHECKED_LIARS: tuple[type[Honest], ...] = (
    ReducesWrongly, HidesInputs, ServesHalf, KeepsInputs, AccusesFalsely, AccusesNonsense, ClaimsProof, ExpelsOthers,
)  # fmt: skip


class SuspendsOthers(Honest):
    """Says of everybody that it does not serve, and as leader has bodies suspend whom it likes."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        record = signed.record
        if signed.signer == self.signer.peer_id and isinstance(record, Status):
            everybody = (1 << len(self.roster)) - 1
            return super().say(to, seal(self.signer, replace(record, failing=everybody)))
        if signed.signer == self.signer.peer_id and isinstance(record, BodyProposal) and record.proof is None:
            victim = 1 << self.rng.randrange(len(self.roster))
            return super().say(to, seal(self.signer, replace(record, body=replace(record.body, suspended=victim))))
        return super().say(to, raw)


class AdmitsAnybody(Honest):
    """As leader has bodies admit a peer that it alone vouches for, and lie about who voted."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        record = signed.record
        if signed.signer == self.signer.peer_id and isinstance(record, BodyProposal) and record.proof is None:
            body = replace(record.body, voted=self.rng.getrandbits(len(self.roster)))
            if self.rng.random() < 0.5:
                body = replace(record.body, admitted=(self.forged(record.run),))
            return super().say(to, seal(self.signer, replace(record, body=body)))
        return super().say(to, raw)

    def forged(self, run: bytes) -> bytes:
        friend = identity(self.rng.randrange(500, 600))
        entry = seal(friend, entry_of(run, self.rng.randrange(500, 600)))
        vouch = sealed_signature(self.signer, Vouch(run, friend.peer_id))
        marks = tuple(Mark(place, vouch) for place in range(self.roster.rules.b + 1))
        return seal(friend, Admission(run, entry, None, marks))


def sealed_signature(signer: Identity, record: Any) -> bytes:
    return signature_of(seal(signer, record))


MEMBERSHIP_LIARS: tuple[type[Honest], ...] = (SuspendsOthers, AdmitsAnybody, KeepsParts, Silent, Withholds)
