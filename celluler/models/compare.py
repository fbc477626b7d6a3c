"""Two versions of a model side by side: what differs, and how large a step of the version that is.

    major   architecture, input, output, task or the names of classes: who calls the model must look
    minor   the same function with other weights, or with the same in another dtype; another tokenizer
    patch   the same weights, other words about them, or other readers

Naming classes that had no names is a patch: nobody can have relied on them. Below 1.0.0 every step counts one place
lower. Knows nothing of stores; whoever has the contents or the files gives them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celluler.content.digest import cid_of
from celluler.content.manifest import Layout
from celluler.models.beside import TOKENIZER
from celluler.models.body import Body, format_body, parse_body
from celluler.models.changes import FieldChange, TensorChange, Weights, field_changes, tensor_changes
from celluler.models.manifest import ModelManifest
from celluler.models.version import check_step


@dataclass(frozen=True, slots=True)
class ModelDiff:
    """From a model to another. tensors: not the same in both. unchanged: how many are. unknown: of how many it cannot
    be told, because nothing but their shapes is known here.

    bytes_to_fetch: of the second model's content, for whoever has the first; None when a content is not known.
    bump: the least step of a version, `major`, `minor` or `patch`.
    """

    tensors: tuple[TensorChange, ...]
    unchanged: int
    unknown: int
    architecture: tuple[FieldChange, ...]
    metadata: tuple[FieldChange, ...]
    bytes_to_fetch: int | None
    bump: str


def required_bump(old: ModelManifest, new: ModelManifest) -> str:
    """`major`, `minor` or `patch`: the least step from `old` to `new` that does not deceive anybody."""
    if (old.task, old.input, old.output) != (new.task, new.input, new.output):
        return "major"
    if (old.labels and old.labels != new.labels) or _function(old) != _function(new):
        return "major"
    return "patch" if _same_weights(old, new) and _tokenizer(old) == _tokenizer(new) else "minor"


def check_bump(old: ModelManifest, new: ModelManifest) -> None:
    """`new` may be published above `old`, its predecessor. Raises InvalidSpec with the least version as hint."""
    check_step(old.version, new.version, required_bump(old, new))


def diff(
    old: ModelManifest,
    new: ModelManifest,
    *,
    content_old: Layout | None = None,
    content_new: Layout | None = None,
    file_old: Path | None = None,
    file_new: Path | None = None,
) -> ModelDiff:
    """Everything that differs, as far as what is given can tell.

    content: of the weights, encrypted or not, manifest and leaves. file: of the weights, decrypted. Reads both files
    when both are given, a few MiB at a time.
    """
    before = Weights(parse_body(old.body, old.spec), None if old.encrypted else content_old, file_old)
    after = Weights(parse_body(new.body, new.spec), None if new.encrypted else content_new, file_new)
    changes, equal, unknown = tensor_changes(before, after)
    if _same_weights(old, new):
        equal, unknown = equal + unknown, 0
    documents = [json.loads(format_body(each.architecture)) for each in (before, after)]
    return ModelDiff(
        tensors=changes,
        unchanged=equal,
        unknown=unknown,
        architecture=tuple(field_changes(*documents)),
        metadata=tuple(field_changes(_metadata(old), _metadata(new))),
        bytes_to_fetch=None if content_old is None or content_new is None else new_bytes(content_old, content_new),
        bump=required_bump(old, new),
    )


def new_bytes(old: Layout, new: Layout) -> int:
    """What must be fetched of the new content by whoever has the old: chunks are the same when their digests are."""
    here = {piece.digest for piece in old}
    return sum({piece.digest: piece.length for piece in new if piece.digest not in here}.values())


def _tokenizer(manifest: ModelManifest) -> bytes | None:
    """What the file was before it may have been encrypted."""
    file = manifest.file(TOKENIZER)
    return None if file is None else file.plain or file.root


def _function(manifest: ModelManifest) -> Body:
    """What it computes, however precisely its weights are stored."""
    return parse_body(manifest.body, manifest.spec).stored_as("float32")


def _document(data: bytes) -> Any:
    return json.loads(data) if data else None


def _same_weights(old: ModelManifest, new: ModelManifest) -> bool:
    """Encrypted anew they are another content. Between a public and an encrypted model nobody can tell: then no."""
    if old.plain is not None and new.plain is not None:
        return old.plain == new.plain
    return old.weights == new.weights


def _metadata(manifest: ModelManifest) -> dict[str, Any]:
    """Everything but the architecture, the weights and the version, as JSON values."""
    return {
        "name": manifest.name,
        "nickname": manifest.nickname,
        "labels": list(manifest.labels),
        "metrics": {metric.name: metric.value for metric in manifest.metrics},
        "parents": [cid_of(parent) for parent in manifest.parents],
        "dataset": _cid(manifest.dataset),
        "job": _cid(manifest.job),
        "transcripts": [cid_of(transcript) for transcript in manifest.transcripts],
        "category": manifest.category,
        "framework": manifest.framework,
        "format": manifest.format,
        "dtype": manifest.dtype,
        "licence": manifest.licence,
        "tags": list(manifest.tags),
        "description": manifest.description,
        "card": _cid(manifest.card),
        "files": {one.name: cid_of(one.plain or one.root) for one in manifest.files},
        "copies": manifest.copies,
        "preprocess": _document(manifest.preprocess),
        "postprocess": _document(manifest.postprocess),
        "regions": list(manifest.regions),
        "readers": list(manifest.readers),
    }


def _cid(digest: bytes | None) -> str | None:
    return None if digest is None else cid_of(digest)
