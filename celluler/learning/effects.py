"""What a run asks of the world. The machine does none of it itself."""

from __future__ import annotations

from dataclasses import dataclass

from celluler.identity import PeerId
from celluler.learning.checks import CheckPart
from celluler.learning.messages import Certificate, Commit, Part
from celluler.learning.report import RoundReport
from celluler.learning.roster import RosterMember


@dataclass(frozen=True, slots=True)
class Send:
    """Send bytes to one member, or (to=None) to every member but those in `skip`. Losing it is allowed."""

    to: PeerId | None
    data: bytes
    skip: tuple[PeerId, ...] = ()


@dataclass(frozen=True, slots=True)
class Train:
    """Train from the present state and answer `trained`. Any effect of a later round cancels it.

    fresh: start the momentum anew, because our update of the round before was not in the certified set.
    """

    round: int
    fresh: bool


@dataclass(frozen=True, slots=True)
class Exchange:
    """Move the parts and answer `exchanged` within `within_s`. A later Exchange or Apply cancels it.

    members: roster places of the set, ascending; commits: theirs, in that order. reducers: roster place, one a part.
    least: how many inputs a part must be reduced from.
    """

    round: int
    view: int
    set_hash: bytes
    members: tuple[int, ...]
    commits: tuple[Commit, ...]
    reducers: tuple[int, ...]
    within_s: float
    least: int


@dataclass(frozen=True, slots=True)
class Check:
    """Compute parts anew from their inputs and answer `checked` within `within_s`, for all of them together.

    Inputs come from the reducer, else from the member itself; one that is not what was committed to counts as not
    had. Members, commits and reducers are as in the Exchange of that set and view, of which we need not be a member.
    There may be several at a time, and of the round before; a Check of a later view or an Apply cancels none.
    """

    round: int
    view: int
    set_hash: bytes
    members: tuple[int, ...]
    commits: tuple[Commit, ...]
    reducers: tuple[int, ...]
    parts: tuple[CheckPart, ...]
    within_s: float


@dataclass(frozen=True, slots=True)
class Audit:
    """Do a member's steps of a certified round again and answer `audited`, when there is nothing to train.

    member: a roster place. commit: what it committed to; before: the same of the round before, whose momentum its
    update carries; None when it carries none. parts: those to compare. accused: because somebody says that it is wrong.
    Its data is had from the member by the hashes in both. That, without the steps, may take `within_s`, after which it
    counts as not served. An answer that comes when the state before the round is gone is of no use.
    """

    round: int
    member: int
    commit: Commit
    before: Commit | None
    parts: tuple[int, ...]
    accused: bool
    within_s: float


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get reduced parts from those who hold them, answer `fetched` for each. Repeated while they lack.

    parts: (number, what it must be). Its digest covers set_hash and every field of it beside the bytes.
    """

    round: int
    set_hash: bytes
    parts: tuple[tuple[int, Part], ...]
    holders: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Apply:
    """Apply a certified round, all parts of which are here, and answer `applied`. Final: never taken back."""

    round: int
    members: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Certified:
    """A round is decided."""

    certificate: Certificate
    report: RoundReport


@dataclass(frozen=True, slots=True)
class Admitted:
    """These are members from now on, in this order behind those that there were. Talk to them, and listen.

    They follow through their probation; `Run.roster` has them.
    """

    round: int
    members: tuple[RosterMember, ...]


@dataclass(frozen=True, slots=True)
class Behind:
    """The others are at `round` or further, and no longer serve what we would need to follow. Repeated while it is so.

    Fetch the chain and a state from the holders, and begin a new Run with them (and a higher incarnation).
    """

    round: int
    holders: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """A member did what no honest one does, or did not do its part; no proof that others would accept."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Exclude:
    """A member is proven to have lied.

    evidence: a file for those who were not there, as `evidence_file` makes it.
    """

    peer: PeerId
    reason: str
    evidence: bytes


@dataclass(frozen=True, slots=True)
class Diverged:
    """Our own state is not the one that a quorum trains from. We go on watching, but neither train nor vote."""

    round: int
    own_root: bytes
    agreed_root: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """All rounds are applied and a quorum certified the final state. Keep answering for a while: others may lag."""

    certificate: Certificate
    state_root: bytes


@dataclass(frozen=True, slots=True)
class Stalled:
    """The run is over without a result."""

    reason: str


Effect = (
    Send | Train | Exchange | Check | Audit | Fetch | Apply | Certified | Admitted | Behind | Fault | Exclude | Diverged
    | Finished | Stalled
)  # fmt: skip
