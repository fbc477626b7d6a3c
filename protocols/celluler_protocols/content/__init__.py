"""/celluler/content/1: blocks and chunks by digest. Spec: docs/reference/protocols/content.md

The requester says which digests it wants, the provider answers each of them once, in any order: the bytes, or that it
has not got them. Either may open any number of streams; on one stream only its opener asks.

`serve_content` is the provider's half; `fetch` and `fetch_block` are the requester's, over several providers at once,
and `Transfer` is a fetch that several callers share. What to ask whom, and whom to believe, is
`celluler.content.download`; this package moves bytes between it, the streams and the store, and hands sources that
grant it to a mover. Knows nothing of libp2p: a stream is any trio stream whose other end is known by a peer id.
"""

from celluler_protocols.content.block import fetch_block
from celluler_protocols.content.messages import PROTOCOL_ID, Absent, Busy, Found, Want, frames
from celluler_protocols.content.provider import serve_content, turn_away
from celluler_protocols.content.talk import OnViolation, OpenStream
from celluler_protocols.content.transfer import FetchReport, OnProgress, Select, Transfer, Wish, fetch

__all__ = [
    "PROTOCOL_ID",
    "Absent",
    "Busy",
    "FetchReport",
    "Found",
    "OnProgress",
    "OnViolation",
    "OpenStream",
    "Select",
    "Transfer",
    "Want",
    "Wish",
    "fetch",
    "fetch_block",
    "frames",
    "serve_content",
    "turn_away",
]
