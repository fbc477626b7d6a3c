from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from celluler.content.digest import digest_of
from celluler.errors import BadSignature, InvalidSpec, ProtocolViolation
from celluler.identity import Identity, seal
from celluler.models.access import SealedKey
from celluler.models.beside import FileBeside
from celluler.models.manifest import (
    Metric,
    ModelManifest,
    TensorSchema,
    describe_model,
    open_manifest,
    seal_manifest,
)
from tests.support.specs import MLP, TINY, as_bytes, dense, regression

ALICE, MALLORY = Identity(b"a" * 32), Identity(b"m" * 32)
DIGEST = digest_of(b"weights")


def manifest(version: str = "1.0.0", **changes: Any) -> ModelManifest:
    made = describe_model(
        "digits",
        "1.0.0",
        as_bytes(MLP),
        DIGEST,
        created_s=1_700_000_000,
        nickname="alice",
        labels=tuple("0123456789"),
        metrics=(Metric("accuracy", 0.95),),
        parents=(digest_of(b"parent"),),
        dataset=digest_of(b"digits"),
    )
    return replace(made, **{"version": version, **changes})


def test_a_manifest_is_signed_and_opened() -> None:
    envelope = seal_manifest(ALICE, manifest())
    opened = open_manifest(envelope, signer=ALICE.peer_id)
    assert opened.record == manifest()
    assert opened.signed.signer == ALICE.peer_id
    assert opened.digest == digest_of(envelope)
    assert opened.architecture.parameter_bytes == opened.record.weights_bytes


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"weights_bytes": 1}, "weights_bytes"),
        ({"weights_bytes": 1 << 40}, "weights_bytes"),
        ({"spec": as_bytes(TINY)}, "weights_bytes"),
        ({"spec": b"{}"}, "spec.spec"),
        ({"task": "regression"}, "task"),
        ({"preprocess": b"{}"}, "preprocess.transforms"),
        ({"postprocess": b'{"transforms": 1, "outputs": [{"name": "raw"}]}'}, "postprocess.outputs[0].name"),
        ({"input": TensorSchema("float32", (65,))}, "input"),
        ({"output": TensorSchema("float32", (11,))}, "output"),
        ({"labels": ("one",)}, "labels"),
        ({"labels": ("same",) * 10}, "labels"),
        ({"name": "../digits"}, "name"),
        ({"nickname": "Alice"}, "nickname"),
        ({"version": "01.2.3"}, "version"),
        ({"spec": as_bytes(regression(dense(0)))}, "spec.layers[0].width"),
        ({"metrics": (Metric("A b", 1.0),)}, "metrics[0].name"),
        ({"category": "Vision"}, "category"),
        ({"framework": "a b"}, "framework"),
        ({"format": "pickle"}, "format"),
        ({"dtype": "float16"}, "dtype"),
        ({"licence": "MIT\x1b[2J"}, "licence"),
        ({"tags": ("b", "a")}, "tags"),
        ({"tags": ("a", "a")}, "tags"),
        ({"tags": ("A",)}, "tags[0]"),
        ({"regions": ("EU west",)}, "regions[0]"),
        ({"description": "one line\nanother"}, "description"),
        ({"description": "\u202egnp.exe"}, "description"),
        ({"transcripts": (DIGEST,)}, "transcripts"),
        ({"job": DIGEST, "transcripts": (DIGEST, DIGEST)}, "transcripts"),
        ({"job": DIGEST, "transcripts": (b"b" * 32, b"a" * 32)}, "transcripts"),
        ({"plain": DIGEST}, "plain"),
        ({"files": (FileBeside("weights", DIGEST, None),)}, "files[0].name"),
        ({"files": (FileBeside("tokenizer", DIGEST, None),) * 2}, "files"),
        ({"files": (FileBeside("tokenizer", DIGEST, DIGEST),)}, "files[0].plain"),
        ({"sealed": (SealedKey(ALICE.public_key, bytes(80)),)}, "plain"),
        ({"sealed": (SealedKey(ALICE.public_key, bytes(80)),) * 2, "plain": DIGEST}, "sealed"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_by_both_sides(changes: dict[str, Any], path: str) -> None:
    lying = manifest(**changes)
    with pytest.raises(InvalidSpec) as caught:
        seal_manifest(ALICE, lying)
    assert caught.value.path == path
    with pytest.raises(ProtocolViolation):
        open_manifest(seal(ALICE, lying))


def test_what_is_said_for_people_travels_too() -> None:
    said = manifest(
        category="vision",
        licence="Apache-2.0",
        tags=("digits", "small"),
        description="Reads one digit of 8×8 pixels.",
        card=digest_of(b"# Digits"),
        copies=5,
        regions=("eu", "us-west"),
    )
    assert open_manifest(seal_manifest(ALICE, said)).record == said
    assert not said.encrypted
    assert said.readers == ()


def test_tags_are_put_in_order_once_each() -> None:
    made = describe_model(
        "digits", "1.0.0", as_bytes(MLP), DIGEST, created_s=1, tags=["b", "a", "b"], regions=["us", "eu"]
    )
    assert made.tags == ("a", "b")
    assert made.regions == ("eu", "us")


def test_an_encrypted_model_names_its_readers() -> None:
    keys = tuple(sorted((SealedKey(who.public_key, bytes(80)) for who in (ALICE, MALLORY)), key=lambda one: one.reader))
    made = manifest(sealed=keys, plain=DIGEST)
    assert open_manifest(seal_manifest(ALICE, made)).record.encrypted
    assert set(made.readers) == {ALICE.peer_id, MALLORY.peer_id}


def test_a_manifest_in_anothers_name_is_refused() -> None:
    with pytest.raises(BadSignature):
        open_manifest(seal_manifest(MALLORY, manifest()), signer=ALICE.peer_id)


def test_a_changed_manifest_is_refused() -> None:
    envelope = bytearray(seal_manifest(ALICE, manifest()))
    envelope[envelope.index(b"1.0.0")] ^= 1
    with pytest.raises(BadSignature):
        open_manifest(bytes(envelope))
