"""Words of /celluler/jobs/1: the messages, and what they are to a job's life. What is signed in them: `jobs_orders.py`.

Knows the shape of a message, not what a node makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from celluler.errors import (
    Busy,
    CellulerError,
    Denied,
    InvalidSpec,
    LocalError,
    NoPeers,
    NotFound,
    QuotaExceeded,
    TimedOut,
    Unavailable,
)
from celluler.jobs.states import MAX_METRIC_NAME_BYTES, MAX_METRICS, MAX_REASON_BYTES, JobEvent, JobState
from celluler.jobs.telemetry import RoundFigures
from celluler.learning.admission import MAX_VOUCH_BYTES
from celluler.learning.messages import MAX_ADMISSION_BYTES
from celluler.learning.roster import MAX_ENTRY_BYTES, MAX_MEMBERS, MAX_ROSTER_BYTES
from celluler.wire import U8, U16, U32, U64, Bytes32, Frames, Length, Name, PeerName, Range
from celluler_protocols.jobs_orders import MAX_CANCEL_BYTES, MAX_ORDER_BYTES, OpenedOrder

PROTOCOL_ID = "/celluler/jobs/1"
MAX_EVENTS_AN_ANSWER = 32
MAX_LISTED = 256
MAX_WAIT_MS = 30_000
MAX_FRAME_BYTES = 1 << 19
MAX_LINK_BYTES = 1 << 16
MAX_LINKS_AN_ANSWER = 64
MAX_CHAIN_BYTES = 200_000
"""Of links in one answer, beside the roster."""


@dataclass(frozen=True, slots=True)
class Submit:
    """order: envelope of a JobOrder."""

    order: Annotated[bytes, Length(1, MAX_ORDER_BYTES)]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The coordinator has the order and holds everything the job needs: the submitter may go."""

    job: Bytes32


@dataclass(frozen=True, slots=True)
class Offer:
    """A node would take part. entry: envelope of a RosterEntry (rounds protocol), opaque here."""

    job: Bytes32
    entry: Annotated[bytes, Length(1, MAX_ENTRY_BYTES)]


@dataclass(frozen=True, slots=True)
class Offered:
    """The offer is noted. It is no promise of a place."""


@dataclass(frozen=True, slots=True)
class RosterReady:
    """The coordinator to each member. roster: envelope of a Roster (rounds protocol), opaque here."""

    job: Bytes32
    roster: Annotated[bytes, Length(1, MAX_ROSTER_BYTES)]


@dataclass(frozen=True, slots=True)
class RosterTaken:
    """The member is in."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Events after `cursor`; when there are none, wait for one up to `wait_ms`."""

    job: Bytes32
    cursor: U64
    wait_ms: Annotated[int, Range(0, MAX_WAIT_MS)]


@dataclass(frozen=True, slots=True)
class Figure:
    """`loss`, 0.31."""

    name: Annotated[str, Length(1, MAX_METRIC_NAME_BYTES)]
    value: float


@dataclass(frozen=True, slots=True)
class Event:
    """A JobEvent. state: place in JobState. round: as `celluler.jobs.telemetry` describes it."""

    cursor: U64
    at_s: float
    state: Annotated[int, Range(0, len(JobState) - 1)]
    reason: Annotated[str, Length(0, MAX_REASON_BYTES)]
    figures: Annotated[tuple[Figure, ...], Length(0, MAX_METRICS)]
    round: RoundFigures | None = None


@dataclass(frozen=True, slots=True)
class Excluded:
    """A member whose update was not used in a round, with the reason. round: None when not in any."""

    peer: PeerName
    round: U16 | None
    reason: Annotated[str, Length(1, 256)]


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes of a member's streams and averaging during the job."""

    peer: PeerName
    sent_bytes: U64
    received_bytes: U64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the job left. model: `author/name:version`. manifest: digest of the signed manifest. weights: content."""

    model: Annotated[str, Length(1, 256)]
    manifest: Bytes32
    weights: Bytes32
    figures: Annotated[tuple[Figure, ...], Length(0, MAX_METRICS)]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a job besides its events."""

    members: Annotated[tuple[PeerName, ...], Length(0, MAX_MEMBERS)] = ()
    excluded: Annotated[tuple[Excluded, ...], Length(0, MAX_MEMBERS)] = ()
    moved: Annotated[tuple[Moved, ...], Length(0, MAX_MEMBERS)] = ()
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Events:
    """The oldest events after the cursor asked for, ascending; ask again with the last one's."""

    events: Annotated[tuple[Event, ...], Length(0, MAX_EVENTS_AN_ANSWER)]
    facts: Facts


@dataclass(frozen=True, slots=True)
class Cancel:
    """order: envelope of a CancelOrder."""

    order: Annotated[bytes, Length(1, MAX_CANCEL_BYTES)]


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The state it is in now: Cancelled, or how it had ended before."""

    state: Annotated[int, Range(0, len(JobState) - 1)]


@dataclass(frozen=True, slots=True)
class AskChain:
    """What the run's members have certified, from this height on; for whoever comes late or comes back."""

    job: Bytes32
    start: U16


@dataclass(frozen=True, slots=True)
class ChainTold:
    """roster: envelope of a Roster. links: packed certificates (rounds protocol), from `start` on, opaque here.

    length: heights certified so far; ask again while there are more than were told.
    """

    roster: Annotated[bytes, Length(1, MAX_ROSTER_BYTES)]
    length: U16
    links: Annotated[tuple[Annotated[bytes, Length(1, MAX_LINK_BYTES)], ...], Length(0, MAX_LINKS_AN_ANSWER)]


