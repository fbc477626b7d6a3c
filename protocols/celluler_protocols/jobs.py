"""/celluler/jobs/1: submit, join, watch and cancel a job. Spec: docs/reference/protocols/jobs.md

One request and one answer a stream. Participants: a *submitter* (any peer), the *coordinator* (the node it submits to,
named in the signed order), *members* (nodes that offer to take part). Whoever asks writes first; the answering side
decides nothing here: it parses, verifies signatures, and hands over to its desk. The words are in `jobs_messages.py`
and `jobs_orders.py`.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol, TypeVar, cast

import trio

from celluler.content.digest import Digest
from celluler.errors import (
    CellulerError,
    InvalidSpec,
    LocalError,
    NotFound,
    PeerViolation,
    ProtocolViolation,
    TimedOut,
    Unavailable,
)
from celluler.identity import PeerId, Signed, open_envelope
from celluler.jobs.states import MAX_REASON_BYTES, JobEvent, JobState
from celluler.wire import Frames
from celluler_protocols.jobs_messages import (
    ANSWERS,
    MAX_EVENTS_AN_ANSWER,
    MAX_LISTED,
    MAX_WAIT_MS,
    PROTOCOL_ID,
    REFUSALS,
    REQUESTS,
    Accepted,
    Answer,
    Applied,
    Apply,
    AskChain,
    AskState,
    AskVouch,
    Cancel,
    Cancelled,
    ChainTold,
    Change,
    Changed,
    Checkpoint,
    Checkpointed,
    Events,
    Facts,
    Listed,
    Listing,
    ListJobs,
    Offer,
    Offered,
    Refused,
    Request,
    RosterReady,
    RosterTaken,
    StateTold,
    Submit,
    Vouched,
    Watch,
    frames,
    from_event,
    place_of,
    state_of,
    to_event,
)
from celluler_protocols.jobs_orders import (
    MAX_CANCEL_BYTES,
    CancelOrder,
    ChangeOrder,
    CheckpointOrder,
    OpenedOrder,
    open_change,
    open_order,
)

__all__ = [
    "PROTOCOL_ID",
    "Ask",
    "JobDesk",
    "apply",
    "ask",
    "ask_chain",
    "ask_state",
    "ask_vouch",
    "cancel",
    "change",
    "checkpoint",
    "list_jobs",
    "offer",
    "send_roster",
    "serve_jobs",
    "submit",
    "watch",
]

REQUEST_S = 20.0
ANSWER_S = 20.0
HANDOVER_S = 600.0
"""How long a coordinator may fetch what a job needs before it answers a Submit, or a member publish a checkpoint."""

A = TypeVar("A")


# --- the asking half ---------------------------------------------------------------------------------------------


class Ask:
    """One request, sans-IO: bytes in, the answer that fits out."""

    def __init__(self, request: Request) -> None:
        self._request, self._frames = request, frames()

    def opening(self) -> bytes:
        return self._frames.encode(self._request)

    def receive(self, chunk: bytes) -> Answer | None:
        """None while incomplete; an empty chunk means end of stream.

        Raises what the other side refused with, ProtocolViolation for anything that is no answer to the request.
        """
        if not chunk:
            raise Unavailable("the stream ended before the answer")
        match self._frames.feed(chunk):
            case []:
                return None
            case [Refused(code, message, _)]:
                raise _error_of(code, message)
            case [answer] if type(answer) is ANSWERS[type(self._request)]:
                _check_answer(self._request, answer)
                return cast(Answer, answer)
            case _:
                raise ProtocolViolation(f"no answer to {type(self._request).__name__}")


def _check_answer(request: Request, answer: Any) -> None:
    if isinstance(request, AskChain) and len(answer.links) > max(0, answer.length - request.start):
        raise ProtocolViolation("more of a chain than there is")
    if isinstance(request, Watch) and isinstance(answer, Events):
        cursors = [request.cursor, *(event.cursor for event in answer.events)]
        if any(later <= earlier for earlier, later in itertools.pairwise(cursors)):
            raise ProtocolViolation("events out of order")


async def ask(stream: trio.abc.Stream, request: Request) -> Answer:
    """Ask once. Closes the stream; the deadline is the caller's."""
    exchange = Ask(request)
    async with stream:
        await stream.send_all(exchange.opening())
        while (answer := exchange.receive(await stream.receive_some())) is None:
            pass
        return answer


async def submit(stream: trio.abc.Stream, order: bytes) -> Digest:
    """Hand in a signed order; returns the job. The coordinator fetches what the job needs from us meanwhile."""
    return Digest(_of(Accepted, await ask(stream, Submit(order))).job)


