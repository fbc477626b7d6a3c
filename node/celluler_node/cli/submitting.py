"""What it takes to submit a job: its document, read or put together, and the files that go with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celluler.client import AsyncClient, AsyncJob
from celluler.content.digest import Codec, cid_of
from celluler.content.manifest import describe
from celluler.errors import InvalidSpec, LocalError
from celluler.jobs.spec import TrainJob, check_job, read_document
from celluler.quantities import format_bytes
from celluler_node.cli.output import say


@dataclass(frozen=True, slots=True)
class Files:
    """What is added or published first. data: becomes `data.cid`; architecture: the document's model; weights: its."""

    data: Path | None = None
    architecture: Path | None = None
    weights: Path | None = None


def read_spec(spec: str) -> dict[str, Any]:
    """The document of a file, or of stdin for `-`. Raises LocalError, InvalidSpec."""
    try:
        text = sys.stdin.buffer.read(1 << 20) if spec == "-" else Path(spec).read_bytes()
    except OSError as error:
        raise LocalError(f"cannot read {spec}: {error.strerror}") from None
    document = read_document(text)
    if not isinstance(document, dict):
        raise InvalidSpec("", "a job is a mapping", hint="see docs/reference/job-spec.md")
    return document


def put(document: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Set what is not None, by path (`train.rounds`). Raises InvalidSpec for a path through what is no mapping."""
    for path, value in values.items():
        if value is None:
            continue
        part, steps = document, path.split(".")
        for step in steps[:-1]:
            part = part.setdefault(step, {})
            if not isinstance(part, dict):
                raise InvalidSpec(step, "not a mapping")
        part[steps[-1]] = value


def settings(texts: Sequence[str]) -> dict[str, Any]:
    """`train.parts=4` as path and value; a value is read as YAML. Raises InvalidSpec."""
    found = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not all(path.split(".")):
            raise InvalidSpec("set", f"{text[:80]!r} is not PATH=VALUE", hint="--set train.parts=4")
        found[path] = read_document(value)
    return found


def check(document: Mapping[str, Any], files: Files) -> TrainJob:
    """The job that the document and the files make, without adding any. Raises InvalidSpec."""
    whole = dict(document)
    if files.data is not None:
        put(whole, {"data.cid": cid_of(describe(files.data, "dataset").root, Codec.MANIFEST)})
    return check_job(whole)


async def submit(
    client: AsyncClient, document: dict[str, Any], files: Files, *, client_id: str = "", attachments: Sequence[str] = ()
) -> AsyncJob:
    """Add the files, check the document here, where its places are known, and hand it in. attachments: CIDs that the
    job needs besides the files."""
    attached = [*attachments, *await _attach(client, document, files)]
    check_job(document)
    return await client.jobs.submit(document, client_id=client_id or None, attachments=attached)


async def _attach(client: AsyncClient, document: dict[str, Any], files: Files) -> list[str]:
    """Write the CIDs of what was given as files into the document; returns all of them."""
    attached = []
    if files.data is not None:
        part = document.setdefault("data", {})
        if not isinstance(part, dict):
            raise InvalidSpec("data", "not a mapping")
        blob = await client.blobs.add(files.data, kind="dataset")
        say(f"added {files.data} ({format_bytes(blob.total_bytes)})")
        part["cid"] = blob.cid
        attached.append(blob.cid)
    if files.architecture is not None:
        model = await client.models.add(str(document.get("model")), files.architecture, weights=files.weights)
        say(f"published {model.reference} ({model.parameters} parameters)")
        document["model"] = model.cid
        attached += [model.cid, model.weights]
    elif files.weights is not None:
        raise LocalError("--weights goes with --architecture")
    return attached
