"""Finding models among those that are known: filters, words, and an order that is the same for everybody.

What is known of a model is its manifest, or no more than an announcement; a filter on a field that is not known does
not match. Versions of one name are entries of their own. Knows nothing of where entries come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from celluler.errors import InvalidSpec
from celluler.models.manifest import OpenedManifest
from celluler.models.version import Version, parse_version

SORTS = ("name", "newest", "size", "providers", "relevance")


@dataclass(frozen=True, slots=True)
class Entry:
    """One version, as far as it is known. manifest: its digest, which no other entry has. author: a peer id."""

    manifest: bytes
    author: str
    name: str
    version: str
    nickname: str = ""
    kind: str = "model"
    task: str = ""
    category: str = ""
    tags: tuple[str, ...] = ()
    licence: str = ""
    description: str = ""
    total_bytes: int = 0
    created_s: int = 0
    providers: int = 0
    local: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """What an entry must have; an empty field asks for nothing.

    text: words that must all occur in name, description, tags, task or category. author: a nickname or a peer id.
    local: only what is here. sort: one of SORTS; `relevance` is to the text.
    """

    text: str = ""
    task: str = ""
    category: str = ""
    tag: str = ""
    author: str = ""
    licence: str = ""
    local: bool = False
    sort: str = "name"

    def __post_init__(self) -> None:
        if self.sort not in SORTS:
            raise InvalidSpec("sort", f"is {self.sort[:32]!r}, must be one of {', '.join(SORTS)}")


def entry_of(opened: OpenedManifest, *, local: bool = False, providers: int = 0) -> Entry:
    """Everything that can be known of a model."""
    record = opened.record
    return Entry(
        manifest=opened.digest,
        author=opened.signed.signer,
        name=record.name,
        version=record.version,
        nickname=record.nickname,
        task=record.task,
        category=record.category,
        tags=record.tags,
        licence=record.licence,
        description=record.description,
        total_bytes=record.weights_bytes,
        created_s=record.created_s,
        providers=providers,
        local=local,
    )


def find(query: Query, entries: Iterable[Entry]) -> list[Entry]:
    """Those that match, in the order asked for."""
    return order(query, (entry for entry in entries if matches(query, entry)))


def matches(query: Query, entry: Entry) -> bool:
    return (
        _is(query.task, entry.task)
        and _is(query.category, entry.category)
        and _is(query.licence.casefold(), entry.licence.casefold())
        and (not query.tag or query.tag in entry.tags)
        and query.author in ("", entry.author, entry.nickname)
        and (entry.local or not query.local)
        and all(_weight(word, entry) for word in query.text.casefold().split())
    )


def order(query: Query, entries: Iterable[Entry]) -> list[Entry]:
    """The same for the same entries, however they came: by what was asked for, then by name, then newest version."""
    ordered = sorted(entries, key=lambda entry: entry.manifest)
    ordered.sort(key=lambda entry: _precedence(entry.version), reverse=True)
    ordered.sort(key=lambda entry: (entry.nickname or entry.author, entry.name, entry.author))
    words = query.text.casefold().split()
    keys: dict[str, Callable[[Entry], int]] = {
        "newest": lambda entry: -entry.created_s,
        "size": lambda entry: -entry.total_bytes,
        "providers": lambda entry: -entry.providers,
        "relevance": lambda entry: -sum(_weight(word, entry) for word in words),
    }
    if query.sort in keys:
        ordered.sort(key=keys[query.sort])
    return ordered


def _is(wanted: str, value: str) -> bool:
    return not wanted or wanted == value


def _weight(word: str, entry: Entry) -> int:
    """How much a word says about an entry; 0 when it does not occur. A name says more than a description."""
    name = entry.name.casefold()
    return (
        16 * (word == name)
        + 8 * name.startswith(word)
        + 4 * (word in name)
        + 4 * (word in entry.tags)
        + 2 * (word in (entry.task, entry.category))
        + 1 * any(word in text.casefold() for text in (entry.description, entry.task, entry.category, *entry.tags))
    )


def _precedence(version: str) -> tuple[Any, ...]:
    """Ascending. What an announcement calls a version may be none: such come before all others."""
    try:
        return True, parse_version(version), version
    except InvalidSpec:
        return False, Version(0), version
