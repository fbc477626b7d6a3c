"""Whom to ask: who may serve a model, what is known of each, and what is learnt of each attempt.

Decides nothing itself: the order is `celluler.inference.placement`'s, the deadlines `celluler.inference.hedging`'s.
`race.py` and `talk.py` ask.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog
import trio

from celluler.content.digest import Digest
from celluler.errors import Busy, CellulerError, Denied, LocalError, NoPeers, NotFound, PeerViolation, Unavailable
from celluler.identity import PeerId, short
from celluler.inference.hedging import Hedging
from celluler.inference.placement import Candidate, Load, Placement
from celluler.models.manifest import OpenedManifest
from celluler_node.bounded import bounded
from celluler_node.callers import caller
from celluler_node.repository import Repository
from celluler_node.serving.server import ModelServer
from celluler_protocols import generation
from celluler_protocols.host import Host
from celluler_protocols.membership import Member

MAX_CANDIDATES = 256
HOLDERS_S = 30.0
"""How long it is taken to be known who holds a model's weights."""
HOLDERS_WAIT_S = 3.0
MAX_HOLDERS = 256
POLL_S = 3.0
MAX_POLLS = 8
POLLED_AHEAD = 2
"""Of the peers that come first, how many are asked for their load when it is not known."""
CONNECTED_S, UNCONNECTED_S = 0.02, 0.1
"""What a round trip is taken to be while nobody has measured it; of whom a light peer joined by, nothing."""
MAX_IN_FLIGHT = 48
"""Of ours at one peer: it takes no more streams of one peer than a few beyond it."""
VIOLATION_WEIGHT = 4.0

log = structlog.get_logger("celluler.placement")


