"""The composition root: the one place where a node's parts are made and wired together.

host ── membership ── gossip ── directory          the network
  └── fetcher ── store ── bulk process             content        (content_plane.py)
        └── repository ── replicator               models         (core.py: all of it but membership)
              └── model server ── training desk    work
                    └── Node (Operations) ── HTTP  the user
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import or_

import trio

from celluler.content.replication import Policy
from celluler.identity import Identity, PeerId
from celluler.learning.roster import Role
from celluler.learning.run import Run
from celluler.views import Hardware
from celluler_node.checks.signing import signing_answerer, signing_predictor
from celluler_node.checks.wiring import serve_scoring
from celluler_node.config import NodeConfig
from celluler_node.content_plane import listen_hosts
from celluler_node.core import Core, open_core
from celluler_node.deployments.wiring import kept_answers, start_deployments
from celluler_node.job_client import JobClient
from celluler_node.limits import serving_limits, serving_rules
from celluler_node.node import Node, Services
from celluler_node.processes.averager_words import AVERAGER
from celluler_node.processes.confinement import Confinement, Walls
from celluler_node.processes.words import Program
from celluler_node.replicas import open_replicas
from celluler_node.serving.server import ModelServer
from celluler_node.stages.wiring import start_stages
from celluler_node.summarising import summariser
from celluler_node.training.archive import JobArchive
from celluler_node.training.classes import describer
from celluler_node.training.desk import TrainingDesk
from celluler_node.training.site import RunMaker, Site, TrainerMaker
from celluler_node.training.worker_trainer import worker_trainer
from celluler_protocols import generation, inference, jobs
from celluler_protocols.host import Host, Slots
from celluler_protocols.membership import Capabilities, Member, Membership, Profile, open_membership
from celluler_protocols.nursery import own_nursery
from celluler_protocols.rounds import RoundsHub

SAVE_S = 30.0
REPLICATE_EVERY_S = 30.0
SETTLE_S = 1.0
MAX_INFERENCE_STREAMS, MAX_INFERENCE_STREAMS_A_PEER = 64, inference.STREAMS_A_PEER
"""Predictions answered at once: in all, and of one peer; each may hold a request of 8 MiB still on its way."""
MAX_GENERATION_STREAMS, MAX_GENERATION_STREAMS_A_PEER = 64, 32
AVERAGER_LISTEN = "/ip4/{host}/tcp/{port}"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a simulation may put in place of the shipped part. replicate_every_s, replication: a swarm in a hurry."""

    trainer: TrainerMaker = worker_trainer
    make_run: RunMaker = Run
    averager: Program = AVERAGER
    model_server: type[ModelServer] = ModelServer
    replicate_every_s: float = REPLICATE_EVERY_S
    replication: Policy = field(default_factory=Policy)


@asynccontextmanager
async def open_node(config: NodeConfig, parts: Parts | None = None) -> AsyncIterator[Node]:
    """A node without its HTTP endpoint: ready to be joined on entry, gone with its processes on exit."""
    parts, started_s = parts or Parts(), time.time()
    membership: Membership | None = None
    stop = trio.Event()
    async with open_core(config, light=False, members=lambda: membership.members() if membership else ()) as core:
        profile = Profile(core.nickname, _capabilities(core.hardware, config.roles, config.region, core.confinement))
        async with (
            open_membership(
                core.host,
                core.identity,
                profile,
                known=(*config.join, *core.state.peers),
                last_incarnation=core.state.incarnation,
            ) as membership,
            open_replicas(core, membership, interval_s=parts.replicate_every_s, policy=parts.replication),
            own_nursery() as nursery,
        ):
            walls = Walls(core.confinement)
            server = parts.model_server(
                core.repository,
                core.worker,
                serving_limits(config),
                core.scratch,
                nursery,
                own=core.identity.peer_id,
                confinement=core.confinement,
                spares=config.worker_spares,
                on_start=walls.note,
                rules=serving_rules(config, core.hardware),
            )
            archive = JobArchive(config.jobs_folder)
            desk = TrainingDesk(_site(core, parts, nursery), archive, trains="train" in config.roles)
            _serve_protocols(core.host, core.identity, desk, server if "serve" in config.roles else None)
            deployments = start_deployments(
                core, membership.members, server if "serve" in config.roles else None, nursery
            )
            staged = start_stages(core, profile.capabilities, membership.members, nursery, on_start=walls.note)
            nursery.start_soon(desk.run)
            nursery.start_soon(server.run)
            nursery.start_soon(core.repository.publisher.keep_told)
            nursery.start_soon(core.transcripts.resume)
            nursery.start_soon(core.repository.catalogue.watch)
            nursery.start_soon(_keep_state, core, membership)
            node = Node(
                Services(
                    core=core,
                    jobs=JobClient(core.identity, core.host, core.fetcher, lambda: _peers_of(membership.members())),
                    members=membership.members,
                    summarise=summariser(core.worker, core.limits, core.scratch),
                    membership=membership,
                    desk=desk,
                    joined_by=None,
                    server=server,
                    isolation=lambda: walls.seen.text,
                    stopping=stop,
                    started_s=started_s,
                    staged=staged,
                    deployments=deployments,
                    kept_answers=kept_answers(core),
                )
            )
            yield node
            with trio.move_on_after(2.0):
                await membership.leave()
            _remember(core, membership)
            nursery.cancel_scope.cancel()


