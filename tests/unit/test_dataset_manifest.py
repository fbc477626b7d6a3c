"""What an author signs about a dataset, and which version a change takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from celluler.content.digest import digest_of
from celluler.datasets.manifest import (
    DatasetManifest,
    check_bump,
    describe_dataset,
    open_dataset,
    required_bump,
    seal_dataset,
)
from celluler.datasets.schema import Column, ColumnQuality, LabelCount, Summary
from celluler.errors import BadSignature, InvalidSpec, ProtocolViolation
from celluler.identity import Identity, seal

ALICE, MALLORY = Identity(b"a" * 32), Identity(b"m" * 32)
CONTENT = digest_of(b"file")

SUMMARY = Summary(
    format="parquet",
    rows=10,
    schema=(Column("pixels", "float32", (8, 8)), Column("from", "text", ()), Column("label", "int64", ())),
    quality=(
        ColumnQuality("pixels", 1, 0.0, 1.0, 0.25, None),
        ColumnQuality("from", 0, None, None, None, 4),
        ColumnQuality("label", 1, 0.0, 10.0, 4.5, 3),
    ),
    label="label",
    balance=(LabelCount("0", 4), LabelCount("10", 3), LabelCount("9", 2)),
)


def manifest(summary: Summary = SUMMARY, **changes: Any) -> DatasetManifest:
    made = describe_dataset(
        "digits",
        "1.0.0",
        CONTENT,
        4096,
        SUMMARY,
        created_s=1_700_000_000,
        nickname="alice",
        parents=(digest_of(b"parent"),),
        licence="CC-BY-4.0",
        tags=("vision", "digits", "vision"),
        description="Handwritten digits, 8 by 8",
        card=digest_of(b"card"),
        copies=4,
        regions=("eu", "asia"),
    )
    fields = {name: getattr(summary, name) for name in ("format", "rows", "schema", "quality", "label", "balance")}
    return replace(made, **fields | changes)


def test_a_manifest_is_signed_and_opened() -> None:
    envelope = seal_dataset(ALICE, manifest())
    opened = open_dataset(envelope, signer=ALICE.peer_id)
    assert opened.record == manifest()
    assert opened.record.summary == SUMMARY
    assert opened.digest == digest_of(envelope)
    assert (opened.record.tags, opened.record.regions) == (("digits", "vision"), ("asia", "eu"))


def test_a_manifest_in_anothers_name_or_changed_on_the_way_is_refused() -> None:
    envelope = seal_dataset(MALLORY, manifest())
    with pytest.raises(BadSignature):
        open_dataset(envelope, signer=ALICE.peer_id)
    with pytest.raises(BadSignature):
        open_dataset(envelope.replace(b"1.0.0", b"1.0.1"))


PIXELS, FROM, LABEL = SUMMARY.quality


def schema(place: int, **changes: Any) -> dict[str, Any]:
    columns = list(SUMMARY.schema)
    columns[place] = replace(columns[place], **changes)
    return {"schema": tuple(columns)}


def quality(place: int, **changes: Any) -> dict[str, Any]:
    figures = list(SUMMARY.quality)
    figures[place] = replace(figures[place], **changes)
    return {"quality": tuple(figures)}


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"name": "../digits"}, "name"),
        ({"nickname": "Alice"}, "nickname"),
        ({"version": "01.2.3"}, "version"),
        ({"format": "csv"}, "format"),
        ({"licence": "<script>"}, "licence"),
        ({"tags": ("b", "a")}, "tags"),
        ({"regions": ("Mars",)}, "regions[0]"),
        ({"description": "two\nlines"}, "description"),
        (schema(0, name="a\x1b[2J"), "schema[0].name"),
        (schema(0, dtype="complex64"), "schema[0].dtype"),
        (schema(1, shape=(3,)), "schema[1].shape"),
        (schema(1, name="pixels"), "schema"),
        (schema(1, name="to"), "quality"),
        ({"quality": SUMMARY.quality[:2]}, "quality"),
        (quality(0, missing=11), "quality[0].missing"),
        (quality(0, mean=2.0), "quality[0]"),
        (quality(0, mean=None), "quality[0]"),
        (quality(0, distinct=3), "quality[0].distinct"),
        (quality(1, minimum=0.0, mean=0.0, maximum=0.0), "quality[1]"),
        (quality(1, distinct=11), "quality[1].distinct"),
        (quality(1, distinct=0), "quality[1].distinct"),
        ({"label": "class"}, "label"),
        ({"label": ""}, "balance"),
        ({"balance": SUMMARY.balance[::-1]}, "balance"),
        ({"balance": SUMMARY.balance[:2]}, "balance"),
        ({"balance": (*SUMMARY.balance[:2], LabelCount("9", 3))}, "balance"),
        ({"balance": (*SUMMARY.balance[:2], LabelCount("\u202e9", 2))}, "balance[2].label"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_by_both_sides(changes: dict[str, Any], path: str) -> None:
    lying = manifest(**changes)
    with pytest.raises(InvalidSpec) as caught:
        seal_dataset(ALICE, lying)
    assert caught.value.path == path
    with pytest.raises(ProtocolViolation):
        open_dataset(seal(ALICE, lying))


@pytest.mark.parametrize("field", ["rows", "content_bytes"])
def test_a_dataset_of_nothing_is_no_dataset(field: str) -> None:
    with pytest.raises(ProtocolViolation):
        seal(ALICE, manifest(**{field: 0}))


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, "patch"),
        ({"description": "other words", "tags": (), "licence": "MIT"}, "patch"),
        ({"content": digest_of(b"another")}, "minor"),
        ({"format": "arrow", "content": digest_of(b"another")}, "minor"),
        (schema(0, shape=(64,)), "major"),
        (schema(2, dtype="int32"), "major"),
        ({"label": "from", "balance": ()}, "major"),
    ],
)
def test_a_version_says_how_far_a_dataset_has_moved(changes: dict[str, Any], step: str) -> None:
    assert required_bump(manifest(), manifest(**changes)) == step


def test_too_small_a_step_is_refused_with_the_least_that_will_do() -> None:
    check_bump(manifest(), manifest(version="1.1.0", content=digest_of(b"more")))
    with pytest.raises(InvalidSpec) as caught:
        check_bump(manifest(), manifest(version="1.0.1", content=digest_of(b"more")))
    assert caught.value.hint is not None
    assert "1.1.0" in caught.value.hint
