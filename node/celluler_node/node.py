"""What a person may ask of a node, done: `Operations` over the node's services.

The same class serves a running node and a light peer. A light peer is no member, runs nothing itself and keeps what
is added until somebody who runs a job has fetched it.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio
from blake3 import blake3

import celluler
from celluler.content.digest import Codec, Digest, cid_of, parse_cid
from celluler.content.store import Store
from celluler.errors import BlockAbsent, CellulerError, InvalidSpec, NoPeers, NotFound, PeerViolation, Unavailable
from celluler.identity import Identity, PeerId
from celluler.jobs.spec import parse_job
from celluler.models.manifest import Metric, OpenedManifest, describe_model
from celluler.models.names import ModelName
from celluler.models.spec import format_spec, parse_spec
from celluler.models.weights import initial_weights
from celluler.tensors import Tensor
from celluler.views import (
    Blob,
    Check,
    Hardware,
    Job,
    JobReport,
    Model,
    NewJob,
    NewModel,
    Peer,
    PeerTraffic,
    Ping,
    Prediction,
    Readiness,
    Status,
    StoreUsage,
    ViolationReport,
)
from celluler_node.bounded import bounded
from celluler_node.config import NodeConfig
from celluler_node.doctor import examine
from celluler_node.fetching import Fetcher
from celluler_node.job_client import JobClient
from celluler_node.job_views import job_report, job_view
from celluler_node.network_views import announced_view, blob_view, member_view, model_view
from celluler_node.placement import ask_servers
from celluler_node.repository import Held, Repository
from celluler_node.serving import ModelServer
from celluler_node.training.desk import TrainingDesk
from celluler_protocols.host import Host
from celluler_protocols.inference import Predict, Predicted
from celluler_protocols.jobs_messages import open_order
from celluler_protocols.membership import Member, Membership, ask_members

MAX_SERVERS_ASKED = 8
PING_S = 10.0


@dataclass(frozen=True, slots=True)
class Services:
    """What a node is made of.

    membership, desk, server: None at a light peer. joined_by: whom a light peer joined by, None at a node.
    """

    config: NodeConfig
    identity: Identity
    nickname: str
    hardware: Hardware
    host: Host
    store: Store
    fetcher: Fetcher
    repository: Repository
    jobs: JobClient
    members: Callable[[], tuple[Member, ...]]
    membership: Membership | None
    desk: TrainingDesk | None
    joined_by: PeerId | None
    server: ModelServer | None
    isolation: Callable[[], str]
    stopping: trio.Event
    started_s: float


class Node:
    """Implements `celluler_node.operations.Operations`."""

    def __init__(self, services: Services) -> None:
        self._of = services

    @property
    def peer_id(self) -> PeerId:
        return self._of.identity.peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._of.host.addresses

    @property
    def stopping(self) -> trio.Event:
        """Set when the node is asked to end."""
        return self._of.stopping

    async def joined(self) -> None:
        """Wait until somebody of the swarm is known, if there is a swarm to join."""
        assert self._of.membership is not None
        async with self._of.membership.changes() as changes:
            while not (await self.readiness()).ready:
                await changes.receive()

    # --- the node --------------------------------------------------------------------------------------------------

    async def status(self) -> Status:
        of = self._of
        states = Counter(record.life.state.value for record in of.desk.records.values()) if of.desk else Counter[str]()
        used = await trio.to_thread.run_sync(of.store.used_bytes)
        return Status(
            peer_id=of.identity.peer_id,
            nickname=of.nickname,
            version=celluler.__version__,
            addresses=of.host.addresses,
            started_s=of.started_s,
            uptime_s=time.time() - of.started_s,
            members=len(of.members()) + (of.membership is not None),
            hardware=of.hardware,
            isolation=of.isolation(),
            models=len(of.repository.local()),
            jobs=dict(states),
            store=StoreUsage(used, of.config.store_quota_bytes),
            violations=len(of.host.violations),
            traffic=tuple(
                PeerTraffic(peer, moved.sent_bytes, moved.received_bytes) for peer, moved in of.host.traffic.items()
            ),
        )

    async def readiness(self) -> Readiness:
        of = self._of
        if of.config.join and not of.members():
            return Readiness(False, "has not joined: none of the addresses to join by has answered yet")
        return Readiness(True)

    async def doctor(self) -> tuple[Check, ...]:
        of = self._of
        return await examine(of.config, of.host, of.store, of.members(), of.membership is not None)

    async def shutdown(self) -> None:
        self._of.stopping.set()

    # --- peers -----------------------------------------------------------------------------------------------------

    async def peers(self) -> tuple[Peer, ...]:
        host = self._of.host
        connected, traffic = host.connected(), host.traffic
        others = (
            member_view(member, connected=member.peer in connected, moved=traffic.get(member.peer))
            for member in self._of.members()
        )
        return (*self._own_view(), *others)

    async def peer(self, peer: str) -> Peer:
        known = await self.peers()
        found = [one for one in known if peer in (one.peer_id, one.nickname)]
        found = found or [one for one in known if len(peer) >= 6 and one.peer_id.endswith(peer)]
        if len(found) != 1:
            raise NotFound(f"peer {peer}", hint="celluler peer ls")
        return found[0]

    async def ping(self, peer: str) -> Ping:
        found = await self.peer(peer)
        began = trio.current_time()
        with bounded(PING_S, "ping", peer=found.peer_id):
            await ask_members(self._of.host, PeerId(found.peer_id))
        return Ping(found.peer_id, trio.current_time() - began)

    async def violations(self) -> tuple[ViolationReport, ...]:
        told = self._of.host.violations
        age = time.time() - trio.current_time()
        return tuple(ViolationReport(one.peer, one.reason, one.at_s + age, one.count) for one in told)

    # --- content ---------------------------------------------------------------------------------------------------

    async def add_blob(self, path: Path, kind: str) -> Blob:
        root = await trio.to_thread.run_sync(self._of.store.add, path, kind)
        self._announce(root)
        return await self.blob_stat(cid_of(root, Codec.MANIFEST))

    async def read_blob(self, cid: str) -> Path:
        return await self._of.fetcher.content(parse_cid(cid))

    async def blob_stat(self, cid: str) -> Blob:
        root = parse_cid(cid)
        try:
            stat = await trio.to_thread.run_sync(self._of.store.stat, root)
        except BlockAbsent:
            raise NotFound(f"content {cid}", hint=f"celluler blob get {cid}") from None
        return blob_view(stat)

    # --- models ----------------------------------------------------------------------------------------------------

    async def add_model(self, model: NewModel) -> Model:
        name = self._own_name(model.name)
        architecture = parse_spec(dict(model.spec))
        if model.weights is None:
            with tempfile.TemporaryDirectory(prefix="celluler-weights-") as folder:
                path = Path(folder) / "weights.safetensors"
                seed = blake3(f"celluler initial weights {model.seed}".encode()).digest()
                await trio.to_thread.run_sync(initial_weights, architecture, seed, path)
                root = await trio.to_thread.run_sync(self._of.store.add, path, "model")
        else:
            root = parse_cid(model.weights)
            await self._of.fetcher.content(root)
        described = describe_model(
            name.name,
            str(name.version),
            format_spec(architecture),
            root,
            created_s=int(time.time()),
            nickname=self._of.nickname,
            labels=model.labels,
            metrics=tuple(Metric(metric, value) for metric, value in model.metrics.items()),
            parents=tuple(parse_cid(parent) for parent in model.parents),
            dataset=None if model.dataset is None else parse_cid(model.dataset),
        )
        if self._of.membership is None:
            return await self._model_view(await self._of.repository.keep(described))
        return await self._model_view(await self._of.repository.publish(described))

    async def list_models(self) -> tuple[Model, ...]:
        held = await trio.to_thread.run_sync(self._of.repository.local)
        known = {one.opened.digest for one in held}
        told = [signed for signed in self._of.repository.announced() if signed.record.manifest not in known]
        return (*map(model_view, held), *map(announced_view, told))

    async def show_model(self, ref: str) -> Model:
        opened = await self._of.repository.resolve(ref, hints=self._hints())
        return await self._model_view(self._of.repository.held(opened))

    async def pull_model(self, ref: str) -> Model:
        held, _ = await self._of.repository.pull(ref, hints=self._hints())
        return await self._model_view(held)

    async def predict(self, ref: str, inputs: Tensor) -> Prediction:
        began = trio.current_time()
        opened = await self._of.repository.resolve(ref, hints=self._hints())
        reference = cid_of(opened.digest, Codec.MANIFEST)
        request = Predict(reference, "raw", inputs.dtype, inputs.shape, inputs.data)
        server = self._of.server
        if server is not None and "serve" in self._of.config.roles:
            peer, answer = self._of.identity.peer_id, await server.predict(request)
        else:
            peer, answer = await ask_servers(self._of.host, await self._servers(opened), request)
        return self._prediction(opened, peer, answer, trio.current_time() - began)

    # --- jobs ------------------------------------------------------------------------------------------------------

    async def submit_job(self, job: NewJob) -> Job:
        of, spec = self._of, parse_job(job.spec)
        model = await of.repository.resolve(spec.model, hints=self._hints())
        if of.desk is None or "train" not in of.config.roles:
            digest = await of.jobs.submit(self._coordinator(), spec, client_id=job.client_id, model=model.digest)
            followed = await of.jobs.follow(cid_of(digest), since=0, wait_s=0.0)
            return job_view(followed.order, followed.events, followed.facts)
        raw = of.jobs.order(of.identity.peer_id, spec, client_id=job.client_id, model=model.digest)
        record = of.desk.records[await of.desk.submit(of.identity.peer_id, open_order(raw))]
        return job_view(record.order, record.life.events, record.facts())

    async def jobs(self) -> tuple[Job, ...]:
        if self._of.desk is not None:
            records = sorted(self._of.desk.records.values(), key=lambda one: one.life.created_s, reverse=True)
            return tuple(job_view(one.order, one.life.events, one.facts()) for one in records)
        listed = await self._of.jobs.listing()
        return tuple([(await self.job(cid_of(Digest(one.job)))).job for _, one in listed])

    async def job(self, job: str, *, since: int = 0, wait_s: float = 0.0) -> JobReport:
        if self._of.desk is not None:
            try:
                record = self._of.desk.find(job)
            except NotFound:
                pass
            else:
                await record.watch(since, wait_s)
                return job_report(record.order, record.life.events, record.facts(), since)
        followed = await self._of.jobs.follow(job, since=since, wait_s=wait_s)
        return job_report(followed.order, followed.events, followed.facts, since)

    async def cancel_job(self, job: str) -> Job:
        if self._of.desk is not None:
            try:
                record = self._of.desk.find(job)
            except NotFound:
                pass
            else:
                await self._of.desk.cancel(self._of.identity.peer_id, record.job, self._of.identity.peer_id)
                return job_view(record.order, record.life.events, record.facts())
        await self._of.jobs.cancel(job)
        return (await self.job(job)).job

    # --- inside ----------------------------------------------------------------------------------------------------

    def _announce(self, *digests: Digest) -> None:
        if self._of.membership is not None:
            self._of.fetcher.announce(*digests)

    def _hints(self) -> tuple[PeerId, ...]:
        """A light peer asks whom it joined by first: it is connected, and knows the swarm."""
        return () if self._of.membership is not None else tuple(self._of.host.connected())

    def _own_name(self, text: str) -> ModelName:
        name = ModelName.parse(text)
        if name.author not in (self._of.nickname, self._of.identity.peer_id):
            raise InvalidSpec("name", f"{name.author!r} is somebody else", hint=f"{self._of.nickname}/{name.name}")
        if name.version is None:
            raise InvalidSpec("name", "needs a version", hint=f"{text}:1.0.0")
        return name

    def _coordinator(self) -> PeerId:
        """A member that trains, the nearest."""
        training = [member.peer for member in self._of.members() if "train" in member.capabilities.roles]
        if not training:
            raise NoPeers("no member of the swarm takes training jobs", hint="celluler peer ls")
        return min(training, key=self._distance)

    def _distance(self, peer: PeerId) -> tuple[bool, bool]:
        """Least for whom a light peer joined by, then for those we are connected to."""
        return peer != self._of.joined_by, peer not in self._of.host.connected()

    async def _servers(self, opened: OpenedManifest) -> tuple[PeerId, ...]:
        """Who might predict: those that hold the model, then other members that serve; of each, the nearest first."""
        serving = [member.peer for member in self._of.members() if "serve" in member.capabilities.roles]
        try:
            holding = await self._of.repository.providers(opened)
        except CellulerError:
            holding = ()
        found = dict.fromkeys([*(peer for peer in holding if peer in serving), *serving])
        others = [peer for peer in found if peer != self._of.identity.peer_id]
        others.sort(key=lambda peer: (peer not in holding, *self._distance(peer)))
        return tuple(others[:MAX_SERVERS_ASKED])

    def _prediction(self, opened: OpenedManifest, peer: PeerId, answer: Predicted, elapsed_s: float) -> Prediction:
        return Prediction(
            outputs=Tensor(answer.shape, answer.dtype, answer.data),
            model=self._of.repository.held(opened).name,
            cid=cid_of(opened.digest, Codec.MANIFEST),
            peer=peer,
            elapsed_s=elapsed_s,
            labels=opened.record.labels,
        )

    def _own_view(self) -> tuple[Peer, ...]:
        """Ourselves as others see us; nothing at a light peer, which is no member."""
        of = self._of
        if of.membership is None:
            return ()
        return (
            Peer(
                peer_id=of.identity.peer_id,
                nickname=of.nickname,
                addresses=of.host.addresses,
                status="self",
                incarnation=of.membership.own.incarnation,
                connected=True,
                hardware=of.hardware,
                roles=of.config.roles,
            ),
        )

    async def _model_view(self, held: Held) -> Model:
        """With spec and providers; without the latter when nobody can be asked."""
        try:
            providers = await self._of.repository.providers(held.opened)
        except (Unavailable, PeerViolation):
            providers = ()
        return model_view(held, providers=providers, with_spec=True)
