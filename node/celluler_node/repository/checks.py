"""What can be said of a model's integrity: each claim looked into, and told whether it holds.

A check that fails is an answer, not an error; what cannot be looked into (nobody answers, or it is encrypted and not
for us) says so and counts neither way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from celluler.content.digest import Codec, Digest, cid_of
from celluler.content.store import Store
from celluler.errors import (
    CellulerError,
    Denied,
    IntegrityError,
    InvalidSpec,
    ProtocolViolation,
    Retracted,
    Unavailable,
)
from celluler.identity import short
from celluler.models.beside import FileBeside, check_size
from celluler.models.manifest import OpenedManifest
from celluler.models.provenance import Chain, LogEntry, check_agrees
from celluler.models.weights import check_weights
from celluler.quantities import format_bytes
from celluler.views import Check
from celluler_node.fetching import Fetcher
from celluler_node.repository.resolver import Resolver
from celluler_node.repository.vault import Vault

MAX_LOG_ENTRIES = 8192


class Checks:
    """Looks into one model at a time."""

    def __init__(self, store: Store, resolver: Resolver, fetcher: Fetcher, vault: Vault) -> None:
        self._store, self._resolver, self._fetcher, self._vault = store, resolver, fetcher, vault

    async def of(self, opened: OpenedManifest) -> tuple[Check, ...]:
        """opened: already verified by `open_manifest`, which makes the first check true."""
        signer, record = opened.signed.signer, opened.record
        signed = Check("signature", True, f"manifest {cid_of(opened.digest, Codec.MANIFEST)} is signed by {signer}")
        fits = Check("manifest", True, f"sizes, schemas and task follow from the {record.task} architecture in it")
        return (
            signed,
            fits,
            await _check("index", self._index, opened),
            await _check("log", self._log, opened),
            await _check("content", self._content, opened),
            await _check("weights", self._weights, opened),
            *([await _check("files", self._files, opened)] if opened.record.files else []),
        )

    async def log(self, opened: OpenedManifest) -> tuple[LogEntry, ...]:
        """The whole log of a model's name, newest first, chained, signed, and telling of the very index it ends in.

        Raises PeerViolation when it does not hold, NotFound when an entry cannot be had.
        """
        author, name = opened.signed.signer, opened.record.name
        index, holders = await self._resolver.index(author, name)
        if index.record.log is None:
            return ()
        keepers = await self._fetcher.providers(Digest(opened.record.weights))
        chain = Chain(author, name, index.record.log)
        while chain.wanted is not None:
            if len(chain.entries) == MAX_LOG_ENTRIES:
                raise ProtocolViolation(f"the log of {name} has more than {MAX_LOG_ENTRIES} entries", peer=author)
            chain.receive(await self._fetcher.block(chain.wanted, hints=[author, *holders, *keepers]))
        entries = tuple(signed.record for signed in chain.entries)
        check_agrees(index.record, reversed(entries))
        return entries

    async def _index(self, opened: OpenedManifest) -> str:
        record = opened.record
        index, _ = await self._resolver.index(opened.signed.signer, record.name)
        for entry in index.record.entries:
            if entry.version == record.version:
                if entry.manifest != opened.digest:
                    raise IntegrityError(f"version {record.version} is another manifest in the author's index")
                if entry.retracted:
                    raise IntegrityError(f"its author has retracted it: {entry.retracted}")
                return f"number {index.record.number} of {short(opened.signed.signer)} lists {record.version} as this"
        raise IntegrityError(f"its author's index lists no version {record.version}")

    async def _log(self, opened: OpenedManifest) -> str:
        entries = await self.log(opened)
        return f"{len(entries)} entries, chained and signed, tell of the same versions as the index"

    async def _content(self, opened: OpenedManifest) -> str:
        checked = await trio.to_thread.run_sync(self._store.verify, opened.record.weights)
        if checked.damaged:
            raise IntegrityError(f"{len(checked.damaged)} chunks are damaged (celluler doctor --store --repair)")
        return f"every byte hashed again: {format_bytes(checked.checked_bytes)}"

    async def _weights(self, opened: OpenedManifest) -> str:
        path = await trio.to_thread.run_sync(self._store.path, opened.record.weights)
        await trio.to_thread.run_sync(self.weights, opened, path)
        sealed = "; decrypted to what the author signed" if opened.record.sealed else ""
        return f"{opened.architecture.parameter_count} parameters, as the architecture names them{sealed}"

    async def _files(self, opened: OpenedManifest) -> str:
        told = []
        for one in opened.record.files:
            checked = await trio.to_thread.run_sync(self._store.verify, one.root)
            if checked.damaged:
                raise IntegrityError(f"{one.name}: {len(checked.damaged)} chunks are damaged")
            content = await trio.to_thread.run_sync(self._store.path, one.root)
            await trio.to_thread.run_sync(self.file, opened, one, content)
            told.append(f"{one.name} {format_bytes(checked.checked_bytes)}")
        return f"every byte hashed again: {', '.join(told)}"

    def file(self, opened: OpenedManifest, one: FileBeside, content: Path) -> Path:
        """A file beside the weights, decrypted where it must be, no larger than it may be. Synchronous.

        Raises Denied when we are no reader, IntegrityError, ProtocolViolation for one that is too large.
        """
        path = content if one.plain is None else self._vault.open_file(opened, one, content)
        try:
            check_size(one.name, path.stat().st_size)
        except InvalidSpec as error:
            raise ProtocolViolation(f"model {opened.record.name}: {error}", peer=opened.signed.signer) from error
        return path

    def weights(self, opened: OpenedManifest, content: Path) -> Path:
        """The weights file, decrypted where it must be, fitting its architecture. Synchronous.

        Raises Denied when we are no reader, IntegrityError, InvalidSpec when they do not fit.
        """
        path = self._vault.open(opened, content) if opened.record.sealed else content
        check_weights(opened.architecture, path)
        return path


async def _check(name: str, look: Callable[[OpenedManifest], Awaitable[str]], opened: OpenedManifest) -> Check:
    try:
        return Check(name, True, await look(opened))
    except Retracted as error:
        return Check(name, False, str(error), error.hint or "")
    except (Unavailable, Denied) as error:
        return Check(name, False, f"not checked: {error}", error.hint or "", skipped=True)
    except CellulerError as error:
        return Check(name, False, str(error), error.hint or "")