async def offer(stream: trio.abc.Stream, job: bytes, entry: bytes) -> None:
    """Offer to take part, with a sealed RosterEntry."""
    await ask(stream, Offer(job, entry))


async def send_roster(stream: trio.abc.Stream, job: bytes, roster: bytes) -> None:
    """Tell a member the sealed Roster it is in."""
    await ask(stream, RosterReady(job, roster))


async def watch(
    stream: trio.abc.Stream, job: bytes, cursor: int, *, wait_ms: int = 0
) -> tuple[tuple[JobEvent, ...], Facts]:
    """Events after the cursor, and what else is known. The caller's deadline must leave room for the wait."""
    answer = _of(Events, await ask(stream, Watch(job, cursor, wait_ms)))
    return tuple(from_event(event) for event in answer.events), answer.facts


async def cancel(stream: trio.abc.Stream, order: bytes) -> JobState:
    """Cancel by a sealed CancelOrder; returns the state the job is in then."""
    return state_of(_of(Cancelled, await ask(stream, Cancel(order))).state)


async def ask_chain(stream: trio.abc.Stream, job: bytes, start: int) -> ChainTold:
    """The roster of a run, and what was certified from height `start` on, as far as it fits one answer."""
    return _of(ChainTold, await ask(stream, AskChain(job, start)))


async def ask_vouch(stream: trio.abc.Stream, job: bytes, entry: bytes) -> bytes:
    """A member's sealed Vouch for a sealed RosterEntry of ours."""
    return _of(Vouched, await ask(stream, AskVouch(job, entry))).vouch


async def apply(stream: trio.abc.Stream, job: bytes, admission: bytes) -> None:
    """Hand in a sealed Admission of ours."""
    await ask(stream, Apply(job, admission))


async def ask_state(stream: trio.abc.Stream, job: bytes) -> StateTold:
    """Where the newest state is to be had. Members only."""
    return _of(StateTold, await ask(stream, AskState(job)))


async def checkpoint(stream: trio.abc.Stream, order: bytes) -> Checkpointed:
    """Have a member publish what there is, by a sealed CheckpointOrder."""
    return _of(Checkpointed, await ask(stream, Checkpoint(order)))


async def change(stream: trio.abc.Stream, order: bytes) -> None:
    """Change what may be changed, by a sealed ChangeOrder."""
    await ask(stream, Change(order))


async def list_jobs(stream: trio.abc.Stream, *, before: int = 2**63) -> tuple[Listed, ...]:
    """A coordinator's jobs, newest first, at most MAX_LISTED."""
    return _of(Listing, await ask(stream, ListJobs(before))).jobs


def _of(cls: type[A], answer: object) -> A:
    if not isinstance(answer, cls):
        raise ProtocolViolation(f"not {cls.__name__}")
    return answer


# --- the answering half ------------------------------------------------------------------------------------------


class JobDesk(Protocol):
    """What a node does about jobs. Refuses by raising LocalError or Unavailable; PeerViolation ends the stream."""

    async def submit(self, peer: PeerId, order: OpenedOrder) -> Digest:
        """Take a job: `check_order`, fetch what it needs (from `peer` first), remember. Returns the job's identity,
        an earlier one for a client id that this submitter used before."""
        ...

    async def offer(self, peer: PeerId, job: Digest, entry: bytes) -> None: ...

    async def roster(self, peer: PeerId, job: Digest, roster: bytes) -> None: ...

    async def watch(self, peer: PeerId, job: Digest, cursor: int, wait_s: float) -> tuple[tuple[JobEvent, ...], Facts]:
        """Events after the cursor; waits up to `wait_s` for one. Raises NotFound."""
        ...

    async def cancel(self, peer: PeerId, job: Digest, signer: PeerId) -> JobState:
        """Raises NotFound, Denied when the signer is not the submitter."""
        ...

    async def listing(self, peer: PeerId, before_ms: int) -> tuple[Listed, ...]: ...

    async def chain(self, peer: PeerId, job: Digest, start: int) -> ChainTold:
        """Raises NotFound for a job that is not, or not yet, run here."""
        ...

    async def vouch(self, peer: PeerId, job: Digest, entry: bytes) -> bytes:
        """Raises NotFound, Denied when it may not come, PeerViolation for an entry that is not the peer's own."""
        ...

    async def apply(self, peer: PeerId, job: Digest, admission: bytes) -> None:
        """Raises NotFound, PeerViolation for an admission that nothing stands behind, Denied where nobody may come
        late, Unavailable where all places are taken."""
        ...

    async def state(self, peer: PeerId, job: Digest) -> StateTold:
        """Raises NotFound, Denied for strangers, Busy."""
        ...

    async def checkpoint(self, peer: PeerId, job: Digest, signer: PeerId) -> Checkpointed:
        """Raises NotFound, Denied when the signer is not the submitter, Unavailable before the first round."""
        ...

    async def change(self, peer: PeerId, order: Signed[ChangeOrder]) -> None:
        """Raises NotFound, Denied when the signer is not the submitter, LocalError for what cannot be."""
        ...


