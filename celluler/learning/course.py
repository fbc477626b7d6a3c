"""Where one height stands: what its halves share, and what starts anew with each view."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from celluler.errors import ProtocolViolation
from celluler.identity import Record, Signed
from celluler.learning.effects import Effect, Send
from celluler.learning.inputs import Inputs, check_part
from celluler.learning.ledger import Ledger, Setting
from celluler.learning.messages import Part, Reduced, mask, open_message


class Step(Enum):
    COMMITS = auto()
    """Fewer commits from one state than a set needs: no clock runs."""
    SET = auto()
    EXCHANGE = auto()
    CHECK = auto()
    """The leader's body is what was signed and all of it is here; what we drew of it is still being computed anew."""
    VOTE_1 = auto()
    VOTE_2 = auto()
    DECIDED = auto()


@dataclass(slots=True)
class View:
    """One view. grace: until when a leader waits for more commits; deadline: of the step it is in; timer: of the vote.

    inputs: of the leader's set, once accepted; bad_set: it, or the body, is false. sound: whether the leader's fresh
    body was compared, and how it came out. drawn: the parts that are ours to check. objections: until when others are
    waited for that may have found a wrong part. lacking, undelivered: masks of parts, what our vote says and what the
    exchange did not bring.
    """

    number: int
    grace: float
    deadline: float
    timer: float | None = None
    inputs: Inputs | None = None
    bad_set: bool = False
    sound: bool | None = None
    drawn: tuple[int, ...] = ()
    objections: float | None = None
    exchanging: bool = False
    lacking: int = 0
    undelivered: int = 0


@dataclass(slots=True)
class Course:
    """held: digests of the reduced parts that are here. out: what is to be done."""

    setting: Setting
    ledger: Ledger
    now: float
    view: View
    step: Step = Step.COMMITS
    diverged: bool = False
    held: set[bytes] = field(default_factory=set)
    out: list[Effect] = field(default_factory=list)

    @property
    def may_sign(self) -> bool:
        return not self.setting.mute and not self.diverged

    @property
    def may_vote(self) -> bool:
        return self.setting.votes and not self.diverged

    @property
    def leading(self) -> bool:
        return self.setting.leader(self.view.number) == self.setting.me and self.may_vote

    @property
    def reduced(self) -> int:
        """Mask of the parts whose result is stated in this view."""
        return mask(part for part in range(self.setting.parts) if self.stated(part) is not None)

    def say(self, record: Record) -> None:
        """To everybody, ourselves included."""
        raw = self.setting.seal(record)
        self.out.append(Send(None, raw))
        self.ledger.add(self.setting.me, open_message(raw), self.view.number)

    def sensible(self, result: Part, inputs: Inputs) -> bool:
        """Whether a result can come from these inputs."""
        try:
            check_part(result, len(inputs.members), self.setting.electorate.spared)
        except ProtocolViolation:
            return False
        return True

    def stated(self, part: int) -> Signed[Reduced] | None:
        """The assigned reducer's statement on a part in this view, if it came and makes sense."""
        inputs = self.view.inputs
        if inputs is None:
            return None
        signed: Signed[Any] | None = self.ledger.reduced.get((self.view.number, part, inputs.reducers[part]))
        if signed is None or signed.record.set_hash != inputs.hash or not self.sensible(signed.record.result, inputs):
            return None
        return signed