class Chooser:
    """Of one node or light peer."""

    def __init__(
        self,
        host: Host,
        repository: Repository,
        members: Callable[[], tuple[Member, ...]],
        nursery: trio.Nursery,
        *,
        server: ModelServer | None,
        region: str = "",
        joined_by: PeerId | None = None,
    ) -> None:
        """server: of this node, None where it serves nobody. joined_by: of a light peer. nursery: carries lookups."""
        self.host, self.server = host, server
        self.placement = Placement(region=region, seed=random.SystemRandom().getrandbits(64))
        self.hedging: Hedging[bytes] = Hedging()
        self._repository, self._members, self._nursery = repository, members, nursery
        self._joined_by = joined_by
        self._holders: OrderedDict[Digest, tuple[float, tuple[PeerId, ...]]] = OrderedDict()
        self._looking: set[Digest] = set()
        self._polling: set[PeerId] = set()

    @property
    def own(self) -> PeerId:
        return self.host.peer_id

    async def ranked(self, opened: OpenedManifest, only: PeerId | None = None) -> list[PeerId]:
        """Whom to ask first first. only: one peer that was named. Raises NoPeers."""
        if only is not None:
            return [only]
        candidates = await self._candidates(opened)
        if not candidates:
            raise NoPeers("no member of the swarm serves models", hint="celluler peer ls")
        order = self._ordered(opened.digest, candidates)
        self._poll(opened.digest, [peer for peer in order if peer != self.own][:POLLED_AHEAD])
        return order

    def distrust(self, peer: PeerId, weight: float, for_s: float) -> None:
        """It was found to answer wrongly; see `Placement.distrust`."""
        self.placement.distrust(peer, weight, trio.current_time() + for_s)

    @contextmanager
    def attempt(self, peer: PeerId, opened: OpenedManifest) -> Iterator[None]:
        """A block that asks one peer. What fails in it is held against the peer, as far as it is the peer's doing."""
        if peer != self.own and self.placement.in_flight(peer) >= MAX_IN_FLIGHT:
            raise Busy(f"{MAX_IN_FLIGHT} requests are under way at peer {short(peer)}", peer=peer)
        self.placement.began(peer)
        try:
            yield
        except CellulerError as error:
            self._note(peer, error)
            raise
        finally:
            self.placement.ended(peer)

    def answered(self, peer: PeerId, opened: OpenedManifest, first_s: float) -> None:
        """first_s: until the first token, or until the prediction had come."""
        self.placement.answered(peer, opened.digest, first_s, trio.current_time())
        self.hedging.answered(opened.digest, first_s)

    def told(self, peer: PeerId, opened: OpenedManifest, load: Load) -> None:
        self.placement.told(peer, opened.digest, load, trio.current_time())

    # --- who there is ------------------------------------------------------------------------------------------------

    def _ordered(self, model: Digest, candidates: Sequence[Candidate]) -> list[PeerId]:
        """Those that the caller prefers before all others, unless they were found to lie."""
        now, preferred = trio.current_time(), caller().preferred
        first = [one for one in candidates if one.peer in preferred and self.placement.distrusted(one.peer, now) < 1.0]
        rest = [one for one in candidates if one not in first]
        return [PeerId(peer) for group in (first, rest) for peer in self.placement.rank(model, group, now)]

    async def _candidates(self, opened: OpenedManifest) -> list[Candidate]:
        now, holders = trio.current_time(), await self._holding(opened)
        found = []
        if self.server is not None:
            busy = self.server.busyness()
            if (load := busy.get(opened.digest)) is not None:
                self.placement.told(self.own, opened.digest, load, now)
            held = self._repository.held(opened).local
            found.append(Candidate(self.own, own=True, holds=held, loaded=load is not None, round_trip_s=0.0))
        connected = self.host.connected()
        for member in self._members()[:MAX_CANDIDATES]:
            if member.peer != self.own and "serve" in member.capabilities.roles:
                found.append(
                    Candidate(
                        member.peer,
                        holds=member.peer in holders,
                        loaded=None if self.placement.stale(member.peer, opened.digest, now) else True,
                        region=member.region,
                        round_trip_s=self._round_trip(member, member.peer in connected),
                    )
                )
        return found

    def _round_trip(self, member: Member, connected: bool) -> float:
        if member.peer == self._joined_by:
            return 0.0
        if member.round_trip_s is not None:
            return member.round_trip_s
        return CONNECTED_S if connected else UNCONNECTED_S

    async def _holding(self, opened: OpenedManifest) -> tuple[PeerId, ...]:
        """As far as that is known; it is looked up anew beside the request once it is old."""
        known = self._holders.get(opened.digest)
        if known is None:
            with trio.move_on_after(HOLDERS_WAIT_S):
                await self._look_up(opened)
        elif trio.current_time() - known[0] > HOLDERS_S and opened.digest not in self._looking:
            self._nursery.start_soon(self._look_up, opened)
        return self._holders.get(opened.digest, (0.0, ()))[1]

    async def _look_up(self, opened: OpenedManifest) -> None:
        self._looking.add(opened.digest)
        try:
            with bounded(HOLDERS_S, "asking who holds a model"):
                holding = await self._repository.providers(opened)
        except CellulerError:
            holding = self._holders.get(opened.digest, (0.0, ()))[1]
        finally:
            self._looking.discard(opened.digest)
        self._holders.pop(opened.digest, None)
        self._holders[opened.digest] = trio.current_time(), holding
        if len(self._holders) > MAX_HOLDERS:
            self._holders.popitem(last=False)

    # --- how busy they are -------------------------------------------------------------------------------------------

    def _poll(self, model: Digest, peers: Sequence[PeerId]) -> None:
        for peer in peers:
            free = peer not in self._polling and len(self._polling) < MAX_POLLS
            if free and self.placement.stale(peer, model, trio.current_time()):
                self._polling.add(peer)
                self._nursery.start_soon(self._ask_load, peer)

    async def _ask_load(self, peer: PeerId) -> None:
        """Beside the request for which it was not known: for the next one."""
        try:
            with bounded(POLL_S, "asking for a load", peer=peer):
                loads = await generation.poll(await self.host.open_stream(peer, generation.PROTOCOL_ID))
            for one in loads.models:
                self.placement.told(peer, Digest(one.model), one.load, trio.current_time())
        except PeerViolation as error:
            self._note(peer, error)
        except CellulerError:
            pass  # whoever is asked for an answer finds out
        finally:
            self._polling.discard(peer)

    # --- what came of it ---------------------------------------------------------------------------------------------

    def _note(self, peer: PeerId, error: CellulerError) -> None:
        now = trio.current_time()
        tell = log.debug if isinstance(error, Busy | LocalError) else log.info
        tell("server_failed", peer=short(peer), reason=str(error)[:200])
        match error:
            case PeerViolation():
                self.placement.failed(peer, now, VIOLATION_WEIGHT)
                self.host.penalise(peer, error)
            case Busy():
                self.placement.busy(peer, now)
            case NotFound() | Denied():
                self.placement.failed(peer, now, 0.5)
            case Unavailable():
                self.placement.failed(peer, now)


def final(error: CellulerError) -> bool:
    """Nobody else would answer otherwise. A peer may deny what another grants: it has fewer walls, or other readers."""
    return isinstance(error, LocalError) and not isinstance(error, Denied)


def gravest(failures: Sequence[CellulerError]) -> CellulerError:
    """What is told when all have failed: that they were busy, if one was, since that passes; else the last that says
    more than that somebody does not have the model."""
    busy = [one for one in failures if isinstance(one, Busy)]
    telling = [one for one in failures if not isinstance(one, NotFound)]
    return (busy or telling or list(failures) or [NoPeers("nobody answers", hint="celluler peer ls")])[-1]
