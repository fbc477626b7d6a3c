"""Invites as people hand them on: one word of text, signed for one peer, one run and a time.

Who may invite, and whether a run takes anybody, its members see for themselves (`admission`); what is found here is
told to whoever was invited before it troubles anybody.
"""

from __future__ import annotations

from base64 import b32decode, b32encode
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from celluler.errors import Denied, InvalidSpec, PeerViolation
from celluler.identity import Identity, PeerId, Signed, open_envelope, public_key_of, seal, short
from celluler.learning.messages import MAX_ADMISSION_BYTES, Invite

PREFIX = "invite-"
MAX_TEXT_BYTES = 1024
_AT = "invite"


@dataclass(frozen=True, slots=True)
class OpenedInvite:
    """An invite whose signature was checked. raw: the envelope that an admission shows. expires_s: Unix time."""

    raw: bytes
    signer: PeerId
    run: bytes
    peer: str
    expires_s: int


def seal_invite(identity: Identity, run: bytes, peer: str, expires_s: int) -> bytes:
    """Raises InvalidSpec for what is no peer id."""
    try:
        public_key_of(peer)
    except PeerViolation:
        raise InvalidSpec("peer", f"{peer!r} is no peer id") from None
    return seal(identity, Invite(run, peer, expires_s))


def invite_text(raw: bytes) -> str:
    return PREFIX + b32encode(raw).decode("ascii").rstrip("=").lower()


def open_invite(text: str) -> OpenedInvite:
    """Raises InvalidSpec for what is no invite, or was changed on its way."""
    body = text.strip().removeprefix(PREFIX)
    if not text.strip().startswith(PREFIX) or len(text) > MAX_TEXT_BYTES or not body.isascii():
        raise InvalidSpec(_AT, f"is no invite: one begins with {PREFIX!r}")
    try:
        raw = b32decode(body.upper() + "=" * (-len(body) % 8))
        signed: Signed[Any] = open_envelope(Invite, raw, limit=MAX_ADMISSION_BYTES)
        public_key_of(signed.record.peer)
    except (ValueError, PeerViolation):
        raise InvalidSpec(_AT, "is damaged: its signature does not verify") from None
    record = signed.record
    return OpenedInvite(raw, signed.signer, record.run, record.peer, record.expires_s)


def check_invite(invite: OpenedInvite, *, peer: PeerId, now: float, inviters: Collection[str] | None = None) -> None:
    """Raises Denied for one that is of no use to this peer now. inviters: who may invite to its run, once known."""
    if invite.peer != peer:
        raise Denied(f"the invite is for {short(invite.peer)}, this is {short(peer)}")
    if invite.expires_s < now:
        raise Denied(f"the invite expired {now - invite.expires_s:.0f} s ago", hint="ask for another one")
    if inviters is not None and invite.signer not in inviters:
        raise Denied(f"{short(invite.signer)}, who signed the invite, may not invite to this job")
