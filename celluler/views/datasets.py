"""Datasets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NewDataset:
    """A dataset to publish under this node's name.

    name: `author/name:version`, as of a model. content: CID of the file, which this node holds or can fetch. format:
    `safetensors`, `parquet` or `arrow`; empty to tell it by the file. label: the column to predict, or empty.
    licence: as SPDX names it. card: Markdown, at most 256 KiB. copies: how many peers should hold it; 0 for the
    swarm's default. regions: where they should be. parents: CIDs of manifests of the datasets it was made from.
    aliases: names for this version.
    """

    name: str
    content: str
    format: str = ""
    label: str = ""
    licence: str = ""
    tags: tuple[str, ...] = ()
    description: str = ""
    card: str = ""
    copies: int = 0
    regions: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Column:
    """One column and its summary.

    shape: of one row's value, empty for a number. missing: rows without a value. minimum, maximum, mean: None where
    values are not numbers. distinct: None when there are too many to have been counted.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    missing: int = 0
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    distinct: int | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """A published dataset: version `version` of `name` by `author`, a peer id.

    cid: of its signed manifest; content: of the file. local: the file is complete here. label: the column to predict,
    or empty; balance: rows by label. columns and balance are left out of lists.
    """

    name: str
    version: str
    cid: str
    author: str
    nickname: str
    format: str
    content: str
    content_bytes: int
    rows: int
    local: bool
    created_s: float
    columns: tuple[Column, ...] = ()
    label: str = ""
    balance: Mapping[str, int] = field(default_factory=dict)
    licence: str = ""
    tags: tuple[str, ...] = ()
    description: str = ""
    card: str | None = None
    copies: int = 0
    regions: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    retracted: str = ""

    @property
    def reference(self) -> str:
        """`author/name:version`, by nickname when the author has one."""
        return f"{self.nickname or self.author}/{self.name}:{self.version}"