@dataclass(frozen=True, slots=True)
class AskVouch:
    """Sign that I may take part although the run has begun. entry: envelope of a RosterEntry, opaque here."""

    job: Bytes32
    entry: Annotated[bytes, Length(1, MAX_ENTRY_BYTES)]


@dataclass(frozen=True, slots=True)
class Vouched:
    """vouch: envelope of a Vouch (rounds protocol), opaque here."""

    vouch: Annotated[bytes, Length(1, MAX_VOUCH_BYTES)]


@dataclass(frozen=True, slots=True)
class Apply:
    """Have me admitted. admission: envelope of an Admission (rounds protocol), opaque here."""

    job: Bytes32
    admission: Annotated[bytes, Length(1, MAX_ADMISSION_BYTES)]


@dataclass(frozen=True, slots=True)
class Applied:
    """It was handed to the run, whose members decide."""


@dataclass(frozen=True, slots=True)
class AskState:
    """The newest state, for a member that was left behind."""

    job: Bytes32


@dataclass(frozen=True, slots=True)
class StateTold:
    """The state before `round` is the content `state`: a file of weights and velocity, whose BLAKE3 is its root."""

    round: U16
    state: Bytes32


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """order: envelope of a CheckpointOrder."""

    order: Annotated[bytes, Length(1, MAX_CANCEL_BYTES)]


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """Published: the state after so many rounds."""

    rounds: U16
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Change:
    """order: envelope of a ChangeOrder."""

    order: Annotated[bytes, Length(1, MAX_CANCEL_BYTES)]


@dataclass(frozen=True, slots=True)
class Changed:
    """It is acted upon."""


@dataclass(frozen=True, slots=True)
class ListJobs:
    """The coordinator's jobs, newest first; `before`: of those older than this Unix time in milliseconds."""

    before: U64


@dataclass(frozen=True, slots=True)
class Listed:
    """order: the job is the block of this digest; fetch it as content to learn its spec and its submitter."""

    job: Bytes32
    submitter: PeerName
    name: Name
    state: Annotated[int, Range(0, len(JobState) - 1)]
    reason: Annotated[str, Length(0, MAX_REASON_BYTES)]
    created_s: float
    updated_s: float
    client_id: Name


@dataclass(frozen=True, slots=True)
class Listing:
    jobs: Annotated[tuple[Listed, ...], Length(0, MAX_LISTED)]


@dataclass(frozen=True, slots=True)
class Refused:
    """code: place in REFUSALS. retry_s: when asking again may help; 0 for never or unknown."""

    code: U8
    message: Annotated[str, Length(0, MAX_REASON_BYTES)]
    retry_s: U32 = 0


Request = (
    Submit | Offer | RosterReady | Watch | Cancel | ListJobs | AskChain | AskVouch | Apply | AskState | Checkpoint
    | Change
)  # fmt: skip
Answer = (
    Accepted | Offered | RosterTaken | Events | Cancelled | Listing | ChainTold | Vouched | Applied | StateTold
    | Checkpointed | Changed
)  # fmt: skip
ANSWERS: Mapping[type, type] = {
    Submit: Accepted,
    Offer: Offered,
    RosterReady: RosterTaken,
    Watch: Events,
    Cancel: Cancelled,
    ListJobs: Listing,
    AskChain: ChainTold,
    AskVouch: Vouched,
    Apply: Applied,
    AskState: StateTold,
    Checkpoint: Checkpointed,
    Change: Changed,
}
REQUESTS: tuple[type, ...] = tuple(ANSWERS)
REFUSALS: tuple[type[CellulerError], ...] = (
    LocalError,
    InvalidSpec,
    Denied,
    QuotaExceeded,
    Unavailable,
    NotFound,
    Busy,
    TimedOut,
    NoPeers,
)
_STATES = tuple(JobState)


def frames() -> Frames:
    return Frames(
        (
            *(Submit, Accepted, Offer, Offered, RosterReady, RosterTaken, Watch, Events, Cancel, Cancelled),
            *(ListJobs, Listing, Refused),
            *(AskChain, ChainTold, AskVouch, Vouched, Apply, Applied, AskState, StateTold, Checkpoint, Checkpointed),
            *(Change, Changed),
        ),
        limit=MAX_FRAME_BYTES,
    )


def to_event(event: JobEvent) -> Event:
    figures = tuple(Figure(name, value) for name, value in event.metrics.items())
    return Event(event.cursor, event.at_s, place_of(event.state), event.reason, figures, event.round)


def from_event(event: Event) -> JobEvent:
    figures = from_figures(event.figures)
    return JobEvent(event.cursor, event.at_s, _STATES[event.state], event.reason, figures, event.round)


def from_figures(figures: tuple[Figure, ...]) -> dict[str, float]:
    return {figure.name: figure.value for figure in figures}


def to_listed(order: OpenedOrder, event: JobEvent, reason: str) -> Listed:
    """A line of a listing. event: the job's newest. reason: of the state it is in."""
    record = order.signed.record
    return Listed(
        job=order.job,
        submitter=order.submitter,
        name=order.spec.name,
        state=place_of(event.state),
        reason=reason,
        created_s=float(record.created_s),
        updated_s=event.at_s,
        client_id=record.client_id,
    )


def place_of(state: JobState) -> int:
    """How a message names a state."""
    return _STATES.index(state)


def state_of(place: int) -> JobState:
    """The state that a message names by its place."""
    return _STATES[place]
