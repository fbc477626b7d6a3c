from __future__ import annotations

import pytest

from celluler.content.digest import cid_of, digest_of
from celluler.errors import InvalidSpec
from celluler.identity import Identity
from celluler.models.names import ModelName, parse_reference
from celluler.models.version import newest, parse_version

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
    versions = [parse_version(text) for text in ("1.9.0", "1.10.0", "2.0.0-rc.1")]
    assert str(newest(versions)) == "1.10.0"
    assert str(newest(versions[2:])) == "2.0.0-rc.1"
    assert newest([]) is None
