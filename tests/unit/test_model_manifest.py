from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from celluler.content.digest import digest_of
from celluler.errors import BadSignature, InvalidSpec, LocalError, NotFound, ProtocolViolation
from celluler.identity import Identity, seal
from celluler.models.manifest import (
    Alias,
    Metric,
    ModelManifest,
    TensorSchema,
    VersionEntry,
    VersionIndex,
    describe_model,
    extend_index,
    open_index,
    open_manifest,
    seal_index,
    seal_manifest,
    set_alias,
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
        ({"input": TensorSchema("float32", (65,))}, "input"),
        ({"output": TensorSchema("float32", (11,))}, "output"),
        ({"labels": ("one",)}, "labels"),
        ({"labels": ("same",) * 10}, "labels"),
        ({"name": "../digits"}, "name"),
        ({"nickname": "Alice"}, "nickname"),
        ({"version": "01.2.3"}, "version"),
        ({"spec": as_bytes(regression(dense(0)))}, "spec.layers[0].width"),
        ({"metrics": (Metric("A b", 1.0),)}, "metrics[0].name"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_by_both_sides(changes: dict[str, Any], path: str) -> None:
    lying = manifest(**changes)
    with pytest.raises(InvalidSpec) as caught:
        seal_manifest(ALICE, lying)
    assert caught.value.path == path
    with pytest.raises(ProtocolViolation):
        open_manifest(seal(ALICE, lying))


def test_a_manifest_in_anothers_name_is_refused() -> None:
    with pytest.raises(BadSignature):
        open_manifest(seal_manifest(MALLORY, manifest()), signer=ALICE.peer_id)


def test_a_changed_manifest_is_refused() -> None:
    envelope = bytearray(seal_manifest(ALICE, manifest()))
    envelope[envelope.index(b"1.0.0")] ^= 1
    with pytest.raises(BadSignature):
        open_manifest(bytes(envelope))


def test_an_index_grows_in_order_and_counts_its_changes() -> None:
    index = None
    for version in ("1.0.0", "0.9.0", "1.10.0", "1.9.0", "2.0.0-rc.1"):
        index = extend_index(index, manifest(version), digest_of(version.encode()))
    assert index is not None
    assert [entry.version for entry in index.entries] == ["0.9.0", "1.0.0", "1.9.0", "1.10.0", "2.0.0-rc.1"]
    assert index.number == 5
    assert index.find().version == "1.10.0"
    assert index.find("0.9.0").manifest == digest_of(b"0.9.0")
    with pytest.raises(NotFound):
        index.find("3.0.0")
    assert open_index(seal_index(ALICE, index), signer=ALICE.peer_id).record == index


def test_a_published_version_does_not_change() -> None:
    index = extend_index(None, manifest(), DIGEST)
    assert extend_index(index, manifest(), DIGEST) is index
    with pytest.raises(LocalError, match="published already"):
        extend_index(index, manifest(), digest_of(b"another"))


def test_an_alias_follows_where_it_is_put() -> None:
    index = extend_index(extend_index(None, manifest("1.0.0"), DIGEST), manifest("1.1.0"), DIGEST)
    index = set_alias(set_alias(index, "stable", "1.0.0"), "beta", "1.1.0")
    index = set_alias(index, "stable", "1.1.0")
    assert index.aliases == (Alias("beta", "1.1.0"), Alias("stable", "1.1.0"))
    assert index.find(alias="stable").version == "1.1.0"
    with pytest.raises(NotFound):
        index.find(alias="none")
    with pytest.raises(NotFound):
        set_alias(index, "stable", "9.9.9")


ENTRIES = (VersionEntry("1.0.0", DIGEST), VersionEntry("1.1.0", DIGEST))


@pytest.mark.parametrize(
    "index",
    [
        VersionIndex("digits", 1, ENTRIES[::-1], ()),
        VersionIndex("digits", 1, (ENTRIES[0], ENTRIES[0]), ()),
        VersionIndex("digits", 1, (VersionEntry("one.0", DIGEST),), ()),
        VersionIndex("digits", 1, ENTRIES, (Alias("stable", "2.0.0"),)),
        VersionIndex("digits", 1, ENTRIES, (Alias("b", "1.0.0"), Alias("a", "1.0.0"))),
        VersionIndex("digits", 1, ENTRIES, (Alias("A", "1.0.0"),)),
        VersionIndex("a/b", 1, ENTRIES, ()),
    ],
)
def test_an_index_out_of_order_is_a_violation(index: VersionIndex) -> None:
    with pytest.raises(ProtocolViolation):
        open_index(seal(ALICE, index))
