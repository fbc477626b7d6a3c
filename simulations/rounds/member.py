"""A run with its surroundings: what it holds of the model world, and the voice that may change its words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from celluler.identity import Identity, PeerId
from celluler.learning.checks import checks_for
from celluler.learning.effects import Admitted, Effect, Send
from celluler.learning.messages import Certificate
from celluler.learning.roster import RosterView
from celluler.learning.run import Run
from celluler.learning.vigil import KEPT_ROUNDS
from simulations.rounds.cast import GENESIS
from simulations.rounds.liars import Honest
from simulations.rounds.schedule import Schedule
from simulations.world import World


@dataclass(frozen=True, slots=True)
class Out:
    """What the world carries."""

    peer: str
    message: bytes


class Member:
    """A machine of the world: the run's effects go out as words, or to whoever plays its hands."""

    def __init__(
        self,
        schedule: Schedule,
        world: World,
        roster: RosterView,
        signer: Identity,
        *,
        incarnation: int = 0,
        chain: Sequence[Certificate] = (),
        root: bytes = GENESIS,
        say: Callable[[Member, bytes, list[Out]], list[Out]],
    ) -> None:
        """root: of the state that the run begins with. say: hears all that it sends, and gives back what arrives."""
        checks = checks_for(schedule.size, schedule.parts) if schedule.checks else 0
        self.run = Run(roster, signer, state_root=root, incarnation=incarnation, checks=checks, chain=chain)
        self.place, self.peer, self.incarnation = self.run.me, signer.peer_id, incarnation
        self.signer, self.root, self._say = signer, root, say
        kind = schedule.liars.get(self.place, Honest)
        self.voice = kind(self.run.roster, signer, world.rng)
        self.roots = {max(0, len(chain) - 1): root}
        """By round: of the state before it."""
        self.trained: set[int] = set()
        self.held: dict[bytes, int] = {}
        """Reduced parts, and of which round they are."""
        self._forgets = schedule.forgets

    @property
    def honest(self) -> bool:
        return type(self.voice) is Honest

    def serves(self, digest: bytes) -> bool:
        """Whether it still gives a reduced part to those who lag."""
        kept = self.run.round - KEPT_ROUNDS if self._forgets else 0
        return self.voice.delivers_parts and self.held.get(digest, -1) >= kept

    def receive(self, sender: str, raw: bytes, now: float) -> list[Any]:
        return self.carry_out(self.run.receive(PeerId(sender), raw, now))

    def tick(self, now: float) -> list[Any]:
        return self.carry_out(self.run.tick(now))

    def next_deadline(self) -> float | None:
        return self.run.next_deadline()

    def carry_out(self, effects: Iterable[Effect]) -> list[Any]:
        """Effects to words for the world; everything else passes through to whoever watches."""
        outputs: list[Any] = []
        for effect in effects:
            if isinstance(effect, Send):
                to = [effect.to] if effect.to else [peer for peer in self.voice.others if peer not in effect.skip]
                words = self.voice.say(to, effect.data)
                outputs += self._say(self, effect.data, [Out(peer, raw) for peer, raw in words])
            else:
                if isinstance(effect, Admitted):
                    self.voice.roster = self.run.roster
                outputs.append(effect)
        return outputs
