"""What became of a name: its versions, their differences, their history, and what was checked of them."""

from __future__ import annotations

from dataclasses import dataclass

from celluler.views.swarm import Check


@dataclass(frozen=True, slots=True)
class Version:
    """One version under a name.

    current: what the name alone means. retracted: why its author took it back, or empty. created_s: None when its
    manifest is not here.
    """

    version: str
    cid: str
    aliases: tuple[str, ...] = ()
    current: bool = False
    retracted: str = ""
    created_s: float | None = None


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions under a name, newest first, as its author signed them.

    author: a peer id. number: of the signed list; it grows with every change. equivocation: what is wrong when the
    author signed two lists under one number, else empty.
    """

    name: str
    author: str
    nickname: str
    number: int
    versions: tuple[Version, ...]
    equivocation: str = ""


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor that is not the same in two models. old, new: shapes; None when it was added or removed.

    norm: L2 norm of the difference; relative: over the norm of the old one, None when that is zero. Both are None
    unless both files are here and the shapes are equal.
    """

    name: str
    old: tuple[int, ...] | None
    new: tuple[int, ...] | None
    norm: float | None = None
    relative: float | None = None


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A value that differs. path: `layers[2].units`, `licence`. old, new: as JSON text, empty where there is none."""

    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class ModelDiff:
    """From model `old` to model `new`, both `author/name:version`.

    tensors: not the same in both. unchanged: how many are. unknown: of how many it cannot be told, because nothing but
    their shapes is known here. bytes_to_fetch: of `new` for whoever has `old`; None when the layout of one of the
    contents cannot be had. bump: the least step of the version that this is: `major`, `minor` or `patch`.
    """

    old: str
    new: str
    tensors: tuple[TensorChange, ...]
    unchanged: int
    unknown: int
    architecture: tuple[FieldChange, ...]
    metadata: tuple[FieldChange, ...]
    bytes_to_fetch: int | None
    bump: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked of a model, one line each. ok: everything that could be looked into holds."""

    model: str
    cid: str
    checks: tuple[Check, ...]
    ok: bool


@dataclass(frozen=True, slots=True)
class LogLine:
    """One entry of a name's log. action: `published`, `aliased`, `unaliased`, `rolled-back`, `retracted` or `readers`.

    subject: the manifest's CID. note: the alias, the reason, who may read, or what the author says.
    """

    number: int
    at_s: float
    action: str
    version: str
    subject: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class ModelLog:
    """The log of a name, newest first, its chain and signatures checked. complete: down to the first entry."""

    name: str
    author: str
    nickname: str
    entries: tuple[LogLine, ...]
    complete: bool = True


@dataclass(frozen=True, slots=True)
class LineageNode:
    """Something a model was made from. kind: `model`, `dataset` or `job`. reference: `author/name:version`, a job's
    name, or empty when its record cannot be had. parents: CIDs of other nodes."""

    cid: str
    kind: str
    reference: str = ""
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a model was made from, itself first. truncated: there is more than is shown."""

    cid: str
    nodes: tuple[LineageNode, ...]
    truncated: bool = False