# --- wiring --------------------------------------------------------------------------------------------------------


def _serve_protocols(host: Host, identity: Identity, desk: TrainingDesk, server: ModelServer | None) -> None:
    async def answer_jobs(peer: PeerId, stream: trio.abc.Stream) -> None:
        await jobs.serve_jobs(stream, peer, desk)

    host.serve(jobs.PROTOCOL_ID, answer_jobs)
    if server is None:
        return
    slots = Slots(MAX_INFERENCE_STREAMS, MAX_INFERENCE_STREAMS_A_PEER)

    async def answer_inference(peer: PeerId, stream: trio.abc.Stream) -> None:
        with slots.held(peer) as free:
            predict = signing_predictor(identity, partial(server.predict, asker=peer))
            await (inference.serve_inference(stream, predict) if free else inference.turn_away(stream))

    host.serve(inference.PROTOCOL_ID, answer_inference)
    questions = Slots(MAX_GENERATION_STREAMS, MAX_GENERATION_STREAMS_A_PEER)

    async def answer_generation(peer: PeerId, stream: trio.abc.Stream) -> None:
        with questions.held(peer) as free:
            if free:
                answerer = signing_answerer(identity, partial(server.generate, asker=peer))
                await generation.serve_generation(stream, answerer, server.busyness)
            else:
                await generation.turn_away(stream)

    host.serve(generation.PROTOCOL_ID, answer_generation)
    serve_scoring(host, server)


def _site(core: Core, parts: Parts, nursery: trio.Nursery) -> Site:
    return Site(
        identity=core.identity,
        nickname=core.nickname,
        host=core.host,
        store=core.store,
        fetcher=core.fetcher,
        repository=core.repository,
        transcripts=core.transcripts,
        gossip=core.gossip,
        rounds=RoundsHub(core.host),
        make_trainer=parts.trainer,
        make_run=parts.make_run,
        averager=parts.averager,
        device=core.hardware.device,
        worker=core.worker,
        worker_limits=core.limits,
        confinement=core.confinement,
        averager_listen=(AVERAGER_LISTEN.format(host=_averager_host(core.config), port=core.config.training_port),),
        scratch=core.scratch,
        roles=_training_roles(core.config.training_roles),
        region=core.config.region,
        nursery=nursery,
        describe=describer(core.worker, core.limits, core.scratch),
    )


def _training_roles(names: tuple[str, ...]) -> Role:
    return reduce(or_, (Role[name.upper()] for name in names), Role(0))


def _averager_host(config: NodeConfig) -> str:
    """Its daemon takes one IPv4 address: the first that the node listens on, else this machine alone."""
    return next((host for host in listen_hosts(config.listen) if "." in host), "127.0.0.1")


def _capabilities(hardware: Hardware, roles: tuple[str, ...], region: str, confined: Confinement) -> Capabilities:
    cores, memory_mb = min(hardware.cores, 65535), min(hardware.memory_mb, 2**32 - 1)
    return Capabilities(cores, memory_mb, hardware.device, roles, region, hardware.audit_class, confined.level)


def _peers_of(members: tuple[Member, ...]) -> tuple[PeerId, ...]:
    return tuple(member.peer for member in members)


# --- life ----------------------------------------------------------------------------------------------------------


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
    core.save()
