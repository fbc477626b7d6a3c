"""All versions of what one author publishes under one name, signed, and every change that may be made to it.

Models and datasets keep the same index. A version never changes and never vanishes: it can be retracted, after which
it is found no more unless it is asked for, and then with the reason. `author/name` means `current`, or the newest
release when the author has set none. Every change is a function from an index to the next, whose number is one higher.

Knows nothing of where an index is kept or how its head is found, nor of what the versions differ in.
"""

from __future__ import annotations

import functools
import itertools
from bisect import insort
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Protocol

from celluler.errors import InvalidSpec, LocalError, NotFound, ProtocolViolation, Retracted
from celluler.identity import Identity, Signed, open_envelope, seal
from celluler.models.names import check_printable, check_word
from celluler.models.version import MAX_VERSION_BYTES, Version, newest, parse_version
from celluler.wire import U64, Bytes32, Length

MAX_INDEX_BYTES = 1 << 19
MAX_VERSIONS = 4096
MAX_ALIASES = 64
MAX_REASON_BYTES = 200
KINDS = ("model", "dataset")

Word = Annotated[str, Length(1, 64)]
VersionText = Annotated[str, Length(5, MAX_VERSION_BYTES)]


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """manifest: digest of the manifest's envelope. retracted: why, in one line; empty when it is not."""

    version: VersionText
    manifest: Bytes32
    retracted: Annotated[str, Length(0, MAX_REASON_BYTES)] = ""


@dataclass(frozen=True, slots=True)
class Alias:
    """`stable` → `1.4.0`."""

    alias: Word
    version: VersionText


@dataclass(frozen=True, slots=True)
class VersionIndex:
    """All versions of one name, ascending. kind: `model` or `dataset`. number: goes up with each change, never back.

    current: what the bare name means; None, the newest release that is not retracted. log: digest of the newest entry
    of the provenance log.
    """

    KIND: ClassVar[str] = "version-index"

    name: Word
    kind: Annotated[str, Length(1, 16)]
    number: U64
    entries: Annotated[tuple[VersionEntry, ...], Length(1, MAX_VERSIONS)]
    aliases: Annotated[tuple[Alias, ...], Length(0, MAX_ALIASES)] = ()
    current: VersionText | None = None
    log: Bytes32 | None = None

    def find(self, version: str | None = None, alias: str | None = None) -> VersionEntry:
        """That version, the version behind an alias, or the current one. Raises NotFound, Retracted."""
        if alias is not None:
            version = next((one.version for one in self.aliases if one.alias == alias), None)
            if version is None:
                raise NotFound(f"{self.name}@{alias}")
        entry = self.entry(version or self.current or self._newest())
        if entry.retracted:
            raise Retracted(f"{self.name}:{entry.version}", entry.retracted)
        return entry

    def entry(self, version: str) -> VersionEntry:
        """That version, retracted or not. Raises NotFound."""
        for entry in self.entries:
            if entry.version == version:
                return entry
        raise NotFound(f"{self.name}:{version}")

    def _newest(self) -> str:
        """Of those not retracted; of all when there are no others, so that the author's reason is heard."""
        standing = [entry.version for entry in self.entries if not entry.retracted]
        return newest(standing or [entry.version for entry in self.entries])


