"""Models: what is published, what is found, what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from celluler.tensors import Tensor


@dataclass(frozen=True, slots=True)
class NewModel:
    """A model to publish under this node's name.

    name: `author/name:version`; the author is the node's own nickname or peer id. spec: what it computes, as parsed
    JSON; body: its kind, `spec` or `graph`. weights: CID of a safetensors content this node holds or can fetch; None,
    of a spec, for the initial weights that `seed` gives, the same everywhere. category, tags: words to be found by.
    licence: as SPDX names it. card: Markdown, at most 256 KiB. copies: how many peers should hold it; 0 for the swarm's
    default. regions: where they should be. readers: peer ids, or nicknames that only one member bears; with any, the
    weights are encrypted for them and for the author. public: must be said of a version without readers that follows an
    encrypted one. aliases: names for this version, such as `stable`; they are moved here from the version that has
    them. preprocess, postprocess: what stands before and after it, as parsed JSON. files: CIDs of what belongs to it
    beside its weights: `tokenizer` (tokenizer.json, at most 32 MiB), `chat-template` (at most 64 KiB).
    """

    name: str
    spec: Mapping[str, Any]
    weights: str | None = None
    seed: int = 0
    labels: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    dataset: str | None = None
    category: str = ""
    licence: str = ""
    tags: tuple[str, ...] = ()
    description: str = ""
    card: str = ""
    copies: int = 0
    regions: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    public: bool = False
    body: str = "spec"
    preprocess: Mapping[str, Any] | None = None
    postprocess: Mapping[str, Any] | None = None
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Port:
    """What goes in or comes out, of one sample. dtype: `text` is UTF-8 bytes in the last side."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A published model: version `version` of `name` by `author`, a peer id.

    cid: of its signed manifest. weights: CID of the content. weights_bytes: of its tensors. local: weights complete
    here; have_bytes: of them here, as when only some layers were pulled. spec: what it computes; left out of lists.
    body: its kind, `spec` or `graph`; empty when only an announcement is known, as are framework, format, dtype: of the
    weights. card: CID of a Markdown text. copies: how many peers should hold it, 0 for the swarm's default. encrypted:
    only `readers` (peer ids) can use it. retracted: why its author took it back, or empty. aliases: of this version.
    equivocation: what is wrong when the author signed two lists of versions under one number, else empty. job: that it
    came of. transcripts: CIDs of what members of its run wrote down, as far as the author knew.
    preprocess, postprocess: what stands before and after it; takes: a raw sample; gives: what may be asked for, the
    usual one first. These four are left out of lists. files: CIDs of what belongs to it beside its weights, by name.
    """

    name: str
    version: str
    cid: str
    author: str
    nickname: str
    task: str
    parameters: int
    weights: str
    weights_bytes: int
    local: bool
    created_s: float
    labels: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    dataset: str | None = None
    job: str | None = None
    providers: tuple[str, ...] = ()
    spec: Mapping[str, Any] | None = None
    category: str = ""
    framework: str = ""
    format: str = ""
    dtype: str = ""
    licence: str = ""
    tags: tuple[str, ...] = ()
    description: str = ""
    card: str | None = None
    copies: int = 0
    regions: tuple[str, ...] = ()
    encrypted: bool = False
    readers: tuple[str, ...] = ()
    retracted: str = ""
    aliases: tuple[str, ...] = ()
    have_bytes: int = 0
    transcripts: tuple[str, ...] = ()
    equivocation: str = ""
    body: str = ""
    preprocess: Mapping[str, Any] | None = None
    postprocess: Mapping[str, Any] | None = None
    takes: Port | None = None
    gives: tuple[Port, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """`author/name:version`, by nickname when the author has one."""
        return f"{self.nickname or self.author}/{self.name}:{self.version}"


@dataclass(frozen=True, slots=True)
class ModelPorts:
    """What one version takes and gives. model: `author/name:version`. takes: None when it is asked with seeds alone.
    gives: what may be asked for, the usual one first; `sample` is made from seeds. deployment: by which it was named,
    empty for none."""

    model: str
    version: str
    cid: str
    takes: Port | None
    gives: tuple[Port, ...]
    deployment: str = ""

    @property
    def reference(self) -> str:
        """To ask this version by, or the deployment that it was found behind."""
        return self.deployment or self.cid


@dataclass(frozen=True, slots=True)
class ModelQuery:
    """What a model must have to be listed; an empty field asks for nothing.

    text: words that must all occur in name, description, tags, task or category. author: nickname or peer id. local:
    only what is here. sort: `name`, `newest`, `size`, `providers`, or `relevance` (to the text).
    """

    text: str = ""
    task: str = ""
    category: str = ""
    tag: str = ""
    author: str = ""
    licence: str = ""
    local: bool = False
    sort: str = "name"


@dataclass(frozen=True, slots=True)
class EnsembleMember:
    """One of those who were asked. peer: empty where nobody answered. dissent: samples in which it disagreed. failure:
    why it gave no answer, else empty."""

    peer: str
    model: str
    dissent: int
    elapsed_s: float
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Ensemble:
    """How several answers became one. aggregate: mean, vote or median. asked: answers that were wanted; answered: those
    that came in time. disagreement: of each sample; of a vote the share outvoted, else how far the farthest answer is
    from what is told, relative to its largest value."""

    aggregate: str
    asked: int
    answered: int
    disagreement: tuple[float, ...]
    members: tuple[EnsembleMember, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """peer: who computed it. model: what was asked for. cid: the exact version. elapsed_s: as the node waited. output:
    what of it, by name. text: the outputs are UTF-8 in their last side. arm: of the deployment that was asked, empty
    for none. cached: nobody computed it now, the same was asked before. ensemble: how it was put together, None of one
    answer alone."""

    outputs: Tensor
    model: str
    cid: str
    peer: str
    elapsed_s: float
    labels: tuple[str, ...] = ()
    output: str = ""
    text: bool = False
    arm: str = ""
    cached: bool = False
    ensemble: Ensemble | None = None

    def lists(self) -> Any:
        """Nested lists of numbers, or of strings."""
        return self.outputs.texts() if self.text else self.outputs.lists()
