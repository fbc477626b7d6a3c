"""What members sign about each other's training: an accusation, and what each found when it did the work again.

An accusation is self-contained: whoever was not there when the round was decided can still see that these are the
commits of certified sets. A verdict names the round and the member, not the accusation: one answers all of them.

Knows the shape of a message, not whether it makes sense now: that is `auditing`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, ClassVar

from celluler.learning.roster import MAX_MEMBERS, MAX_PARTS, MAX_ROUNDS
from celluler.wire import Bytes32, Length, Name, Range

MAX_COMMIT_BYTES = 8192
"""One commit in its envelope."""
MAX_CONVICTION_BYTES = 60_000
"""The largest, two refuted accusations among 64 members with 64 parts, has about 50,000."""

_Round = Annotated[int, Range(0, MAX_ROUNDS)]
_Place = Annotated[int, Range(0, MAX_MEMBERS - 1)]
_Names = Annotated[tuple[Bytes32, ...], Length(0, MAX_MEMBERS)]
_RawCommit = Annotated[bytes, Length(1, MAX_COMMIT_BYTES)]


class Judgement(IntEnum):
    """What a member found. UNSERVED: it could not get what the target sent, in the time it had."""

    GUILTY = 1
    INNOCENT = 2
    UNSERVED = 3


@dataclass(frozen=True, slots=True)
class Accuse:
    """This member's update of this round is not what its steps come to; or, without deviations, it was not served.

    commit: the target's envelope, of the certified set of `round`; before: that of the round before, absent exactly
    when the update says that it carried no momentum. inside, inside_before: H(commit) of each of those sets, ascending
    by member; who they are, the certified bodies say. deviations: one a part.
    """

    KIND: ClassVar[str] = "celluler/rounds/accuse/1"
    run: Bytes32
    round: _Round
    target: _Place
    commit: _RawCommit
    before: _RawCommit | None
    inside: _Names
    inside_before: _Names
    deviations: Annotated[tuple[float, ...], Length(0, MAX_PARTS)]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one member found when it did the target's steps of this round again. An honest one signs one for each.

    commit: H(commit) of the target's update. deviation: the largest of any part; 0 when it was not served.
    """

    KIND: ClassVar[str] = "celluler/rounds/verdict/1"
    run: Bytes32
    round: _Round
    target: _Place
    commit: Bytes32
    judgement: Annotated[int, Range(Judgement.GUILTY, Judgement.UNSERVED)]
    deviation: float


@dataclass(frozen=True, slots=True)
class Conviction:
    """Evidence that proves itself by the signatures in it, in the words of `evidence`. round: which it is about."""

    KIND: ClassVar[str] = "celluler/rounds/conviction/1"
    run: Bytes32
    round: _Round
    kind: Name
    body: Annotated[bytes, Length(1, MAX_CONVICTION_BYTES)]


@dataclass(frozen=True, slots=True)
class AuditDraw:
    """Signed and shown to nobody: our signature under it is the secret from which we draw whom to audit."""

    KIND: ClassVar[str] = "celluler/rounds/audit-draw/1"
    run: Bytes32
    round: _Round
    body: Bytes32