class Versioned(Protocol):
    """What an index needs of a manifest."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...


# --- from one index to the next --------------------------------------------------------------------------------------


def extend_index(
    index: VersionIndex | None, manifest: Versioned, digest: bytes, *, kind: str = "model"
) -> VersionIndex:
    """The next index, with this version in it. None: the first of its name.

    A version that is newer than all others becomes current, even after a rollback; an older one, the mending of an old
    line, does not. Raises LocalError when the version is taken by another manifest: what was published does not
    change.
    """
    entry = VersionEntry(manifest.version, digest)
    if index is None:
        return VersionIndex(manifest.name, kind, 1, (entry,))
    if (index.name, index.kind) != (manifest.name, kind):
        raise LocalError(f"the index is of the {index.kind} {index.name!r}, not of the {kind} {manifest.name!r}")
    taken = next((one for one in index.entries if one.version == entry.version), None)
    if taken is not None and taken.manifest == digest:
        return index
    if taken is not None:
        raise LocalError(f"{index.name}:{entry.version} is published already", hint="publish it as a higher version")
    if len(index.entries) == MAX_VERSIONS:
        raise LocalError(f"{index.name} has {MAX_VERSIONS} versions already")
    entries = list(index.entries)
    insort(entries, entry, key=_order)
    return _normal(_next(index, entries=tuple(entries)), asked=index.current, fresh=entry.version)


def set_alias(index: VersionIndex, alias: str, version: str) -> VersionIndex:
    """The next index, with the alias there. Raises NotFound for a version that is not there, Retracted."""
    check_word(alias, "alias")
    index.find(version)
    others = tuple(one for one in index.aliases if one.alias != alias)
    if len(others) == MAX_ALIASES:
        raise LocalError(f"{index.name} has {MAX_ALIASES} aliases already")
    return _next(index, aliases=tuple(sorted((*others, Alias(alias, version)), key=lambda one: one.alias)))


def drop_alias(index: VersionIndex, alias: str) -> VersionIndex:
    """The next index, without the alias. Raises NotFound."""
    others = tuple(one for one in index.aliases if one.alias != alias)
    if len(others) == len(index.aliases):
        raise NotFound(f"{index.name}@{alias}")
    return _next(index, aliases=others)


def roll_back(index: VersionIndex, version: str) -> VersionIndex:
    """The next index, in which the bare name means that version until a newer one comes. Also the way forward again.

    Raises NotFound, Retracted.
    """
    index.find(version)
    return _normal(_next(index), asked=version)


def retract(index: VersionIndex, version: str, reason: str) -> VersionIndex:
    """The next index, in which that version is found no more. There is no way back: publish it as a higher one.

    Aliases that point there stay, and tell the reason. Raises NotFound, InvalidSpec for a reason that is none.
    """
    _check_reason(reason, "reason")
    if not reason:
        raise InvalidSpec("reason", "is missing: say why, others will read it")
    gone = replace(index.entry(version), retracted=reason)
    entries = tuple(gone if entry.version == version else entry for entry in index.entries)
    return _normal(_next(index, entries=entries), asked=None if index.current == version else index.current)


def with_log(index: VersionIndex, entry: bytes) -> VersionIndex:
    """The next index, whose log ends in that entry."""
    return _next(index, log=entry)


def _next(index: VersionIndex, **changes: object) -> VersionIndex:
    return replace(index, number=index.number + 1, **changes)  # type: ignore[arg-type]


def _normal(index: VersionIndex, *, asked: str | None, fresh: str | None = None) -> VersionIndex:
    """With `current` where it says something: not when it is the newest anyway, or when the newest just came."""
    if asked is None:
        return replace(index, current=None)
    by_itself = index._newest()
    return replace(index, current=None if by_itself in (asked, fresh) else asked)


# --- signing and reading -----------------------------------------------------------------------------------------


def check_index(index: VersionIndex) -> None:
    """Versions valid, ascending and once each; aliases and `current` point at them. Raises InvalidSpec."""
    check_word(index.name, "name")
    if index.kind not in KINDS:
        raise InvalidSpec("kind", f"is {index.kind!r}, must be {' or '.join(KINDS)}")
    for place, entry in enumerate(index.entries):
        _check_entry(entry, f"entries[{place}]")
    order = [_order(entry) for entry in index.entries]
    if any(later <= earlier for earlier, later in itertools.pairwise(order)):
        raise InvalidSpec("entries", "must ascend by version, each once")
    retracted = {entry.version: entry.retracted for entry in index.entries}
    if index.current is not None and retracted.get(index.current, "absent"):
        raise InvalidSpec("current", "is not a version of this index that stands")
    names = [one.alias for one in index.aliases]
    if names != sorted(set(names)):
        raise InvalidSpec("aliases", "must be sorted, each once")
    for place, one in enumerate(index.aliases):
        check_word(one.alias, f"aliases[{place}].alias")
        if one.version not in retracted:
            raise InvalidSpec(f"aliases[{place}].version", "is not a version of this index")


def seal_index(identity: Identity, index: VersionIndex) -> bytes:
    """The signed envelope. Raises InvalidSpec for an index that others would refuse."""
    check_index(index)
    envelope = seal(identity, index)
    if len(envelope) > MAX_INDEX_BYTES:
        raise InvalidSpec("", f"the index has {len(envelope)} bytes, limit {MAX_INDEX_BYTES}")
    return envelope


def open_index(data: bytes, *, signer: str | None = None) -> Signed[VersionIndex]:
    """An index from a peer. Raises ProtocolViolation or BadSignature."""
    signed = open_envelope(VersionIndex, data, limit=MAX_INDEX_BYTES, signer=signer)
    try:
        check_index(signed.record)
    except InvalidSpec as error:
        raise ProtocolViolation(f"version index: {error}", peer=signed.signer) from error
    return signed


def check_succeeds(earlier: VersionIndex, later: VersionIndex) -> None:
    """What was published under a name stays: an index of a higher number keeps every version, and its retraction.

    The same index succeeds itself. Raises ProtocolViolation: this author rewrites history.
    """
    if later == earlier:
        return
    if (later.name, later.kind) != (earlier.name, earlier.kind) or later.number <= earlier.number:
        raise ProtocolViolation(f"index {later.number} of {later.name} does not follow {earlier.number}")
    kept = {entry.version: entry for entry in later.entries}
    for entry in earlier.entries:
        now = kept.get(entry.version)
        if now is None or now.manifest != entry.manifest:
            raise ProtocolViolation(f"{earlier.name}:{entry.version} was published, and is gone or another now")
        if entry.retracted and not now.retracted:
            raise ProtocolViolation(f"{earlier.name}:{entry.version} was retracted, and stands again")


def _check_entry(entry: VersionEntry, path: str) -> None:
    try:
        parse_version(entry.version)
    except InvalidSpec as error:
        raise InvalidSpec(f"{path}.version", error.problem) from error
    _check_reason(entry.retracted, f"{path}.retracted")


def _check_reason(reason: str, path: str) -> None:
    check_printable(reason, path)
    if len(reason.encode("utf-8", "surrogatepass")) > MAX_REASON_BYTES:
        raise InvalidSpec(path, f"has more than {MAX_REASON_BYTES} bytes")


@functools.lru_cache(maxsize=MAX_VERSIONS)
def _precedence(version: str) -> tuple[Version, str]:
    return parse_version(version), version


def _order(entry: VersionEntry) -> tuple[Version, str]:
    return _precedence(entry.version)
