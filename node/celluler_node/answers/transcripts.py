"""Answers about runs that were written down."""

from __future__ import annotations

from collections.abc import Sequence

from celluler.content.digest import Codec, cid_of, parse_cid
from celluler.errors import InvalidSpec, PeerViolation
from celluler.identity import PeerId, public_key_of
from celluler.views import TranscriptNote
from celluler_node.answers.services import Answers
from celluler_node.transcripts import MAX_ASKED


class TranscriptAnswers(Answers):
    """The part of `Operations` about transcripts."""

    async def transcripts(self, job: str, peers: Sequence[str]) -> tuple[TranscriptNote, ...]:
        digest, asked = parse_cid(job), tuple(map(_peer, peers))
        if len(asked) > MAX_ASKED:
            raise InvalidSpec("peers", f"{len(asked)} peers, at most {MAX_ASKED} are asked at once")
        found = await self._core.transcripts.find(digest, asked)
        return tuple(
            TranscriptNote(cid_of(digest), one.peer, cid_of(one.root, Codec.MANIFEST), float(one.issued_s))
            for one in found
        )


def _peer(text: str) -> PeerId:
    try:
        public_key_of(PeerId(text))
    except PeerViolation:
        raise InvalidSpec("peers", f"{text[:80]!r} is no peer id") from None
    return PeerId(text)
