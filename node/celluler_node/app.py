"""The composition root: the one place where a node's parts are made and wired together.

host ── membership ── gossip ── directory          the network
  └── fetcher ── store                             content
        └── repository ── model server             models
              └── training desk                    jobs
                    └── Node (Operations) ── HTTP  the user
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
import trio

from celluler.content.disk import DiskStore
from celluler.content.store import Store
from celluler.identity import Identity, PeerId, load_or_create_identity
from celluler.views import Hardware
from celluler_node.config import NodeConfig
from celluler_node.fetching import Fetcher
from celluler_node.hardware import find_hardware
from celluler_node.job_client import JobClient
from celluler_node.node import Node, Services
from celluler_node.processes.words import Limits, Program
from celluler_node.processes.worker_words import WORKER
from celluler_node.repository import Repository
from celluler_node.serving import ModelServer
from celluler_node.state import NodeState, load_state, save_state
from celluler_node.training.desk import TrainingDesk
from celluler_node.training.site import Site, TrainerMaker
from celluler_node.training.worker_trainer import worker_trainer
from celluler_protocols import content, inference, jobs
from celluler_protocols.directory import NAMESPACE, Directory, HeadBook, HeadValidator, open_directory
from celluler_protocols.gossip import Gossip, open_gossip
from celluler_protocols.host import Host, Slots, open_host
from celluler_protocols.membership import Capabilities, Member, Membership, Profile, open_membership
from celluler_protocols.nursery import own_nursery
from celluler_protocols.rounds import RoundsHub

ScratchRoot = Callable[[str], AbstractAsyncContextManager[Path]]

SAVE_S = 30.0
SETTLE_S = 1.0
JOIN_S = 15.0
MAX_CONTENT_STREAMS, MAX_CONTENT_STREAMS_A_PEER = 64, 8
"""Requesters of content answered at once: in all, and of one peer, so that nobody takes the room of the others."""
MAX_INFERENCE_STREAMS, MAX_INFERENCE_STREAMS_A_PEER = 64, 8
"""The same for predictions; each may hold a request of 8 MiB that is still on its way."""
WORKER_NICENESS = 5
"""A model at work must not make the node late: a peer that does not answer is taken for dead."""
AVERAGER_LISTEN = "/ip4/{host}/tcp/0"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Parts:
    """What a simulation may put in place of the shipped part."""

    trainer: TrainerMaker = worker_trainer


@dataclass(frozen=True, slots=True)
class Core:
    """What every peer has, a light one too."""

    config: NodeConfig
    identity: Identity
    nickname: str
    hardware: Hardware
    state: NodeState
    save: Callable[[], None]
    host: Host
    store: Store
    gossip: Gossip
    directory: Directory
    fetcher: Fetcher
    repository: Repository
    nursery: trio.Nursery


@asynccontextmanager
async def open_core(
    config: NodeConfig, *, light: bool, members: Callable[[], tuple[Member, ...]]
) -> AsyncIterator[Core]:
    """Key, state, store, host, gossip, directory, repository. light: listen on nothing.

    members: whom to ask for content that no provider is known of.
    """
    identity = load_or_create_identity(config.key_file)
    nickname = config.nickname or f"peer-{identity.peer_id[-8:].lower()}"
    state, heads = load_state(config.state_file), HeadBook()
    heads.load(bytes.fromhex(raw) for raw in state.heads_seen)
    store = await trio.to_thread.run_sync(DiskStore, config.store_folder, config.store_quota_bytes)
    try:
        async with (
            open_host(
                identity,
                listen=() if light else config.listen,
                validators={NAMESPACE: HeadValidator(heads)},
            ) as host,
            open_gossip(host, identity) as gossip,
            open_directory(host, identity, heads) as directory,
            own_nursery() as nursery,
        ):
            gossip.load(bytes.fromhex(raw) for raw in state.announcements)
            _serve_content(host, store)

            def save() -> None:
                state.announcements = [raw.hex() for raw in gossip.dump()]
                state.heads_seen = [raw.hex() for raw in heads.dump()]
                save_state(config.state_file, state)

            fetcher = Fetcher(
                identity.peer_id,
                store,
                directory,
                host.open_stream,
                lambda: (member.peer for member in members()),
                nursery,
                penalise=host.penalise,
                provides=not light,
            )
            repository = Repository(identity, nickname, store, fetcher, directory, gossip, state, save)
            yield Core(
                config=config,
                identity=identity,
                nickname=nickname,
                hardware=find_hardware_view(),
                state=state,
                save=save,
                host=host,
                store=store,
                gossip=gossip,
                directory=directory,
                fetcher=fetcher,
                repository=repository,
                nursery=nursery,
            )
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(store.close)


@asynccontextmanager
async def open_node(config: NodeConfig, parts: Parts | None = None) -> AsyncIterator[Node]:
    """A node without its HTTP endpoint: ready to be joined on entry, gone with its processes on exit."""
    parts, started_s = parts or Parts(), time.time()
    membership: Membership | None = None
    stop = trio.Event()
    async with open_core(config, light=False, members=lambda: membership.members() if membership else ()) as core:
        profile = Profile(core.nickname, _capabilities(core.hardware, config.roles, config.region))
        async with (
            open_membership(
                core.host,
                core.identity,
                profile,
                known=(*config.join, *core.state.peers),
                last_incarnation=core.state.incarnation,
            ) as membership,
            _scratch_root(config) as scratch_root,
            own_nursery() as nursery,
        ):
            worker = replace(WORKER, confined=config.sandbox)
            limits = Limits(config.worker_memory_bytes, threads=config.worker_threads, niceness=WORKER_NICENESS)
            isolation = _Isolation()
            server = ModelServer(core.repository, worker, limits, scratch_root, nursery, on_start=isolation.note)
            desk = TrainingDesk(
                _site(core, parts, worker, limits, scratch_root, nursery), trains="train" in config.roles
            )
            _serve_protocols(core.host, desk, server if "serve" in config.roles else None)
            nursery.start_soon(desk.run)
            nursery.start_soon(server.unload_idle)
            nursery.start_soon(core.repository.republish)
            nursery.start_soon(_keep_state, core, membership)
            node = Node(
                Services(
                    config=config,
                    identity=core.identity,
                    nickname=core.nickname,
                    hardware=core.hardware,
                    host=core.host,
                    store=core.store,
                    fetcher=core.fetcher,
                    repository=core.repository,
                    jobs=JobClient(core.identity, core.host, core.fetcher, lambda: _peers_of(membership.members())),
                    members=membership.members,
                    membership=membership,
                    desk=desk,
                    joined_by=None,
                    server=server,
                    isolation=isolation.text,
                    stopping=stop,
                    started_s=started_s,
                )
            )
            yield node
            with trio.move_on_after(2.0):
                await membership.leave()
            _remember(core, membership)
            nursery.cancel_scope.cancel()


# --- wiring --------------------------------------------------------------------------------------------------------


def _serve_content(host: Host, store: Store) -> None:
    slots = Slots(MAX_CONTENT_STREAMS, MAX_CONTENT_STREAMS_A_PEER)

    async def answer(peer: PeerId, stream: trio.abc.Stream) -> None:
        with slots.held(peer) as free:
            await (content.serve_content(store, stream) if free else content.turn_away(stream))

    host.serve(content.PROTOCOL_ID, answer)


def _serve_protocols(host: Host, desk: TrainingDesk, server: ModelServer | None) -> None:
    async def answer_jobs(peer: PeerId, stream: trio.abc.Stream) -> None:
        await jobs.serve_jobs(stream, peer, desk)

    host.serve(jobs.PROTOCOL_ID, answer_jobs)
    if server is None:
        return
    slots = Slots(MAX_INFERENCE_STREAMS, MAX_INFERENCE_STREAMS_A_PEER)

    async def answer_inference(peer: PeerId, stream: trio.abc.Stream) -> None:
        with slots.held(peer) as free:
            await (inference.serve_inference(stream, server.predict) if free else inference.turn_away(stream))

    host.serve(inference.PROTOCOL_ID, answer_inference)


def _site(
    core: Core, parts: Parts, worker: Program, limits: Limits, scratch: ScratchRoot, nursery: trio.Nursery
) -> Site:
    return Site(
        identity=core.identity,
        nickname=core.nickname,
        host=core.host,
        store=core.store,
        fetcher=core.fetcher,
        repository=core.repository,
        gossip=core.gossip,
        rounds=RoundsHub(core.host),
        make_trainer=parts.trainer,
        device=core.hardware.device,
        worker=worker,
        worker_limits=limits,
        averager_listen=(AVERAGER_LISTEN.format(host=_averager_host(core.config)),),
        scratch=scratch,
        nursery=nursery,
    )


def _averager_host(config: NodeConfig) -> str:
    """The averager listens where the node does: whoever is closed to the network stays closed."""
    for address in config.listen:
        if address.startswith("/ip4/"):
            return address.split("/")[2]
    return "127.0.0.1"


def _capabilities(hardware: Hardware, roles: tuple[str, ...], region: str) -> Capabilities:
    return Capabilities(min(hardware.cores, 65535), min(hardware.memory_mb, 2**32 - 1), hardware.device, roles, region)


def find_hardware_view() -> Hardware:
    """What this machine is, for people and for the swarm."""
    found = find_hardware()
    return Hardware(found.device, found.cores, found.memory_mb)


def _peers_of(members: tuple[Member, ...]) -> tuple[PeerId, ...]:
    return tuple(member.peer for member in members)


# --- life ----------------------------------------------------------------------------------------------------------


class _Isolation:
    """Which walls stand around the workers of this node, as the last one that started found them."""

    def __init__(self) -> None:
        self._text = "not known before the first worker starts"

    def note(self, full: bool, missing: tuple[str, ...]) -> None:
        self._text = "full" if full else f"reduced: {'; '.join(missing)}"

    def text(self) -> str:
        return self._text


@asynccontextmanager
async def _scratch_root(config: NodeConfig) -> AsyncIterator[ScratchRoot]:
    """Folders for processes, each gone after its use; what a killed node left is removed first."""
    root = config.scratch_folder
    await trio.to_thread.run_sync(lambda: shutil.rmtree(root, ignore_errors=True))
    root.mkdir(parents=True, exist_ok=True)

    @asynccontextmanager
    async def scratch(purpose: str) -> AsyncIterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=root))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    try:
        yield scratch
    finally:
        shutil.rmtree(root, ignore_errors=True)


async def _keep_state(core: Core, membership: Membership) -> None:
    """Write down soon after somebody came or went, and now and then in any case."""
    async with membership.changes() as changes:
        while True:
            _remember(core, membership)
            with trio.move_on_after(SAVE_S):
                await changes.receive()
                await trio.sleep(SETTLE_S)
                while changes.statistics().current_buffer_used:
                    changes.receive_nowait()


def _remember(core: Core, membership: Membership) -> None:
    told = membership.dump()
    core.state.incarnation, core.state.peers = told.incarnation, list(told.addresses)
    try:
        core.save()
    except OSError as error:
        log.warning("state_not_saved", error=str(error))
