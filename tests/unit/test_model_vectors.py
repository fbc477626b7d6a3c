"""Golden bytes of what an author signs about models, and of files encrypted for readers."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from celluler.content.digest import digest_of
from celluler.identity import Identity, seal
from celluler.models.access import SealedKey, decrypt_file, encrypt_file, open_key, seal_key
from celluler.models.beside import FileBeside
from celluler.models.index import Alias, VersionEntry, VersionIndex, open_index
from celluler.models.manifest import Metric, describe_model, open_manifest
from celluler.models.provenance import LogEntry, open_entry
from celluler.models.transforms.document import canonical
from tests.support.specs import TINY, as_bytes
from tests.support.vectors import FOLDER
from tests.unit.test_record_vectors import check_records

AUTHOR = Identity(bytes(range(32)))
KEY = b"k" * 32
PUBLIC = describe_model(
    "tiny",
    "1.2.0",
    as_bytes(TINY),
    digest_of(b"weights"),
    created_s=1_700_000_000,
    nickname="alice",
    labels=("cat", "dog"),
    metrics=(Metric("accuracy", 0.5),),
    parents=(digest_of(b"parent"),),
    dataset=digest_of(b"dataset"),
    job=digest_of(b"job"),
    transcripts=(digest_of(b"transcript"),),
    category="vision",
    licence="Apache-2.0",
    tags=("small", "toy"),
    description="Tells cats from dogs.",
    card=digest_of(b"# Tiny"),
    copies=5,
    regions=("eu",),
)
PRIVATE = replace(PUBLIC, sealed=(SealedKey(AUTHOR.public_key, b"b" * 80),), plain=digest_of(b"plain"))
RAW = {"name": "pixels", "dtype": "uint8", "shape": [3]}
BEFORE = {"transforms": 1, "input": RAW, "steps": [{"kind": "scale", "by": 0.5}]}
AFTER = {
    "transforms": 1,
    "outputs": [{"name": "sure", "of": "probabilities", "steps": [{"kind": "threshold", "at": 0.5}]}],
}
WITH_FILES = replace(
    PRIVATE,
    files=(
        FileBeside("chat-template", digest_of(b"sealed template"), digest_of(b"template")),
        FileBeside("tokenizer", digest_of(b"sealed tokenizer"), digest_of(b"tokenizer")),
    ),
)
TRANSFORMED = replace(PUBLIC, preprocess=canonical(BEFORE), postprocess=canonical(AFTER))
INDEX = VersionIndex(
    "tiny",
    "model",
    7,
    (VersionEntry("1.1.0", digest_of(b"1.1.0")), VersionEntry("1.2.0", digest_of(b"1.2.0"), "trained on the test set")),
    (Alias("stable", "1.1.0"),),
    "1.1.0",
    digest_of(b"entry"),
)
FIRST = LogEntry("tiny", 1, None, 1_700_000_000, "published", "1.1.0", digest_of(b"1.1.0"), "")
SECOND = LogEntry("tiny", 2, digest_of(seal(AUTHOR, FIRST)), 1_700_000_001, "aliased", "1.1.0", None, "stable")


def test_records_of_models_are_sealed_as_documented() -> None:
    check_records("models", "blocks", AUTHOR, [PUBLIC, PRIVATE, TRANSFORMED, WITH_FILES, INDEX, FIRST, SECOND])
    assert open_manifest(seal(AUTHOR, PRIVATE)).record == PRIVATE
    assert open_manifest(seal(AUTHOR, WITH_FILES)).record == WITH_FILES
    assert open_manifest(seal(AUTHOR, TRANSFORMED)).interface.usual == "sure"
    assert open_index(seal(AUTHOR, INDEX)).record == INDEX
    assert open_entry(seal(AUTHOR, SECOND)).record == SECOND


def test_files_for_readers_are_as_the_golden_bytes(tmp_path: Path) -> None:
    plain, sealed, back = (tmp_path / name for name in ("plain", "sealed", "back"))
    plain.write_bytes(b"celluler")
    encrypt_file(plain, sealed, KEY)
    path = FOLDER / "encrypted-file.json"
    written = {"format": "encrypted file 1", "key": KEY.hex(), "plain": b"celluler".hex()}
    written |= {"encrypted": sealed.read_bytes().hex(), "seed": AUTHOR.seed.hex()}
    if os.environ.get("CELLULER_WRITE_VECTORS"):
        (fresh,) = seal_key(KEY, [AUTHOR.peer_id])  # another one each time, so an old one is kept
        box = json.loads(path.read_text())["box"] if path.exists() else fresh.box.hex()
        path.write_text(json.dumps(written | {"box": box}, indent=1) + "\n")
    golden = json.loads(path.read_text())
    assert golden == written | {"box": golden["box"]}
    assert open_key(AUTHOR, [SealedKey(AUTHOR.public_key, bytes.fromhex(golden["box"]))]) == KEY
    decrypt_file(sealed, back, KEY, plain=digest_of(b"celluler"))
    assert back.read_bytes() == b"celluler"
