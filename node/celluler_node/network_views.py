"""Peers, models and contents as a person sees them, from what the node's services know."""

from __future__ import annotations

import json
from collections.abc import Sequence

from celluler.content.digest import Codec, Digest, cid_of
from celluler.content.store import ContentStat
from celluler.identity import PeerId, Signed
from celluler.views import Blob, Hardware, Model, Peer
from celluler_node.repository import Held
from celluler_protocols.gossip import ModelAnnouncement
from celluler_protocols.host import Traffic
from celluler_protocols.membership import Member

NOTHING = Traffic()


def member_view(member: Member, *, connected: bool, moved: Traffic | None) -> Peer:
    """Another member. moved: bytes of our streams with it."""
    moved, can = moved or NOTHING, member.capabilities
    return Peer(
        peer_id=member.peer,
        nickname=member.nickname,
        addresses=member.addresses,
        status=str(member.status),
        incarnation=member.incarnation,
        connected=connected,
        hardware=Hardware(can.device, can.cores, can.memory_mb),
        roles=can.roles,
        round_trip_s=member.round_trip_s,
        sent_bytes=moved.sent_bytes,
        received_bytes=moved.received_bytes,
    )


def model_view(held: Held, *, providers: Sequence[PeerId] = (), with_spec: bool = False) -> Model:
    """A model whose manifest was verified."""
    opened, record = held.opened, held.opened.record
    return Model(
        name=record.name,
        version=record.version,
        cid=cid_of(opened.digest, Codec.MANIFEST),
        author=opened.signed.signer,
        nickname=record.nickname,
        task=record.task,
        parameters=opened.architecture.parameter_count,
        weights=cid_of(Digest(record.weights), Codec.MANIFEST),
        weights_bytes=record.weights_bytes,
        local=held.local,
        created_s=float(record.created_s),
        labels=record.labels,
        metrics={metric.name: metric.value for metric in record.metrics},
        parents=tuple(cid_of(Digest(parent), Codec.MANIFEST) for parent in record.parents),
        dataset=None if record.dataset is None else cid_of(Digest(record.dataset), Codec.MANIFEST),
        job=None if record.job is None else cid_of(Digest(record.job)),
        providers=tuple(providers),
        spec=json.loads(record.spec) if with_spec else None,
    )


def announced_view(signed: Signed[ModelAnnouncement]) -> Model:
    """A model that its author announced and that we have not looked at: no more than the announcement says."""
    told = signed.record
    return Model(
        name=told.name,
        version=told.version,
        cid=cid_of(Digest(told.manifest), Codec.MANIFEST),
        author=signed.signer,
        nickname=told.nickname,
        task="",
        parameters=told.total_bytes // 4,
        weights=cid_of(Digest(told.root), Codec.MANIFEST),
        weights_bytes=told.total_bytes,
        local=False,
        created_s=float(told.issued_s),
    )


def blob_view(stat: ContentStat) -> Blob:
    return Blob(cid_of(stat.root, Codec.MANIFEST), stat.kind, stat.total_bytes, stat.have_bytes, stat.complete)
