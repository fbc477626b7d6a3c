"""The manifests a node keeps: of models and datasets that are its own or were pulled, by digest.

What lies here is remembered over restarts and opened anew from the store, so a damaged block is a manifest lost and
never one believed. Opened manifests are kept in memory, so that listing models reads nothing twice.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import structlog

from celluler.content.digest import Digest
from celluler.content.store import ContentStat, Store
from celluler.datasets.manifest import DatasetManifest, OpenedDataset, open_dataset
from celluler.errors import CellulerError, NotFound, ProtocolViolation
from celluler.identity import Envelope
from celluler.models.manifest import ModelManifest, OpenedManifest, open_manifest
from celluler.wire import unpack
from celluler_node.repository.held import Held, HeldDataset
from celluler_node.state import NodeState

MAX_OPENED = 8192

log = structlog.get_logger()

Opened = OpenedManifest | OpenedDataset


class Shelf:
    """Synchronous; `keep` and `forget` on the loop, the rest from any thread."""

    def __init__(self, store: Store, state: NodeState, remember: Callable[[], None]) -> None:
        """remember: writes `state` down."""
        self._store, self._state, self._remember = store, state, remember
        self._opened: OrderedDict[Digest, Opened] = OrderedDict()
        self._lock = threading.Lock()  # of that alone

    def keep(self, opened: Opened) -> None:
        """From now on listed here, also after a restart."""
        kept = self._kept(opened)
        if opened.digest.hex() not in kept:
            kept.append(opened.digest.hex())
        self._note(opened)
        self._remember()

    def forget(self, opened: Opened) -> None:
        """No longer listed. Its block goes too; its content is the caller's."""
        kept = self._kept(opened)
        if opened.digest.hex() in kept:
            kept.remove(opened.digest.hex())
        with self._lock:
            self._opened.pop(opened.digest, None)
        self._store.remove(opened.digest)
        self._remember()

    def keeps(self, opened: Opened) -> bool:
        return opened.digest.hex() in self._kept(opened)

    def models(self) -> tuple[Held, ...]:
        """In the order they came."""
        found = (self.model(Digest(bytes.fromhex(text))) for text in tuple(self._state.models))
        return tuple(Held(opened, self.stat(opened.record.weights)) for opened in found if opened is not None)

    def datasets(self) -> tuple[HeldDataset, ...]:
        found = (self.dataset(Digest(bytes.fromhex(text))) for text in tuple(self._state.datasets))
        return tuple(HeldDataset(opened, self.stat(opened.record.content)) for opened in found if opened is not None)

    def model(self, digest: Digest) -> OpenedManifest | None:
        """The model's manifest if it lies in the store, listed or not."""
        opened = self.either(digest)
        return opened if isinstance(opened, OpenedManifest) else None

    def dataset(self, digest: Digest) -> OpenedDataset | None:
        opened = self.either(digest)
        return opened if isinstance(opened, OpenedDataset) else None

    def either(self, digest: Digest) -> Opened | None:
        """The model or dataset whose manifest this is; None when it is not here, or is nothing of the kind."""
        with self._lock:
            if digest in self._opened:
                self._opened.move_to_end(digest)
                return self._opened[digest]
        try:
            opened = _parse(self._store.get(digest))
        except NotFound:
            return None
        except CellulerError as error:
            log.warning("manifest_lost", digest=digest.hex()[:16], error=str(error))
            return None
        if opened is not None:
            self._note(opened)
        return opened

    def dataset_of(self, content: bytes) -> OpenedDataset | None:
        """The listed dataset that has this content, or this manifest."""
        listed = (held.opened for held in self.datasets())
        return next((one for one in listed if content in (one.record.content, one.digest)), None)

    def stat(self, root: bytes) -> ContentStat | None:
        """What is here of a content; None when it was never begun."""
        try:
            return self._store.stat(root)
        except NotFound:
            return None

    def _note(self, opened: Opened) -> None:
        with self._lock:
            self._opened[opened.digest] = opened
            while len(self._opened) > MAX_OPENED:
                self._opened.popitem(last=False)

    def _kept(self, opened: Opened) -> list[str]:
        return self._state.models if isinstance(opened, OpenedManifest) else self._state.datasets


def _parse(block: bytes) -> Opened | None:
    """Raises PeerViolation for one that claims to be a manifest and is none."""
    try:
        kind = unpack(Envelope, block, limit=len(block)).kind
    except ProtocolViolation:
        return None
    if kind == ModelManifest.KIND:
        return open_manifest(block)
    return open_dataset(block) if kind == DatasetManifest.KIND else None
