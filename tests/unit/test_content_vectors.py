"""Golden bytes of `/celluler/content/1`, and of the manifests that its digests name."""

from __future__ import annotations

import json
import os

from celluler.content.digest import Codec, cid_of, digest_of
from celluler.content.manifest import Header, Leaf, Manifest, Tensor, parse_leaf, parse_manifest
from celluler.wire import pack
from celluler_protocols.content import PROTOCOL_ID, Absent, Busy, Found, Want, frames
from tests.support.vectors import FOLDER, check_vectors

ONE, TWO = digest_of(b"one"), digest_of(b"two")


def test_messages_are_as_the_golden_bytes() -> None:
    examples = [Want((ONE,)), Want((ONE, TWO)), Found(ONE, b"one"), Found(digest_of(b""), b""), Absent(TWO), Busy()]
    check_vectors("content", PROTOCOL_ID, frames(), examples)


def test_manifests_and_leaves_are_as_the_golden_bytes() -> None:
    leaf = Leaf((ONE, TWO))
    plain = Manifest(1, "blob", 1030, 1024, None, (), (digest_of(pack(leaf)),), ())
    tensors = (Tensor("bias", "F32", (4,), 90, 16, 0, 1), Tensor("dense", "F16", (2, 3), 106, 12, 1, 1))
    model = Manifest(1, "model", 118, 1 << 20, Header(TWO, 90), tensors, plain.leaves, (("format", "safetensors"),))
    records = {"Leaf": leaf, "Manifest (plain)": plain, "Manifest (safetensors)": model}
    written = [
        {
            "type": name,
            "record": repr(record),
            "bytes": pack(record).hex(),
            "digest": digest_of(pack(record)).hex(),
            "cid": cid_of(digest_of(pack(record)), Codec.MANIFEST),
        }
        for name, record in records.items()
    ]
    path = FOLDER / "content-manifest.json"
    if os.environ.get("CELLULER_WRITE_VECTORS"):
        path.write_text(json.dumps({"format": "manifest v1", "records": written}, indent=1) + "\n")
    golden = json.loads(path.read_text())
    assert golden == {"format": "manifest v1", "records": written}
    leaf_bytes, plain_bytes, model_bytes = (bytes.fromhex(each["bytes"]) for each in golden["records"])
    assert parse_manifest(plain_bytes) == plain
    assert parse_manifest(model_bytes) == model
    assert parse_leaf(leaf_bytes, plain, 0) == leaf
