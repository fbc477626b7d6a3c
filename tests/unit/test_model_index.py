from __future__ import annotations

from dataclasses import dataclass

import pytest

from celluler.content.digest import digest_of
from celluler.errors import InvalidSpec, LocalError, NotFound, ProtocolViolation, Retracted
from celluler.identity import Identity, seal
from celluler.models.index import (
    MAX_ALIASES,
    MAX_INDEX_BYTES,
    MAX_VERSIONS,
    Alias,
    VersionEntry,
    VersionIndex,
    check_index,
    check_succeeds,
    drop_alias,
    extend_index,
    open_index,
    retract,
    roll_back,
    seal_index,
    set_alias,
    with_log,
)

ALICE = Identity(b"a" * 32)
DIGEST = digest_of(b"manifest")


@dataclass(frozen=True)
class Digits:
    version: str
    name: str = "digits"


def published(*versions: str) -> VersionIndex:
    index = None
    for version in versions:
        index = extend_index(index, Digits(version), digest_of(version.encode()))
    assert index is not None
    return index


def test_an_index_grows_in_order_and_counts_its_changes() -> None:
    index = published("1.0.0", "0.9.0", "1.10.0", "1.9.0", "2.0.0-rc.1")
    assert [entry.version for entry in index.entries] == ["0.9.0", "1.0.0", "1.9.0", "1.10.0", "2.0.0-rc.1"]
    assert index.number == 5
    assert index.find().version == "1.10.0"
    assert index.find("0.9.0").manifest == digest_of(b"0.9.0")
    with pytest.raises(NotFound):
        index.find("3.0.0")
    assert open_index(seal_index(ALICE, index), signer=ALICE.peer_id).record == index


def test_a_published_version_does_not_change() -> None:
    index = extend_index(None, Digits("1.0.0"), DIGEST)
    assert extend_index(index, Digits("1.0.0"), DIGEST) is index
    with pytest.raises(LocalError, match="published already"):
        extend_index(index, Digits("1.0.0"), digest_of(b"another"))


def test_a_name_is_of_a_model_or_of_a_dataset() -> None:
    index = extend_index(None, Digits("1.0.0"), DIGEST, kind="dataset")
    assert index.kind == "dataset"
    with pytest.raises(LocalError, match="dataset 'digits'"):
        extend_index(index, Digits("1.1.0"), DIGEST)
    with pytest.raises(LocalError):
        extend_index(index, Digits("1.1.0", name="letters"), DIGEST, kind="dataset")


def test_an_alias_follows_where_it_is_put_until_it_is_dropped() -> None:
    index = set_alias(set_alias(published("1.0.0", "1.1.0"), "stable", "1.0.0"), "beta", "1.1.0")
    index = set_alias(index, "stable", "1.1.0")
    assert index.aliases == (Alias("beta", "1.1.0"), Alias("stable", "1.1.0"))
    assert index.find(alias="stable").version == "1.1.0"
    with pytest.raises(NotFound):
        index.find(alias="none")
    with pytest.raises(NotFound):
        set_alias(index, "stable", "9.9.9")
    dropped = drop_alias(index, "stable")
    assert dropped.number == index.number + 1
    with pytest.raises(NotFound):
        drop_alias(dropped, "stable")


def test_after_a_rollback_the_name_means_the_older_version_until_a_newer_one_comes() -> None:
    index = roll_back(published("1.0.0", "2.0.0"), "1.0.0")
    assert index.find().version == "1.0.0"
    mended = extend_index(index, Digits("1.0.1"), DIGEST)
    assert mended.find().version == "1.0.0"
    assert roll_back(mended, "1.0.1").find().version == "1.0.1"
    newer = extend_index(mended, Digits("2.0.1"), DIGEST)
    assert newer.find().version == "2.0.1"
    assert newer.current is None


def test_rolling_forward_to_the_newest_is_the_same_as_never_having_rolled_back() -> None:
    index = roll_back(roll_back(published("1.0.0", "2.0.0"), "1.0.0"), "2.0.0")
    assert index.current is None
    assert index.find().version == "2.0.0"


def test_a_retracted_version_is_found_no_more_and_says_why_when_it_is_asked_for() -> None:
    index = retract(set_alias(published("1.0.0", "2.0.0"), "stable", "2.0.0"), "2.0.0", "trained on the test set")
    assert index.find().version == "1.0.0"
    for asked in ({"version": "2.0.0"}, {"alias": "stable"}):
        with pytest.raises(Retracted, match="trained on the test set"):
            index.find(**asked)
    assert index.entry("2.0.0").manifest == digest_of(b"2.0.0")
    with pytest.raises(Retracted):
        roll_back(index, "2.0.0")
    with pytest.raises(Retracted):
        set_alias(index, "beta", "2.0.0")


