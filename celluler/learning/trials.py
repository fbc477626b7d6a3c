"""What is said about one member's update: who accuses it, and what each member that did its steps again found.

Verdicts are about a round and a member, whoever accuses, so every member says one thing only, and does the work once.
They may come before the accusation that they answer. Bounded: so many that nobody accused are kept of one member.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from celluler.identity import Signed
from celluler.learning.audit_evidence import Accusal, AuditEvidence, count
from celluler.learning.audit_messages import Judgement, Verdict
from celluler.learning.roster import Electorate

MAX_EARLY_VERDICTS = 4
"""Of one member, on what nobody has accused here yet."""

Key = tuple[int, int]
"""Round, target."""


@dataclass(slots=True)
class Trial:
    """One update that somebody accuses. accusals: by accuser; all name the same update, the certified one.

    judgement: what a quorum says; INNOCENT and GUILTY are final. answered: when each member was last told all of it.
    """

    key: Key
    opened: float
    accusals: dict[int, Accusal] = field(default_factory=dict)
    judgement: Judgement | None = None
    answered: dict[int, float] = field(default_factory=dict)

    @property
    def accusal(self) -> Accusal:
        """The first one."""
        return next(iter(self.accusals.values()))

    @property
    def over(self) -> bool:
        return self.judgement in (Judgement.GUILTY, Judgement.INNOCENT)


class Trials:
    """All that are still of interest."""

    def __init__(self) -> None:
        self.open: dict[Key, Trial] = {}
        self._verdicts: dict[Key, dict[int, Signed[Verdict]]] = {}

    def get(self, key: Key) -> Trial | None:
        return self.open.get(key)

    def accuse(self, accusal: Accusal, now: float) -> Trial:
        trial = self.open.setdefault(accusal.key, Trial(accusal.key, now))
        trial.accusals.setdefault(accusal.accuser, accusal)
        return trial

    def add(self, author: int, signed: Signed[Verdict]) -> bool:
        """Keep its author's first verdict on this. False if there is no room for what nobody accuses."""
        key = signed.record.round, signed.record.target
        if key not in self.open and self._early(author) >= MAX_EARLY_VERDICTS:
            return False
        self._verdicts.setdefault(key, {})[author] = signed
        return True

    def verdict_of(self, author: int, key: Key) -> Signed[Verdict] | None:
        return self._verdicts.get(key, {}).get(author)

    def verdicts(self, key: Key) -> dict[int, Signed[Verdict]]:
        """By author, ascending."""
        return dict(sorted(self._verdicts.get(key, {}).items()))

    def judge(self, electorate: Electorate, trial: Trial) -> Judgement | None:
        """What a quorum says, if that is something else than before."""
        if trial.over:
            return None
        told = {author: signed.record for author, signed in self.verdicts(trial.key).items()}
        judgement = count(electorate, trial.accusal.name, trial.key, told)
        if judgement is None or judgement is trial.judgement:
            return None
        trial.judgement = judgement
        return judgement

    def evidence(self, run: bytes, trial: Trial, accuser: int) -> AuditEvidence:
        """The verdicts for what was judged, with one of the accusations."""
        meant = {trial.judgement, Judgement.GUILTY} if trial.judgement is Judgement.UNSERVED else {trial.judgement}
        name = trial.accusal.name
        raws = (
            signed.raw for signed in self.verdicts(trial.key).values()
            if Judgement(signed.record.judgement) in meant and signed.record.commit == name
        )  # fmt: skip
        return AuditEvidence(run, trial.accusals[accuser].raw, tuple(raws))

    def pending_of(self, accuser: int, since: int) -> int:
        """Accusations of this member, of rounds from `since` on, that were not found to be true."""
        return sum(
            accuser in trial.accusals and trial.judgement not in (Judgement.GUILTY, Judgement.UNSERVED)
            for (round_number, _), trial in self.open.items() if round_number >= since
        )  # fmt: skip

    def forget(self, before: int) -> None:
        """Rounds that nobody asks about any more."""
        self.open = {key: trial for key, trial in self.open.items() if key[0] >= before}
        self._verdicts = {key: told for key, told in self._verdicts.items() if key[0] >= before}

    def _early(self, author: int) -> int:
        return sum(author in told for key, told in self._verdicts.items() if key not in self.open)