async def serve_jobs(stream: trio.abc.Stream, peer: PeerId, desk: JobDesk) -> None:
    """Answer one request and close the stream.

    Raises PeerViolation for what no honest peer sends; what the desk refuses is answered, not raised. Reading, the
    desk's work and writing each have a deadline of their own.
    """
    words = frames()
    async with stream:
        with trio.move_on_after(REQUEST_S) as reading:
            request = await _read_request(stream, words)
        if reading.cancelled_caught:
            return
        answer: Any
        try:
            answer = await _handle(request, peer, desk)
        except (LocalError, Unavailable) as error:
            answer = _refusal(error)
        with trio.move_on_after(ANSWER_S):
            await stream.send_all(words.encode(answer))


async def _read_request(stream: trio.abc.Stream, words: Frames) -> Request:
    while True:
        chunk = await stream.receive_some()
        if not chunk:
            raise ProtocolViolation("stream ended before the request")
        match words.feed(chunk):
            case []:
                continue
            case [request] if isinstance(request, REQUESTS):
                return cast(Request, request)
            case _:
                raise ProtocolViolation("not one request")


async def _handle(request: Request, peer: PeerId, desk: JobDesk) -> Answer:
    deadline_s = HANDOVER_S if isinstance(request, Submit | Checkpoint) else ANSWER_S + MAX_WAIT_MS / 1000
    try:
        with trio.fail_after(deadline_s):
            return await _dispatch(request, peer, desk)
    except trio.TooSlowError:
        raise TimedOut(f"no answer to {type(request).__name__} within {deadline_s:.0f} s") from None


async def _dispatch(request: Request, peer: PeerId, desk: JobDesk) -> Answer:
    match request:
        case Submit(order):
            return Accepted(await desk.submit(peer, open_order(order)))
        case Offer(job, entry):
            await desk.offer(peer, Digest(job), entry)
            return Offered()
        case RosterReady(job, roster):
            await desk.roster(peer, Digest(job), roster)
            return RosterTaken()
        case Watch(job, cursor, wait_ms):
            events, facts = await desk.watch(peer, Digest(job), cursor, wait_ms / 1000)
            return Events(tuple(to_event(event) for event in events[:MAX_EVENTS_AN_ANSWER]), facts)
        case Cancel(order):
            signed = open_envelope(CancelOrder, order, limit=MAX_CANCEL_BYTES)
            return Cancelled(place_of(await desk.cancel(peer, Digest(signed.record.job), signed.signer)))
        case ListJobs(before):
            return Listing((await desk.listing(peer, before))[:MAX_LISTED])
        case AskChain(job, start):
            return await desk.chain(peer, Digest(job), start)
        case AskVouch(job, entry):
            return Vouched(await desk.vouch(peer, Digest(job), entry))
        case Apply(job, admission):
            await desk.apply(peer, Digest(job), admission)
            return Applied()
        case AskState(job):
            return await desk.state(peer, Digest(job))
        case Checkpoint(order):
            asked = open_envelope(CheckpointOrder, order, limit=MAX_CANCEL_BYTES)
            return await desk.checkpoint(peer, Digest(asked.record.job), asked.signer)
        case Change(order):
            await desk.change(peer, open_change(order))
            return Changed()


def _refusal(error: CellulerError) -> Refused:
    """The most particular of REFUSALS that the error is; a PeerViolation is never answered."""
    assert not isinstance(error, PeerViolation)
    codes = [place for place, cls in enumerate(REFUSALS) if isinstance(error, cls)]
    text = str(error).encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
    return Refused(codes[-1], text)


def _error_of(code: int, message: str) -> CellulerError:
    """The error that a refusal tells. Codes of later versions read as Unavailable."""
    cls = REFUSALS[code] if code < len(REFUSALS) else Unavailable
    if cls is InvalidSpec:
        return InvalidSpec("", message)
    return NotFound(message.removeprefix("not found: ")) if cls is NotFound else cls(message)