def test_a_name_whose_every_version_was_retracted_says_why() -> None:
    with pytest.raises(Retracted, match="leaks addresses"):
        retract(published("1.0.0"), "1.0.0", "leaks addresses").find()


def test_retracting_what_the_name_was_rolled_back_to_leaves_the_newest() -> None:
    index = roll_back(published("1.0.0", "1.1.0", "2.0.0"), "1.0.0")
    assert retract(index, "1.0.0", "no").find().version == "2.0.0"
    assert retract(index, "2.0.0", "no").find().version == "1.0.0"


@pytest.mark.parametrize("reason", ["", "two\nlines", "x" * 201])
def test_a_retraction_needs_a_reason_that_can_be_shown(reason: str) -> None:
    with pytest.raises(InvalidSpec):
        retract(published("1.0.0"), "1.0.0", reason)


def test_every_change_counts_once() -> None:
    index = published("1.0.0", "2.0.0")
    for changed in (
        set_alias(index, "stable", "1.0.0"),
        roll_back(index, "1.0.0"),
        retract(index, "1.0.0", "no"),
        with_log(index, DIGEST),
    ):
        assert changed.number == index.number + 1
        check_succeeds(index, changed)


ENTRIES = (VersionEntry("1.0.0", DIGEST), VersionEntry("1.1.0", DIGEST))
GONE = VersionEntry("1.0.0", DIGEST, "no")


@pytest.mark.parametrize(
    "index",
    [
        VersionIndex("digits", "model", 1, ENTRIES[::-1]),
        VersionIndex("digits", "model", 1, (ENTRIES[0], ENTRIES[0])),
        VersionIndex("digits", "model", 1, (VersionEntry("one.0", DIGEST),)),
        VersionIndex("digits", "model", 1, ENTRIES, (Alias("stable", "2.0.0"),)),
        VersionIndex("digits", "model", 1, ENTRIES, (Alias("b", "1.0.0"), Alias("a", "1.0.0"))),
        VersionIndex("digits", "model", 1, ENTRIES, (Alias("A", "1.0.0"),)),
        VersionIndex("a/b", "model", 1, ENTRIES),
        VersionIndex("digits", "song", 1, ENTRIES),
        VersionIndex("digits", "model", 1, ENTRIES, current="2.0.0"),
        VersionIndex("digits", "model", 1, (GONE, ENTRIES[1]), current="1.0.0"),
        VersionIndex("digits", "model", 1, (VersionEntry("1.0.0", DIGEST, "\x1b[2J"),)),
    ],
)
def test_an_index_that_contradicts_itself_is_a_violation(index: VersionIndex) -> None:
    with pytest.raises(ProtocolViolation):
        open_index(seal(ALICE, index))
    with pytest.raises(InvalidSpec):
        seal_index(ALICE, index)


@pytest.mark.parametrize(
    "later",
    [
        VersionIndex("digits", "model", 6, (ENTRIES[1],)),
        VersionIndex("digits", "model", 6, (VersionEntry("1.0.0", digest_of(b"x"), "no"), ENTRIES[1])),
        VersionIndex("digits", "model", 6, ENTRIES),
        VersionIndex("digits", "model", 4, (GONE, ENTRIES[1])),
        VersionIndex("digits", "model", 5, (GONE, ENTRIES[1]), (Alias("stable", "1.1.0"),)),
        VersionIndex("letters", "model", 6, (GONE, ENTRIES[1])),
        VersionIndex("digits", "dataset", 6, (GONE, ENTRIES[1])),
    ],
    ids=["gone", "another", "stands again", "number back", "number twice", "name", "kind"],
)
def test_an_index_that_rewrites_history_is_a_violation(later: VersionIndex) -> None:
    earlier = VersionIndex("digits", "model", 5, (GONE, ENTRIES[1]))
    check_succeeds(earlier, earlier)
    with pytest.raises(ProtocolViolation):
        check_succeeds(earlier, later)


def test_a_full_index_takes_no_more_and_can_still_be_published() -> None:
    entries = tuple(VersionEntry(f"1.{number}.0", DIGEST) for number in range(MAX_VERSIONS))
    full = VersionIndex("digits", "model", 1, entries)
    check_index(full)
    assert len(seal_index(ALICE, full)) < MAX_INDEX_BYTES
    with pytest.raises(LocalError, match="versions already"):
        extend_index(full, Digits("2.0.0"), DIGEST)


def test_aliases_are_bounded() -> None:
    index = VersionIndex("digits", "model", 1, ENTRIES, tuple(Alias(f"a{n:02}", "1.0.0") for n in range(MAX_ALIASES)))
    set_alias(index, "a00", "1.1.0")
    with pytest.raises(LocalError, match="aliases already"):
        set_alias(index, "b", "1.0.0")
