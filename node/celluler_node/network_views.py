"""Peers, contents and transfers as a person sees them, from what the node's services know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from celluler.content.digest import Codec, cid_of
from celluler.content.store import ContentStat
from celluler.identity import PeerId
from celluler.views import Blob, Hardware, Peer, PeerTraffic, Transfer, TransferSource
from celluler_node.fetching import TransferState
from celluler_node.state import WrongAnswer
from celluler_protocols.host import Traffic
from celluler_protocols.membership import Member

NOTHING = Traffic()


def member_view(
    member: Member, *, connected: bool, moved: Traffic | None, doubts: int = 0, wrong: WrongAnswer | None = None
) -> Peer:
    """Another member. moved: bytes between it and us, of streams and in bulk. wrong: the last answer of it that was."""
    moved, can = moved or NOTHING, member.capabilities
    return Peer(
        peer_id=member.peer,
        nickname=member.nickname,
        addresses=member.addresses,
        status=str(member.status),
        incarnation=member.incarnation,
        connected=connected,
        hardware=Hardware(can.device, can.cores, can.memory_mb, can.audit_class),
        roles=can.roles,
        round_trip_s=member.round_trip_s,
        sent_bytes=moved.sent_bytes,
        received_bytes=moved.received_bytes,
        region=can.region,
        doubts=doubts,
        isolation=can.isolation,
        wrong_answer="" if wrong is None else wrong.why,
        evidence="" if wrong is None else wrong.evidence,
    )


def blob_view(
    stat: ContentStat, *, received: Mapping[PeerId, int] | None = None, providers: Sequence[PeerId] = ()
) -> Blob:
    """received: bytes of it by whom they came from."""
    return Blob(
        cid=cid_of(stat.root, Codec.MANIFEST),
        kind=stat.kind,
        total_bytes=stat.total_bytes,
        have_bytes=stat.have_bytes,
        complete=stat.complete,
        wanted_bytes=stat.wanted_bytes,
        pinned=stat.pinned,
        in_use=stat.in_use,
        last_used_s=stat.last_used_s,
        received=tuple(PeerTraffic(peer, 0, count) for peer, count in (received or {}).items()),
        providers=tuple(providers),
    )


def transfer_view(state: TransferState) -> Transfer:
    progress = state.progress
    return Transfer(
        cid=cid_of(state.root, Codec.MANIFEST),
        name=state.name,
        started_s=state.started_s,
        kept_bytes=progress.kept_bytes,
        wanted_bytes=progress.wanted_bytes,
        rate_bytes_s=progress.rate_bytes_s,
        eta_s=progress.eta_s,
        sources=tuple(
            TransferSource(one.peer, one.received_bytes, one.rate_bytes_s, one.transport.value)
            for one in progress.sources
        ),
    )
