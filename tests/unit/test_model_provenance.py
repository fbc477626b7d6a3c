from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from celluler.content.digest import digest_of
from celluler.errors import BadSignature, CorruptBlock, InvalidSpec, LocalError, ProtocolViolation
from celluler.identity import Identity, seal
from celluler.models.index import VersionIndex, extend_index, retract, roll_back, set_alias, with_log
from celluler.models.provenance import (
    Chain,
    LogEntry,
    append_entry,
    check_agrees,
    check_chain,
    check_entry,
    open_entry,
)
from tests.unit.test_model_index import Digits

ALICE, MALLORY = Identity(b"a" * 32), Identity(b"m" * 32)
FIRST = LogEntry("digits", 1, None, 10, "published", "1.0.0", digest_of(b"1.0.0"), "")


def log(*done: dict[str, Any], author: Identity = ALICE) -> list[bytes]:
    """Envelopes, oldest first."""
    envelopes: list[bytes] = []
    for at_s, one in enumerate(done):
        newest = open_entry(envelopes[-1]) if envelopes else None
        envelopes.append(append_entry(author, newest, **{"name": "digits", "at_s": at_s, "version": "1.0.0", **one}))
    return envelopes


def published(version: str) -> dict[str, Any]:
    return {"action": "published", "version": version, "subject": digest_of(version.encode())}


DONE = (
    published("1.0.0"),
    published("1.1.0"),
    {"action": "aliased", "note": "stable"},
    {"action": "rolled-back"},
    published("1.2.0"),
    {"action": "retracted", "version": "1.1.0", "note": "trained on the test set"},
    {"action": "readers", "note": "bob may read from here on"},
)


def index() -> VersionIndex:
    """What DONE leads to."""
    made = extend_index(None, Digits("1.0.0"), digest_of(b"1.0.0"))
    made = set_alias(extend_index(made, Digits("1.1.0"), digest_of(b"1.1.0")), "stable", "1.0.0")
    made = extend_index(roll_back(made, "1.0.0"), Digits("1.2.0"), digest_of(b"1.2.0"))
    return with_log(retract(made, "1.1.0", "trained on the test set"), digest_of(log(*DONE)[-1]))


def test_a_log_is_read_from_its_newest_entry_to_its_first() -> None:
    envelopes = log(*DONE)
    entries = check_chain(reversed(envelopes), ALICE.peer_id, "digits", digest_of(envelopes[-1]))
    assert [one.record.number for one in entries] == [7, 6, 5, 4, 3, 2, 1]
    assert [one.record.action for one in reversed(entries)] == [done["action"] for done in DONE]


def test_a_chain_says_which_block_it_wants_next() -> None:
    envelopes = log(*DONE)
    chain = Chain(ALICE.peer_id, "digits", digest_of(envelopes[-1]))
    for envelope in reversed(envelopes):
        assert chain.wanted == digest_of(envelope)
        chain.receive(envelope)
    assert chain.wanted is None
    with pytest.raises(LocalError):
        chain.receive(envelopes[0])


def test_bytes_that_are_not_the_entry_wanted_are_corrupt() -> None:
    envelopes = log(*DONE)
    with pytest.raises(CorruptBlock):
        check_chain([envelopes[-1], envelopes[-3]], ALICE.peer_id, "digits", digest_of(envelopes[-1]))


def test_a_log_that_goes_on_is_not_whole() -> None:
    envelopes = log(*DONE)
    with pytest.raises(LocalError, match="goes on"):
        check_chain(envelopes[:2:-1], ALICE.peer_id, "digits", digest_of(envelopes[-1]))


def test_a_log_is_of_one_author() -> None:
    forged = log(*DONE, author=MALLORY)
    with pytest.raises(BadSignature):
        check_chain(reversed(forged), ALICE.peer_id, "digits", digest_of(forged[-1]))


@pytest.mark.parametrize(
    "second",
    [
        {"number": 3},
        {"number": 2, "at_s": 9},
        {"number": 2, "name": "letters"},
    ],
    ids=["number left out", "time goes back", "another name"],
)
def test_an_author_who_breaks_the_chain_is_named(second: dict[str, Any]) -> None:
    first = seal(ALICE, FIRST)
    fields = {"name": "digits", "at_s": 10} | second
    broken = LogEntry(fields["name"], fields["number"], digest_of(first), fields["at_s"], "readers", "1.0.0", None, "")
    top = seal(ALICE, broken)
    name = fields["name"]
    with pytest.raises(ProtocolViolation) as caught:
        check_chain([top, first], ALICE.peer_id, name, digest_of(top))
    assert caught.value.peer == ALICE.peer_id


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"name": "A"}, "name"),
        ({"number": 2}, "previous"),
        ({"previous": bytes(32)}, "previous"),
        ({"action": "deleted"}, "action"),
        ({"subject": None}, "subject"),
        ({"version": "one.0"}, "version"),
        ({"note": "\x1b[2J"}, "note"),
        ({"action": "aliased", "note": "two words"}, "note"),
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(changes: dict[str, Any], path: str) -> None:
    wrong = replace(FIRST, **changes)
    with pytest.raises(InvalidSpec) as caught:
        check_entry(wrong)
    assert caught.value.path == path
    with pytest.raises(ProtocolViolation, match=path):
        open_entry(seal(ALICE, wrong))


def test_an_entry_that_others_would_refuse_is_not_signed() -> None:
    with pytest.raises(InvalidSpec):
        append_entry(ALICE, None, name="digits", at_s=1, action="deleted", version="1.0.0")


def test_a_clock_that_goes_back_does_not_turn_the_log_around() -> None:
    first = append_entry(ALICE, None, name="digits", at_s=100, action="published", version="1.0.0", subject=bytes(32))
    second = append_entry(ALICE, open_entry(first), name="digits", at_s=50, action="readers", version="1.0.0")
    assert open_entry(second).record.at_s == 100


def test_an_entry_follows_only_our_own_of_the_same_name() -> None:
    newest = open_entry(seal(ALICE, FIRST))
    for identity, name in ((MALLORY, "digits"), (ALICE, "letters")):
        with pytest.raises(LocalError):
            append_entry(identity, newest, name=name, at_s=1, action="readers", version="1.0.0")


# --- log and index ---------------------------------------------------------------------------------------------


def records(*done: dict[str, Any]) -> list[LogEntry]:
    return [open_entry(envelope).record for envelope in log(*done)]


def test_a_log_tells_everything_that_stands_in_the_index() -> None:
    check_agrees(index(), records(*DONE))


@pytest.mark.parametrize("left_out", [1, 2, 4, 5])  # 3, the rollback, was undone by a newer version
def test_an_index_that_says_more_than_its_log_is_a_violation(left_out: int) -> None:
    with pytest.raises(ProtocolViolation):
        check_agrees(index(), records(*DONE[:left_out], *DONE[left_out + 1 :]))


@pytest.mark.parametrize(
    "impossible",
    [
        ({"action": "rolled-back"},),
        (published("1.0.0"), {"action": "rolled-back", "version": "9.0.0"}),
        (published("1.0.0"), {"action": "unaliased", "note": "stable"}),
        (published("1.0.0"), published("1.0.0") | {"subject": digest_of(b"another")}),
    ],
)
def test_a_log_of_what_cannot_have_been_done_is_a_violation(impossible: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(ProtocolViolation):
        check_agrees(index(), records(*impossible))
