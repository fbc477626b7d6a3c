"""What every peer is made of, a light one too: key, state, store, host, gossip, directory, content plane, repository.

A node builds on it with membership, models at work and jobs (`app.py`); a light peer with a list of whom it met
(`light.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import structlog
import trio

from celluler.content.digest import Digest
from celluler.content.disk import DiskStore
from celluler.content.store import Store
from celluler.identity import Identity, load_or_create_identity
from celluler.views import Hardware
from celluler_node.bulk.service import Bulk
from celluler_node.calibration import advertised_class
from celluler_node.config import NodeConfig
from celluler_node.content_plane import open_content_plane
from celluler_node.fetching import Fetcher
from celluler_node.hardware import find_hardware
from celluler_node.limits import worker_limits
from celluler_node.processes.confinement import Confinement, confinement
from celluler_node.processes.words import Limits, Program
from celluler_node.processes.worker_words import WORKER
from celluler_node.repository import Repository
from celluler_node.scratch import ScratchRoot, open_scratch
from celluler_node.state import NodeState, load_state, save_state
from celluler_node.transcripts import Transcripts
from celluler_protocols.directory import NAMESPACE, Directory, HeadBook, HeadValidator, open_directory
from celluler_protocols.gossip import Gossip, open_gossip
from celluler_protocols.host import Host, open_host
from celluler_protocols.membership import Member
from celluler_protocols.nursery import own_nursery

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Core:
    """worker, limits: what a model or a file of data is run or read by. save: writes `state` down, as far as the disk
    lets it. confinement: which models of others a worker of this node may run."""

    config: NodeConfig
    identity: Identity
    nickname: str
    hardware: Hardware
    worker: Program
    limits: Limits
    confinement: Confinement
    state: NodeState
    save: Callable[[], None]
    scratch: ScratchRoot
    host: Host
    store: Store
    gossip: Gossip
    directory: Directory
    fetcher: Fetcher
    bulk: Bulk | None
    repository: Repository
    transcripts: Transcripts
    nursery: trio.Nursery


@asynccontextmanager
async def open_core(
    config: NodeConfig, *, light: bool, members: Callable[[], tuple[Member, ...]]
) -> AsyncIterator[Core]:
    """All of it running on entry, closed on exit. light: listen on nothing.

    members: whom to ask for content that no provider is known of.
    """
    identity = load_or_create_identity(config.key_file)
    nickname = config.nickname or f"peer-{identity.peer_id[-8:].lower()}"
    state, heads = load_state(config.state_file), HeadBook()
    heads.load(bytes.fromhex(raw) for raw in state.heads_seen)
    evicted = _Evicted()
    store = await trio.to_thread.run_sync(
        lambda: DiskStore(config.store_folder, config.store_quota_bytes, evicts=True, on_evict=evicted.tell)
    )
    try:
        async with (
            open_scratch(config.scratch_folder) as scratch,
            open_host(
                identity,
                listen=() if light else config.listen,
                validators={NAMESPACE: HeadValidator(heads)},
            ) as host,
            open_gossip(host, identity) as gossip,
            open_directory(host, identity, heads) as directory,
            own_nursery() as nursery,
            open_content_plane(
                config,
                host,
                store,
                directory,
                gossip,
                lambda: (member.peer for member in members()),
                scratch,
                nursery,
                light=light,
            ) as plane,
        ):
            gossip.load(bytes.fromhex(raw) for raw in state.announcements)
            evicted.withdraw = plane.fetcher.withdraw

            def save() -> None:
                state.announcements = [raw.hex() for raw in gossip.dump()]
                state.heads_seen = [raw.hex() for raw in heads.dump()]
                try:
                    save_state(config.state_file, state)
                except OSError as error:  # tried again soon, and what it says is found out anew without it
                    log.warning("state_not_saved", error=str(error))

            yield Core(
                config=config,
                identity=identity,
                nickname=nickname,
                hardware=_hardware(config),
                worker=replace(WORKER, confined=config.sandbox),
                limits=worker_limits(config),
                confinement=confinement(sandbox=config.sandbox, foreign=config.run_foreign),
                state=state,
                save=save,
                scratch=scratch,
                host=host,
                store=store,
                gossip=gossip,
                directory=directory,
                fetcher=plane.fetcher,
                bulk=plane.bulk,
                repository=Repository(
                    identity,
                    nickname,
                    store,
                    plane.fetcher,
                    directory,
                    gossip,
                    state,
                    save,
                    vault_folder=config.vault_folder,
                ),
                transcripts=Transcripts(identity, store, directory, plane.fetcher.announce),
                nursery=nursery,
            )
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(store.close)


class _Evicted:
    """Carries what the store evicted, in whatever thread that was, to the loop, which stops telling that we have it."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self.withdraw: Callable[..., None] = _nobody

    def tell(self, roots: tuple[Digest, ...]) -> None:
        self._token.run_sync_soon(self._withdraw, roots)

    def _withdraw(self, roots: tuple[Digest, ...]) -> None:
        self.withdraw(*roots)


def _nobody(*_roots: Digest) -> None:
    """Before there is a fetcher nothing was told."""


def _hardware(config: NodeConfig) -> Hardware:
    """What this machine is, for people and for the swarm."""
    found = find_hardware()
    audit_class = advertised_class(config.home, found.cpu, config.worker_threads)
    return Hardware(found.device, found.cores, found.memory_mb, audit_class)
