"""Training, exchange, computing anew and fetching, as models: digests of digests, late, lost or false as scheduled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from celluler.learning.checks import CheckOutcome, CheckPart, Key, Verdict
from celluler.learning.effects import Apply, Check, Effect, Exchange, Fetch, Train
from celluler.learning.messages import Part, mask
from simulations.rounds.cast import digest
from simulations.rounds.member import Member
from simulations.rounds.stage import Stage


class Hands:
    """found_wrong: results that an honest member found wrong, be it after the certificate."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._world, self._schedule = stage, stage.world, stage.schedule
        self.found_wrong: set[Key] = set()
        self._exchanges: dict[tuple[int, int, bytes], dict[int, float]] = {}  # who entered, and when

    def train(self, member: Member, effect: Train, now: float) -> None:
        parts = self._schedule.parts
        seed = self._schedule.seed  # so that every schedule draws other parts to check
        hashes = tuple(digest("update", seed, effect.round, member.place, part) for part in range(parts))
        delay = self._world.rng.uniform(0.2, 1.5) + self._schedule.slow.get(member.place, 0.0)
        root = member.root
        self._stage.later(
            member, delay, lambda at: member.run.trained(effect.round, hashes, (0,) * parts, root, at)
            if root == member.root else ()
        )  # fmt: skip
        member.trained.add(effect.round)

    def exchange(self, member: Member, effect: Exchange, now: float) -> None:
        entered = self._exchanges.setdefault((effect.round, effect.view, effect.set_hash), {})
        entered[member.place] = now
        self._exchange_when_ready(member, effect, now + effect.within_s * 0.9)

    def _exchange_when_ready(self, member: Member, effect: Exchange, deadline: float) -> None:
        """All of the set are in, or time is nearly up: then whatever there is."""
        entered = self._exchanges[effect.round, effect.view, effect.set_hash]
        if len(entered) < len(effect.members) and self._world.now < deadline:
            delay = min(0.25, max(deadline - self._world.now, 0.001))
            self._stage.later(member, delay, lambda at: self._poll(member, effect, deadline))
            return
        results = [self._part(member, effect, part) for part in range(len(effect.reducers))]
        member.held |= {result.digest: effect.round for result in results if result is not None}
        delay = self._world.rng.uniform(0.01, 0.2)
        self._stage.later(member, delay, lambda at: member.run.exchanged(effect.round, effect.view, results, at))

    def _poll(self, member: Member, effect: Exchange, deadline: float) -> Iterable[Effect]:
        self._exchange_when_ready(member, effect, deadline)
        return ()

    def _part(self, member: Member, effect: Exchange, part: int) -> Part | None:
        """What a member gets of one part: nothing when its reducer is gone, keeps it, or was left by too many."""
        entered = self._exchanges[effect.round, effect.view, effect.set_hash]
        place = effect.reducers[part]
        name = self._stage.name(place)
        reducer = self._stage.living(name)
        if reducer is None or place not in entered:
            return None
        if member is not reducer and (
            not reducer.voice.delivers_parts or not self._world.reachable(name, member.peer) or self._stage.lost()
        ):
            return None
        used = [k for k, sender in enumerate(effect.members) if sender in entered and self._sends(sender)]
        disturbed = self._schedule.flaps or self._schedule.cunning
        if disturbed and effect.least < len(used) == len(effect.members):
            # an input did not arrive: the same set, yet another body in each view
            used.pop((effect.view + effect.round) % len(used))
        if len(used) < effect.least:
            return None
        result = self._stage.right(effect.set_hash, effect.members, part, mask(used))
        if reducer.voice.faces > 1 and member is not reducer and self._world.rng.random() < 0.5:
            result = replace(result, digest=digest("other face", result.digest))
        return self._twisted(result, effect.view) if reducer.voice.reduces_wrongly else result

    def _twisted(self, result: Part, view: int) -> Part:
        """What a lying reducer makes of it: other bytes, other weights, or for once the truth. The same for all."""
        match digest("lie", result.digest, view)[0] % 4:
            case 0:
                return result
            case 1:
                return replace(result, weights=tuple(2 * (result.used >> k & 1) for k in range(len(result.weights))))
        return replace(result, digest=digest("wrong", result.digest))

    # --- computing anew ---

    def check(self, member: Member, effect: Check, now: float) -> None:
        delay = self._world.rng.uniform(0.02, 0.4) + self._schedule.slow_checks.get(member.place, 0.0)
        until = now + effect.within_s * 0.9
        self._stage.later(member, delay, lambda at: self._attempt(member, effect, until))

    def _attempt(self, member: Member, effect: Check, until: float) -> Iterable[Effect]:
        """Again and again until every input was had, or time is up."""
        served = {part: self._is_served(member, effect.round, part) for part in effect.parts}
        if not all(served.values()) and self._world.now + 0.5 < until:
            self._stage.later(member, 0.5, lambda at: self._attempt(member, effect, until))
            return ()
        results = [CheckOutcome(part, self._verdict(effect, part, had)) for part, had in served.items()]
        for result in results:
            if member.honest and result.outcome is Verdict.DIFFERENT:
                self.found_wrong.add(result.part.key)
        return member.run.checked(effect.round, effect.view, results, self._world.now)

    def _verdict(self, effect: Check, part: CheckPart, had: bool) -> Verdict:
        if not had:
            return Verdict.UNSERVED
        right = self._stage.right(effect.set_hash, effect.members, part.part, part.claimed.used)
        return Verdict.SAME if part.claimed == right else Verdict.DIFFERENT

    def _is_served(self, member: Member, round_number: int, part: CheckPart) -> bool:
        return all(
            self._gives(part.reducer, member, round_number)
            or self._gives(sender, member, round_number)
            or self._passes_on(sender, part, member, round_number)
            for sender, _ in part.inputs
        )

    def _passes_on(self, sender: int, part: CheckPart, member: Member, round_number: int) -> bool:
        """Whether a third one gives what the sender gave to all."""
        source = self._stage.living(self._stage.name(sender))
        return self._schedule.thorough and source is not None and source.voice.delivers_parts and any(
            self._world.reachable(source.peer, self._stage.name(other)) and self._gives(other, member, round_number)
            for other, _ in part.inputs
            if other not in (sender, part.reducer, member.place)
        )  # fmt: skip

    def _gives(self, place: int, member: Member, round_number: int) -> bool:
        """Whether one member gets inputs of a round from another now."""
        holder = self._stage.living(self._stage.name(place))
        if holder is None or round_number not in holder.trained:
            return False
        if holder is member:
            return True
        reachable = self._world.reachable(holder.peer, member.peer)
        return reachable and holder.voice.serves(member.place) and not self._stage.lost()

    # --- moving parts ---

    def _sends(self, place: int) -> bool:
        sender = self._stage.living(self._stage.name(place))
        return sender is not None and sender.voice.delivers_parts

    def fetch(self, member: Member, effect: Fetch, now: float) -> None:
        for wanted in [part.digest for _, part in effect.parts]:
            for holder_name in effect.holders:
                holder = self._stage.living(holder_name)
                if (
                    holder is not None and holder.serves(wanted)
                    and self._world.reachable(holder_name, member.peer) and not self._stage.lost()
                ):  # fmt: skip
                    delay = self._world.rng.uniform(0.01, 0.3)
                    self._stage.later(member, delay, partial(self._fetched, member, effect, wanted))
                    break

    def _fetched(self, member: Member, effect: Fetch, wanted: bytes, now: float) -> Iterable[Effect]:
        member.held[wanted] = effect.round
        return member.run.fetched(effect.round, wanted, now)

    def apply(self, member: Member, effect: Apply, now: float) -> None:
        missing = [part for part in effect.parts if part.digest not in member.held]
        if missing:
            told = f"member {member.place} applies round {effect.round} without all of its parts"
            self._stage.outcome.broken.append(told)
        root = digest("state", member.root, [part.digest for part in effect.parts])
        delay = self._world.rng.uniform(0.01, 0.2)

        def done(now: float) -> Iterable[Effect]:
            member.root = member.roots[effect.round + 1] = root
            return member.run.applied(effect.round, root, now)

        self._stage.later(member, delay, done)
