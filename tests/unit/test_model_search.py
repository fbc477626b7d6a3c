from __future__ import annotations

from dataclasses import replace

import pytest

from celluler.content.digest import digest_of
from celluler.errors import InvalidSpec
from celluler.identity import Identity
from celluler.models.manifest import describe_model, open_manifest, seal_manifest
from celluler.models.search import Entry, Query, entry_of, find, matches, order
from tests.support.specs import TINY, as_bytes

ALICE = Identity(b"a" * 32).peer_id


def entry(name: str, version: str = "1.0.0", **known: object) -> Entry:
    made = Entry(digest_of(f"{name}:{version}".encode()), ALICE, name, version, "alice")
    return replace(made, **known)  # type: ignore[arg-type]


DIGITS = entry(
    "digits", task="classification", category="vision", tags=("mnist", "small"), licence="Apache-2.0",
    description="Reads one handwritten digit.", local=True, created_s=3, total_bytes=10,
)  # fmt: skip
LETTERS = entry("letters", task="classification", description="Like digits, for letters.", created_s=5, total_bytes=5)
ANNOUNCED = entry("prices")


@pytest.mark.parametrize(
    "query",
    [
        Query(),
        Query(task="classification"),
        Query(category="vision"),
        Query(tag="mnist"),
        Query(author="alice"),
        Query(author=ALICE),
        Query(licence="apache-2.0"),
        Query(local=True),
        Query(text="DIGIT hand"),
        Query(text="mni vision"),
    ],
)
def test_a_model_is_found_by_what_is_said_of_it(query: Query) -> None:
    assert matches(query, DIGITS)


@pytest.mark.parametrize(
    "query",
    [
        Query(task="regression"),
        Query(category="vis"),
        Query(tag="mni"),
        Query(author="ali"),
        Query(licence="MIT"),
        Query(text="digit letters"),
        Query(task="classification", text="nothing"),
    ],
)
def test_a_model_is_not_found_by_what_is_not(query: Query) -> None:
    assert not matches(query, DIGITS)


def test_of_an_announcement_only_the_name_is_found() -> None:
    assert matches(Query(text="price", author="alice"), ANNOUNCED)
    assert not matches(Query(task="classification"), ANNOUNCED)
    assert not matches(Query(local=True), ANNOUNCED)


def test_names_weigh_more_than_descriptions() -> None:
    assert find(Query(text="digits", sort="relevance"), [LETTERS, DIGITS]) == [DIGITS, LETTERS]


def test_sorted_as_asked_for() -> None:
    for sort, first in (("name", DIGITS), ("newest", LETTERS), ("size", DIGITS)):
        assert order(Query(sort=sort), [LETTERS, ANNOUNCED, DIGITS])[0] == first
    assert order(Query(sort="providers"), [LETTERS, replace(ANNOUNCED, providers=2)])[0].name == "prices"
    with pytest.raises(InvalidSpec):
        Query(sort="luck")


def test_of_one_name_the_newest_version_comes_first_and_nonsense_last() -> None:
    versions = ["1.10.0", "1.9.0", "1.9.0-rc.1", "latest"]
    listed = order(Query(), [entry("digits", version) for version in reversed(versions)])
    assert [one.version for one in listed] == versions


def test_everything_that_is_searched_for_stands_in_the_manifest() -> None:
    identity = Identity(b"a" * 32)
    manifest = describe_model(
        "tiny", "1.0.0", as_bytes(TINY), bytes(32), created_s=7, category="toys", tags=["small"], licence="MIT",
        description="Two classes.", nickname="alice",
    )  # fmt: skip
    made = entry_of(open_manifest(seal_manifest(identity, manifest)), local=True, providers=2)
    assert (made.task, made.category, made.tags, made.licence) == ("classification", "toys", ("small",), "MIT")
    assert (made.author, made.nickname, made.created_s, made.local, made.providers) == (ALICE, "alice", 7, True, 2)
    assert made.total_bytes == manifest.weights_bytes
