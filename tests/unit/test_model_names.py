from __future__ import annotations

import pytest

from celluler.content.digest import cid_of, digest_of
from celluler.errors import InvalidSpec
from celluler.identity import Identity
from celluler.models.names import ModelName, parse_reference
from celluler.models.version import check_step, newest, parse_version, predecessor

PEER = Identity(b"a" * 32).peer_id


@pytest.mark.parametrize(
    "text",
    ["alice/digits", "alice/digits:1.2.3", "alice/digits@stable", f"{PEER}/digits:0.1.0-rc.1+b", "a/b", "a-1/b_c.d"],
)
def test_a_name_is_read_and_written(text: str) -> None:
    assert str(ModelName.parse(text)) == text
    assert parse_reference(text) == ModelName.parse(text)


def test_a_name_has_its_parts() -> None:
    name = ModelName.parse("alice/digits:1.2.3")
    assert (name.author, name.name, name.version, name.alias) == ("alice", "digits", parse_version("1.2.3"), None)
    assert not name.author_is_peer
    assert ModelName.parse(f"{PEER}/digits@stable").author_is_peer


@pytest.mark.parametrize(
    "text",
    [
        "", "digits", "/", "alice/", "/digits", "Alice/digits", "alice/Digits", "alice/digits:", "alice/digits@",
        "alice/digits:1.2", "alice/digits:v1.2.3", "alice/digits:1.2.3@stable", "alice/digits@stable:1.2.3",
        "alice/a/b", "alice/ digits", "alice/digits\n", "alice/..", "../alice", "alice/-x", "аlice/digits",
        "12D3KooWnope/digits", PEER[:-1] + "/digits", "alice/" + "x" * 65, "x" * 300 + "/y",
        "alice/digits:1.0.0-" + "x" * 64, "alice/digits:\ud800",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec):
        parse_reference(text)


def test_a_cid_stands_for_its_digest() -> None:
    digest = digest_of(b"a manifest")
    assert parse_reference(cid_of(digest)) == digest


def test_the_newest_version_is_a_release_if_there_is_one() -> None:
    assert newest(["1.9.0", "1.10.0", "1.10.0+a-b", "2.0.0-rc.1"]) == "1.10.0+a-b"
    assert newest(["2.0.0-rc.1", "2.0.0-rc.2"]) == "2.0.0-rc.2"


def test_a_version_is_compared_with_the_highest_release_below_it() -> None:
    published = ["0.9.0", "1.0.0", "1.1.0-rc.1", "2.0.0"]
    assert predecessor("1.1.0", published) == "1.0.0"
    assert predecessor("2.0.0-rc.1", published) == "1.0.0"
    assert predecessor("3.0.0", published) == "2.0.0"
    assert predecessor("0.9.0", published) is None


@pytest.mark.parametrize(
    ("old", "step", "least", "too_small"),
    [
        ("1.4.2", "major", "2.0.0", "1.99.0"),
        ("1.4.2", "minor", "1.5.0", "1.4.99"),
        ("1.4.2", "patch", "1.4.3", "1.4.2+again"),
        ("0.4.2", "major", "0.5.0", "0.4.99"),
        ("0.4.2", "minor", "0.4.3", "0.4.2+again"),
        ("0.4.2", "patch", "0.4.3", "0.4.2+again"),
    ],
)
def test_a_step_must_be_large_enough(old: str, step: str, least: str, too_small: str) -> None:
    for enough in (least, f"{least}-rc.1", "7.0.0"):
        check_step(old, enough, step)
    with pytest.raises(InvalidSpec):
        check_step(old, too_small, step)


def test_what_is_too_small_a_step_is_told_the_least_and_a_pre_release_promises_nothing() -> None:
    with pytest.raises(InvalidSpec) as caught:
        check_step("1.4.2", "1.4.3", "major")
    assert caught.value.hint == "the least is 2.0.0"
    check_step("1.4.2-rc.1", "1.4.2", "major")


def test_a_step_down_is_none() -> None:
    with pytest.raises(InvalidSpec, match="not higher"):
        check_step("2.0.0", "1.9.9", "patch")
