"""What the repository hands out: a verified manifest, and how much of its content is here."""

from __future__ import annotations

from dataclasses import dataclass

from celluler.content.store import ContentStat
from celluler.datasets.manifest import OpenedDataset
from celluler.models.manifest import OpenedManifest


@dataclass(frozen=True, slots=True)
class Held:
    """A model whose manifest was verified. stat: of its weights, None when nothing of them was ever wanted here."""

    opened: OpenedManifest
    stat: ContentStat | None

    @property
    def local(self) -> bool:
        """All of it is here."""
        return self.stat is not None and self.stat.complete

    @property
    def name(self) -> str:
        return name_of(self.opened)


@dataclass(frozen=True, slots=True)
class HeldDataset:
    """The same of a dataset."""

    opened: OpenedDataset
    stat: ContentStat | None

    @property
    def local(self) -> bool:
        """All of it is here."""
        return self.stat is not None and self.stat.complete

    @property
    def name(self) -> str:
        return name_of(self.opened)


def name_of(opened: OpenedManifest | OpenedDataset) -> str:
    """`author/name:version`, by nickname where the author gave one."""
    record = opened.record
    return f"{record.nickname or opened.signed.signer}/{record.name}:{record.version}"
