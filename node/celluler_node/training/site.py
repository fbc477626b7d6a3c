"""What a training job needs of its node: handed over once by the composition root."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import trio

from celluler.content.store import Store
from celluler.identity import Identity, PeerId
from celluler.learning.roster import ALL_ROLES, Role
from celluler.learning.run import Run
from celluler_node.fetching import Fetcher
from celluler_node.processes.averager_words import AVERAGER
from celluler_node.processes.confinement import Confinement
from celluler_node.processes.words import Limits, Program
from celluler_node.repository import Repository
from celluler_node.training.classes import Describer
from celluler_node.training.trainer import TrainerFactory
from celluler_node.transcripts import Transcripts
from celluler_protocols.gossip import Gossip
from celluler_protocols.host import Host
from celluler_protocols.rounds import RoundsHub

TrainerMaker = Callable[[Program, Limits, Path], TrainerFactory]
"""From the worker's program, its limits and a scratch folder to trainers. The shipped one is `worker_trainer`."""

RunMaker = Callable[..., Run]
"""As `Run`, which is the shipped one."""


@dataclass(frozen=True, slots=True)
class Site:
    """averager_listen: where averagers of this node listen. scratch: opens a folder that is gone afterwards.

    roles: that this node takes in a run. region: where it stands; "" when it does not say. describe: from a precision
    to the audit class of its workers.
    """

    identity: Identity
    nickname: str
    host: Host
    store: Store
    fetcher: Fetcher
    repository: Repository
    transcripts: Transcripts
    gossip: Gossip
    rounds: RoundsHub
    make_trainer: TrainerMaker
    device: str
    worker: Program
    worker_limits: Limits
    confinement: Confinement
    averager_listen: Sequence[str]
    scratch: Callable[[str], AbstractAsyncContextManager[Path]]
    nursery: trio.Nursery
    describe: Describer
    clock: Callable[[], float] = time.time
    roles: Role = ALL_ROLES
    region: str = ""
    make_run: RunMaker = Run
    averager: Program = AVERAGER

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id
