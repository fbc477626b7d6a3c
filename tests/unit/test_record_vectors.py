"""Golden bytes of the signed records that travel in gossip and stand in the DHT."""

from __future__ import annotations

import json
import os
from typing import Any

from celluler.identity import Identity, open_envelope, seal
from celluler_protocols.bulletin import open_announcement
from celluler_protocols.directory import Head, head_key, open_head
from celluler_protocols.gossip import TOPIC
from tests.support.vectors import FOLDER
from tests.unit.test_gossip_vectors import ALL, AUTHOR


def check_records(name: str, channel: str, author: Identity, records: list[Any]) -> None:
    written = [
        {"type": type(r).__name__, "kind": r.KIND, "record": repr(r), "envelope": seal(author, r).hex()}
        for r in records
    ]
    path = FOLDER / f"{name}.json"
    golden = {"channel": channel, "seed": author.seed.hex(), "signer": author.peer_id, "records": written}
    if os.environ.get("CELLULER_WRITE_VECTORS"):
        path.write_text(json.dumps(golden, indent=1) + "\n")
    assert json.loads(path.read_text()) == golden
    for record, vector in zip(records, written, strict=True):
        assert open_envelope(type(record), bytes.fromhex(vector["envelope"])).record == record


def test_announcements_are_sealed_as_documented() -> None:
    check_records("gossip", TOPIC, AUTHOR, [*ALL])
    assert all(open_announcement(seal(AUTHOR, record)) for record in ALL)


def test_heads_are_sealed_as_documented() -> None:
    head = Head("digits", 2, b"i" * 32, 1_700_000_000)
    key = head_key(AUTHOR.peer_id, "digits")
    check_records("directory", key, AUTHOR, [head])
    assert open_head(key, seal(AUTHOR, head)).record == head
