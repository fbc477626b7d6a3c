"""What must hold, whatever happens: held against every member, every certificate and every word of an honest leader."""

from __future__ import annotations

from celluler.learning.checks import Key
from celluler.learning.effects import Certified, Diverged, Exclude, Fault, Finished, Stalled
from celluler.learning.messages import BodyProposal, open_message, places, record_hash
from celluler.learning.roster import tolerated
from simulations.rounds.hands import Hands
from simulations.rounds.member import Member
from simulations.rounds.stage import Stage

PROOF_S = 1.5
"""So long after everybody has proof of something, everybody knows that everybody has."""
HORIZON_S = 900.0
UNPROMISED_S = 150.0
"""So long a schedule is played in which nobody was promised to finish."""


class Judge:
    """finished: the state of every honest member that got to the end, by place."""

    def __init__(self, stage: Stage, hands: Hands) -> None:
        self._stage, self._hands = stage, hands
        self.finished: dict[int, bytes] = {}
        self._certified: dict[int, bytes] = {}
        self._spoiled: dict[Key, int] = {}  # wrong parts that were certified, and in which round
        self._proven: dict[tuple[int, int], float] = {}  # (honest, liar): since when
        self._suspended: set[int] = set()  # honest members that ever were

    def must_finish(self, member: Member) -> bool:
        """Whom progress was promised: the honest that were never started again (those may follow mute to the end).

        A suspension is an absence: with it there may be more of these than the run bears.
        """
        schedule = self._stage.schedule
        gone = schedule.liars.keys() | schedule.deaths.keys() | schedule.away.keys() | self._suspended
        if self._suspended and len(gone) > tolerated(schedule.size):
            return False
        return member.honest and member.place not in schedule.deaths

    # --- as it happens ---

    def certified(self, member: Member, effect: Certified, now: float) -> None:
        if not member.honest:
            return
        schedule, outcome, body = self._stage.schedule, self._stage.outcome, effect.certificate.body
        outcome.views = max(outcome.views, effect.report.views)
        if self._certified.setdefault(body.round, record_hash(body)) != record_hash(body):
            outcome.broken.append(f"two certificates in round {body.round}")
        expelled, suspended = set(places(body.expelled)), set(places(body.suspended))
        if not expelled <= schedule.liars.keys():
            outcome.broken.append(f"honest members expelled in round {body.round}: {sorted(expelled)}")
        if schedule.prompt and not suspended <= schedule.liars.keys():
            outcome.broken.append(f"honest members suspended in round {body.round}: {sorted(suspended)}")
        self._suspended |= suspended - schedule.liars.keys()
        outcome.expelled |= {schedule.liars[place].__name__ for place in expelled}
        outcome.suspended |= {schedule.liars[place].__name__ for place in suspended & schedule.liars.keys()}
        for number, part in enumerate(body.parts):
            right = self._stage.right(body.set_hash, places(body.members), number, part.used)
            if schedule.checks and part != right:
                self._spoiled[body.set_hash, number, part] = body.round

    def overhear(self, member: Member, raw: bytes) -> None:
        """What an honest leader proposes must expel everybody whom all honest members have known as liars for long."""
        stage = self._stage
        record = open_message(raw).record if member.honest and stage.schedule.checks and stage.schedule.prompt else None
        if not isinstance(record, BodyProposal) or record.proof is not None:
            return
        out, electorate = record.body.expelled, member.run.standing.electorate
        honest = set(range(stage.schedule.size)) - stage.schedule.liars.keys()
        for liar in stage.schedule.liars:
            since = max(self._proven.get((place, liar), HORIZON_S) for place in honest)
            gone = out >> liar & 1 or not electorate.acts(liar)
            if since < stage.world.now - PROOF_S and not gone and electorate.may_expel(out | 1 << liar):
                stage.outcome.broken.append(f"proven liar {liar} left in round {record.round}")

    def accused(self, member: Member, effect: Exclude | Fault, now: float) -> None:
        accused, outcome, liars = (
            self._stage.roster.index_of(effect.peer),
            self._stage.outcome,
            self._stage.schedule.liars,
        )
        if not member.honest:
            return
        if accused is None or accused not in liars:
            outcome.broken.append(f"honest member {accused} blamed: {effect.reason}")
        elif isinstance(effect, Exclude):
            self._proven.setdefault((member.place, accused), now)
            outcome.excluded.add(f"{liars[accused].__name__}: {effect.reason}")

    def diverged(self, member: Member, effect: Diverged, now: float) -> None:
        if member.honest:
            self._stage.outcome.broken.append(f"member {member.place} diverged in round {effect.round}")

    def finish(self, member: Member, effect: Finished, now: float) -> None:
        if member.honest:
            self.finished[member.place] = effect.state_root
            self._stage.outcome.finished_s = now

    def stall(self, member: Member, effect: Stalled, now: float) -> None:
        if member.honest:
            self._stage.outcome.stalled[member.place] = (now, effect.reason)

    # --- at the end ---

    def is_over(self) -> bool:
        done = self.finished.keys() | self._stage.outcome.stalled.keys()
        if not self._promised():
            return self._stage.world.now > UNPROMISED_S
        return all(member.place in done for member in self._promised())

    def conclude(self) -> None:
        schedule, outcome = self._stage.schedule, self._stage.outcome
        outcome.spoiled = len(self._spoiled)
        for key, round_number in self._spoiled.items():
            if schedule.thorough or (schedule.prompt and key in self._hands.found_wrong):
                outcome.broken.append(f"a wrong part {key[1]} certified in round {round_number}")
        if len(set(self.finished.values())) > 1:
            outcome.broken.append("members finished with different states")
        for member in self._promised():
            if member.place not in self.finished:
                reason = member.run.stalled or member.run._at.obstacle()
                outcome.broken.append(f"member {member.place} did not finish: {reason}")

    def _promised(self) -> list[Member]:
        return [member for member in self._stage.honest() if self.must_finish(member)]
