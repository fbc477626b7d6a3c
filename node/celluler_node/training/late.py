"""Coming late to a run, and coming back to one: roster and chain from the members, then the newest state.

Nobody is believed. The roster bears its coordinator's signature, the chain its quorums', and the state's BLAKE3 is the
root that a quorum certified.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio
from blake3 import blake3

from celluler.content.digest import Digest
from celluler.errors import CellulerError, Denied, PeerViolation, ProtocolViolation, Unavailable
from celluler.identity import PeerId, short
from celluler.learning.admission import make_admission
from celluler.learning.invites import check_invite
from celluler.learning.messages import Certificate, places
from celluler.learning.roster import RosterView, open_roster
from celluler.learning.standing import Standing
from celluler.wire import unpack
from celluler_node.bounded import bounded
from celluler_node.training.record import JobRecord
from celluler_node.training.site import Site
from celluler_node.training.trainer import Trainer
from celluler_protocols import jobs
from celluler_protocols.jobs_messages import MAX_LINK_BYTES, StateTold

ASK_S = 20.0
STATE_S = 60.0
POLL_S = 0.5
ADMISSION_S = 60.0
"""How long to wait for a body with our admission."""
FIND_S = 120.0
"""How long to look for members that still run it: all of them may have been restarted."""
ATTEMPTS = 5
MAX_ASKED = 8

log = structlog.get_logger()


class RunOver(Unavailable):
    """All rounds of the run are certified: there is nothing to take part in any more."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where to begin in a run: at the state before the chain's last height, or, without a chain, before round 0.

    incarnation: 0 for a member that has signed nothing in this run yet.
    """

    state_root: bytes
    chain: tuple[Certificate, ...] = ()
    incarnation: int = 0


@dataclass(frozen=True, slots=True)
class Chain:
    """A run as its members tell it, verified. standing: after the last certificate."""

    standing: Standing
    certificates: tuple[Certificate, ...] = ()


# --- the chain ----------------------------------------------------------------------------------------------------


async def find_run(site: Site, record: JobRecord, *, patience_s: float = FIND_S) -> Chain:
    """The chain of a run that goes on, from whichever member answers first.

    patience_s: how long to look for one; every peer that may know is asked once at least. Raises RunOver, Unavailable
    when no member answers, NotFound when nobody knows of it.
    """
    until = trio.current_time() + patience_s
    while True:
        failure: CellulerError = Unavailable("no member of the run can be reached")
        for peer in (await _members(site, record))[:MAX_ASKED]:
            try:
                return _going_on(await _ask_chain(site, record, peer, None))
            except RunOver:
                raise
            except PeerViolation as error:
                site.host.penalise(peer, error)
            except CellulerError as error:
                failure = error
        if trio.current_time() >= until:
            raise failure
        await trio.sleep(POLL_S)


def _going_on(chain: Chain) -> Chain:
    if chain.standing.round > chain.standing.roster.rules.rounds:
        raise RunOver("the run is over")
    return chain


async def _ask_chain(site: Site, record: JobRecord, peer: PeerId, known: Chain | None) -> Chain:
    """What one member tells beyond what is known. Raises PeerViolation for anything that does not verify."""
    while True:
        start = 0 if known is None else len(known.certificates)
        with bounded(ASK_S, "asking for the chain of a run", peer=peer):
            stream = await site.host.open_stream(peer, jobs.PROTOCOL_ID)
            told = await jobs.ask_chain(stream, record.job, start)
        if known is None:
            known = Chain(Standing.of(_open(record, told.roster, peer)))
        elif known.standing.roster.raw != told.roster:
            raise ProtocolViolation("another roster than before", peer=peer)
        standing, links = known.standing, [unpack(Certificate, raw, limit=MAX_LINK_BYTES) for raw in told.links]
        try:
            for link in links:
                standing = await trio.to_thread.run_sync(standing.accept, link)
        except PeerViolation as error:
            raise type(error)(str(error), peer=peer) from error
        known = Chain(standing, (*known.certificates, *links))
        if not links or len(known.certificates) >= told.length:
            return known


def _open(record: JobRecord, raw: bytes, peer: PeerId) -> RosterView:
    roster = open_roster(raw, record.order.signed.record.coordinator)
    if (roster.job, roster.run) != (record.job, bytes(record.job)):
        raise ProtocolViolation("a roster of another job", peer=peer)
    return roster


async def _members(site: Site, record: JobRecord) -> list[PeerId]:
    """Who may be asked: the members that are known, the coordinator, whoever holds the order."""
    known = () if record.roster is None else tuple(member.peer for member in record.roster.members)
    found = (*known, PeerId(record.order.signed.record.coordinator), *await site.fetcher.providers(record.job))
    return [peer for peer in dict.fromkeys(found) if peer != site.peer_id]


# --- being admitted -----------------------------------------------------------------------------------------------


async def be_admitted(site: Site, record: JobRecord, entry: bytes) -> Chain:
    """Show our invite, or collect vouches, and wait until a certified body admits us. Returns the chain so far.

    entry: our sealed RosterEntry. Raises Denied when too many members will not vouch or the invite has expired,
    Unavailable.
    """
    invite = record.invite
    chain = await find_run(site, record, patience_s=0.0 if invite is None else FIND_S)
    standing = chain.standing
    if standing.roster.index_of(site.peer_id) is not None:
        return chain  # admitted before
    electorate = standing.electorate
    voters = [standing.roster.members[place].peer for place in electorate.places]
    if invite is None:
        vouches = await _collect(site, record, voters, entry, electorate.b + 1)
        admission = make_admission(standing.roster, site.identity, entry, vouches=vouches)
    else:
        admission = make_admission(standing.roster, site.identity, entry, invite=invite.raw)
    with trio.move_on_after(ADMISSION_S):
        while True:
            if invite is not None:  # members take one that has expired for a lie
                check_invite(invite, peer=site.peer_id, now=site.clock())
            for peer in voters[: electorate.b + 1]:
                await _hand_in(site, record, peer, admission)
            for _ in range(ATTEMPTS):
                await trio.sleep(POLL_S)
                chain = await _newest(site, record, voters, chain)
                if chain.standing.roster.index_of(site.peer_id) is not None:
                    return chain
    raise Unavailable("the members did not admit us in time")


async def _collect(site: Site, record: JobRecord, voters: list[PeerId], entry: bytes, wanted: int) -> list[bytes]:
    vouches: list[bytes] = []
    refusals: list[CellulerError] = []

    async def ask(peer: PeerId, scope: trio.CancelScope) -> None:
        try:
            with bounded(ASK_S, "asking for a vouch", peer=peer):
                stream = await site.host.open_stream(peer, jobs.PROTOCOL_ID)
                vouches.append(await jobs.ask_vouch(stream, record.job, entry))
        except CellulerError as error:
            refusals.append(error)
        if len(vouches) >= wanted:
            scope.cancel()

    async with trio.open_nursery() as nursery:
        for peer in voters:
            nursery.start_soon(ask, peer, nursery.cancel_scope)
    if len(vouches) < wanted:
        denied = next((error for error in refusals if isinstance(error, Denied)), None)
        why = f"; one says: {refusals[0]}" if refusals else ""
        raise denied or Unavailable(f"{len(vouches)} members vouch for us, {wanted} are needed{why}")
    return vouches[:wanted]


async def _hand_in(site: Site, record: JobRecord, peer: PeerId, admission: bytes) -> None:
    try:
        with bounded(ASK_S, "asking to be admitted", peer=peer):
            await jobs.apply(await site.host.open_stream(peer, jobs.PROTOCOL_ID), record.job, admission)
    except CellulerError as error:
        log.info("admission_not_taken", peer=short(peer), reason=str(error))


async def _newest(site: Site, record: JobRecord, peers: Iterable[PeerId], chain: Chain) -> Chain:
    """The chain as the first of these that answers has it by now."""
    for peer in peers:
        try:
            return await _ask_chain(site, record, peer, chain)
        except PeerViolation as error:
            site.host.penalise(peer, error)
        except CellulerError as error:
            log.debug("chain_not_told", peer=short(peer), reason=str(error))
    return chain


# --- the state ----------------------------------------------------------------------------------------------------


async def catch_up(site: Site, record: JobRecord, trainer: Trainer) -> tuple[Start, RosterView]:
    """Take over the newest certified state; the roster as it is by now too.

    Raises Unavailable when no member gives one that verifies."""
    chain = await find_run(site, record)
    failure: CellulerError = Unavailable("no member gives its state")
    for _ in range(ATTEMPTS):
        for peer in _givers(site, chain):
            try:
                return await _take_state(site, record, peer, chain, trainer)
            except PeerViolation as error:
                site.host.penalise(peer, error)
                failure = error
            except CellulerError as error:
                log.info("state_not_taken", peer=short(peer), reason=str(error))
                failure = error
        await trio.sleep(POLL_S)
        chain = await find_run(site, record)
    raise Unavailable(f"no newest state: {failure}")


def _givers(site: Site, chain: Chain) -> list[PeerId]:
    """Members of the last set, who were there a moment ago."""
    roster = chain.standing.roster
    last = chain.certificates[-1].body.members if chain.certificates else (1 << len(roster)) - 1
    return [roster.members[place].peer for place in places(last) if roster.members[place].peer != site.peer_id]


async def _take_state(
    site: Site, record: JobRecord, peer: PeerId, chain: Chain, trainer: Trainer
) -> tuple[Start, RosterView]:
    with bounded(STATE_S, "asking for the newest state", peer=peer):
        told = await jobs.ask_state(await site.host.open_stream(peer, jobs.PROTOCOL_ID), record.job)
    path = await site.fetcher.content(Digest(told.state), hints=(peer,))
    chain = await _certified(site, record, peer, chain, told)
    if not _is_member(site, chain, told.round):
        raise Unavailable("the state that was told is of a time when we were no member", peer=peer)
    root = chain.certificates[told.round].body.state_root
    data = await trio.to_thread.run_sync(_read, path, 8 * trainer.dimension, root, peer)
    if await trainer.restore(told.round, data) != root:
        raise Unavailable("the worker makes another root of the state than was certified")
    incarnation = max(1, int(site.clock()))
    return Start(root, chain.certificates[: told.round + 1], incarnation), chain.standing.roster


def _is_member(site: Site, chain: Chain, number: int) -> bool:
    """After the body of this round."""
    roster = chain.standing.roster
    standing = Standing.of(open_roster(roster.raw, roster.coordinator))
    for certificate in chain.certificates[: number + 1]:
        standing = standing.after(certificate.body)
    return standing.roster.index_of(site.peer_id) is not None


async def _certified(site: Site, record: JobRecord, peer: PeerId, chain: Chain, told: StateTold) -> Chain:
    """The chain once it holds the round that begins with this state: before that nobody can tell whether it is right.

    Raises Unavailable when that takes too long.
    """
    with trio.move_on_after(STATE_S):
        while True:
            chain = await _ask_chain(site, record, peer, chain)
            if len(chain.certificates) > told.round:
                return chain
            await trio.sleep(POLL_S)
    raise Unavailable("the state that was told is of a round that is not certified", peer=peer)


def _read(path: Path, size: int, root: bytes, peer: PeerId) -> bytes:
    """Raises ProtocolViolation for a file that is not the state of this root."""
    if path.stat().st_size != size:
        raise ProtocolViolation(f"a state of {path.stat().st_size} bytes instead of {size}", peer=peer)
    data = path.read_bytes()
    if blake3(data).digest() != root:
        raise ProtocolViolation("another state than was certified", peer=peer)
    return data
