"""Keeps the swarm's contents at as many peers as their authors wish, as far as this peer is concerned.

The machine (`celluler.content.replication_watch`) says which content to look at; this asks who holds it, hands the
answer in, and pulls or gives up a copy when that is the decision. A claim to hold is tested now and then, since records
in the DHT outlive what they speak of.

Knows neither the DHT, the store nor the catalogue: they are callables. A pull is as long as it takes; its deadline is
whoever gave it.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
import trio

from celluler.content.digest import Digest, cid_of, digest_of
from celluler.content.replication import Candidate, Decision, Policy, Verdict
from celluler.content.replication_watch import Wanted, Watch, Watched
from celluler.errors import CellulerError, CorruptBlock, ProtocolViolation, Unavailable
from celluler.identity import PeerId, short
from celluler_protocols import content
from celluler_protocols.membership import Member
from celluler_protocols.nursery import own_nursery

LOOKUP_S = 15.0
CONFIRM_S = 10.0
PULLS_AT_ONCE = 2
_CONFIRMED_S, _REFUTED_S = 1800.0, 600.0
_CLAIMS_KEPT = 4096
_CLAIMS_TESTED = 8

log = structlog.get_logger()

Confirm = Callable[[PeerId, bytes], Awaitable[bool]]
"""Whether a peer answers for a content. False only when it said that it has not got it. Raises CellulerError."""


@dataclass(slots=True)
class _Claims:
    """Which claims to hold something were tested, and how that went, for a while."""

    tested: OrderedDict[tuple[PeerId, bytes], tuple[bool, float]] = field(default_factory=OrderedDict)

    def known(self, peer: PeerId, root: bytes, now: float) -> bool | None:
        true, until_s = self.tested.get((peer, root), (False, 0.0))
        return true if now < until_s else None

    def learn(self, peer: PeerId, root: bytes, true: bool, now: float) -> None:
        self.tested.pop((peer, root), None)
        self.tested[peer, root] = (true, now + (_CONFIRMED_S if true else _REFUTED_S))
        if len(self.tested) > _CLAIMS_KEPT:
            self.tested.popitem(last=False)


class Replicator:
    """Made by `open_replicator`."""

    def __init__(
        self,
        watch: Watch,
        catalogue: Callable[[], Sequence[Wanted]],
        members: Callable[[], Sequence[Candidate]],
        providers: Callable[[bytes], Awaitable[tuple[PeerId, ...]]],
        pull: Callable[[bytes, bytes], Awaitable[None]],
        room: Callable[[], int],
        confirm: Confirm | None,
        release: Callable[[bytes], Awaitable[None]] | None,
    ) -> None:
        self._watch, self._catalogue, self._members = watch, catalogue, members
        self._providers, self._pull, self._room = providers, pull, room
        self._confirm, self._release = confirm, release
        self._claims = _Claims()
        self._changed = trio.Event()
        self.pulled = self.failed = self.released = 0

    def watched(self) -> tuple[Watched, ...]:
        """What the last look at each content showed: copies, lacking, the verdict."""
        return self._watch.watched()

    def look_again(self) -> None:
        """The catalogue or the members changed: take notice now instead of at the next round."""
        self._watch.update(self._catalogue(), self._members(), trio.current_time())
        self._changed.set()
        self._changed = trio.Event()

    async def _keep_up(self, every_s: float) -> None:
        while True:
            self.look_again()
            await trio.sleep(every_s)

    async def _work(self) -> None:
        """One of a few that look, and pull when that is the decision: no more pulls at a time than workers."""
        while True:
            wanted = self._watch.due(trio.current_time())
            if wanted is None:
                with trio.move_on_after(self._watch.wait_s(trio.current_time())):
                    await self._changed.wait()
                continue
            await self._look(wanted)

    async def _look(self, wanted: Wanted) -> None:
        root = wanted.content.root
        try:
            with trio.fail_after(LOOKUP_S):
                providers = await self._true_providers(root, wanted.content.copies)
        except (CellulerError, trio.TooSlowError) as error:
            log.debug("replicas_unknown", cid=cid_of(Digest(root)), error=str(error))
            self._watch.unanswered(root, trio.current_time())
            return
        decision = self._watch.judge(root, providers, self._room(), trio.current_time())
        if decision.verdict is Verdict.PULL:
            await self._copy(wanted, decision)
        elif decision.verdict is Verdict.RELEASE:
            await self._give_up(wanted, decision)

    async def _true_providers(self, root: bytes, aim: int) -> list[PeerId]:
        """Who holds it, those left out who were asked and have not got it. Tested only where it matters: as many as
        the aim needs."""
        claimed = await self._providers(root)
        present = {member.peer for member in self._members()}
        live = [peer for peer in claimed if peer in present]
        if self._confirm is not None and len(live) >= aim - 1:
            await self._test([peer for peer in live if self._known(peer, root) is None][:_CLAIMS_TESTED], root)
        return [peer for peer in live if self._known(peer, root) is not False]

    def _known(self, peer: PeerId, root: bytes) -> bool | None:
        return self._claims.known(peer, root, trio.current_time())

    async def _test(self, peers: Iterable[PeerId], root: bytes) -> None:
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(self._test_one, peer, root)

    async def _test_one(self, peer: PeerId, root: bytes) -> None:
        """Who cannot be asked just now keeps the benefit of the doubt: whether it is there, membership says."""
        assert self._confirm is not None
        try:
            with trio.fail_after(CONFIRM_S):
                true = await self._confirm(peer, root)
        except (CellulerError, trio.TooSlowError) as error:
            log.debug("replica_not_confirmed", peer=short(peer), error=str(error))
            return
        self._claims.learn(peer, root, true, trio.current_time())

    async def _copy(self, wanted: Wanted, decision: Decision) -> None:
        root, done = wanted.content.root, False
        log.info("replicating", cid=cid_of(Digest(root)), copies=decision.copies, aim=wanted.content.copies)
        try:
            await self._pull(root, wanted.manifest)
            done = True
            self.pulled += 1
        except CellulerError as error:
            self.failed += 1
            log.info("replica_failed", cid=cid_of(Digest(root)), error=str(error))
        finally:
            self._watch.pulled(root, trio.current_time(), done=done)

    async def _give_up(self, wanted: Wanted, decision: Decision) -> None:
        root, done = wanted.content.root, False
        try:
            if self._release is not None:
                await self._release(root)
                self.released += 1
                log.info("replica_released", cid=cid_of(Digest(root)), copies=decision.copies)
            done = True
        except CellulerError as error:
            log.info("replica_not_released", cid=cid_of(Digest(root)), error=str(error))
        finally:
            self._watch.pulled(root, trio.current_time(), done=done)


@asynccontextmanager
async def open_replicator(
    *,
    catalogue: Callable[[], Sequence[Wanted]],
    members: Callable[[], Sequence[Candidate]],
    providers: Callable[[bytes], Awaitable[tuple[PeerId, ...]]],
    pull: Callable[[bytes, bytes], Awaitable[None]],
    room: Callable[[], int],
    own: PeerId,
    region: str,
    stores: bool = True,
    interval_s: float = 30.0,
    policy: Policy | None = None,
    confirm: Confirm | None = None,
    release: Callable[[bytes], Awaitable[None]] | None = None,
    rng: random.Random | None = None,
) -> AsyncIterator[Replicator]:
    """Replicate for the length of the block; a pull under way ends with it.

    catalogue: what the swarm announces and how we stand to it. members: the live others. providers: who is said to
    hold a root; may raise CellulerError. pull: (root, digest of the manifest) → it is here and told; raises
    CellulerError. room: bytes that replicas may still take. confirm: tests a claim to hold. release: a copy kept for
    others alone may go. interval_s: between two looks at a content that is ours to watch.
    """
    watch = Watch(Candidate(own, region, stores), interval_s, rng or random.SystemRandom(), policy or Policy())
    replicator = Replicator(watch, catalogue, members, providers, pull, room, confirm, release)
    async with own_nursery() as nursery:
        nursery.start_soon(replicator._keep_up, interval_s / 3)
        for _ in range(PULLS_AT_ONCE):
            nursery.start_soon(replicator._work)
        yield replicator


def candidates(members: Iterable[Member]) -> tuple[Candidate, ...]:
    """Members as the replicator sees them. A suspect is still there: a lack must last anyhow."""
    return tuple(Candidate(member.peer, member.region, "store" in member.capabilities.roles) for member in members)


async def answers_for(stream: trio.abc.Stream, peer: PeerId, root: bytes) -> bool:
    """Ask a peer, on a stream of the content protocol, for the manifest of a content. Closes the stream.

    Raises Unavailable when it is busy or ends the stream, PeerViolation. Who has the manifest may still lack the rest:
    whoever fetches finds out.
    """
    words = content.frames()
    async with stream:
        try:
            await stream.send_all(words.encode(content.Want((root,))))
            while chunk := await stream.receive_some():
                match words.feed(bytes(chunk)):
                    case []:
                        continue
                    case [content.Found(digest, data)] if digest == root:
                        if digest_of(data) != root:
                            raise CorruptBlock(root, peer=peer)
                        return True
                    case [content.Absent(digest)] if digest == root:
                        return False
                    case [content.Busy()]:
                        raise Unavailable(f"peer {short(peer)} is busy", peer=peer)
                    case _:
                        raise ProtocolViolation("not an answer to what was asked", peer=peer)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Unavailable(f"peer {short(peer)} ended the stream", peer=peer) from error
    raise Unavailable(f"peer {short(peer)} ended the stream", peer=peer)
