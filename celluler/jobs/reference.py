"""docs/reference/job-spec.md, from what the spec declares.

python -m celluler.jobs.reference > docs/reference/job-spec.md
"""

from __future__ import annotations

import sys
import types
import typing
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from celluler.jobs.spec import MAX_SPEC_BYTES, TrainJob
from celluler.jobs.states import NEEDS_REASON, TRANSITIONS, JobState
from celluler.quantities import format_bytes, parse_bytes, parse_duration

_HEAD = f"""\
# Job spec

<!-- Rendered from the code: python -m celluler.jobs.reference > docs/reference/job-spec.md -->

A job is a YAML or JSON document of at most {MAX_SPEC_BYTES} bytes. Unknown keys are errors, and so are keys that are
there twice, anchors and aliases; an error names its place (`train.rounds: should be greater than or equal to 1, not
0`). `celluler job validate SPEC` checks one without a node.

```yaml
apiVersion: celluler/v1
kind: TrainJob
name: digits
model: alice/digits-mlp:0.1.0
data: {{cid: b…, partition: iid}}
train: {{inner_steps: 20, rounds: 20, batch: 32, learning_rate: 0.001, aggregator: nk}}
resources: {{peers: {{min: 3, max: 16}}, memory: 1GiB, accelerator: any}}
policy: {{deadline: 2h, retries: 2}}
result: {{name: digits, version: 1.0.0}}
```

`kind` is `TrainJob`. `InferJob` and `BatchJob` are planned; they are refused with that message.

One spec has one canonical form, which is what is signed and what peers accept: JSON with sorted keys and without
spaces, every default filled in, sizes in bytes and durations in seconds. Its BLAKE3 digest is what `job validate`
prints.
"""

_TAIL = """
What is acted upon: everything under `data`, `train`, `resources`, `admission` and `result`, and `policy.deadline`.
`policy.priority`, `preemptible` and `retries` are permissions, which a node may use and does not have to.

## States

| state | may become | |
|---|---|---|
"""

_STATES = {
    JobState.PENDING: "submitted, not looked at",
    JobState.QUEUED: "waits; the reason says for what. May be queued again with another reason",
    JobState.FETCHING: "members fetch model and data",
    JobState.RUNNING: "rounds go on; every event carries figures: `round`, `loss`, what the objective is judged by",
    JobState.VERIFYING: "the result is published and checked at other members",
    JobState.SUCCEEDED: "the model is published and held by more than one member",
    JobState.FAILED: "the reason says why",
    JobState.CANCELLED: "its submitter cancelled it",
}


def render() -> str:
    return _HEAD + "".join(_sections(TrainJob, "")) + _TAIL + "".join(_state(state) for state in JobState)


def _sections(model: type[BaseModel], path: str) -> list[str]:
    """A table for this part, then those of its parts."""
    rows, below = [], []
    for name, info in model.model_fields.items():
        inner = _part(info)
        if inner is not None:
            below += _sections(inner, f"{path}{name}.")
        about = f"see `{path}{name}` below" if inner is not None and not info.description else info.description or ""
        rows.append(f"| `{path}{name}` | {_values(info)} | {_default(info)} | {about} |\n")
    title = f"`{path.rstrip('.')}`" if path else "The document"
    return [f"\n## {title}\n\n| key | value | default | |\n|---|---|---|---|\n", *rows, *below]


def _part(info: FieldInfo) -> type[BaseModel] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _values(info: FieldInfo) -> str:
    kind: Any = info.annotation
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        kind = next(one for one in typing.get_args(kind) if one is not types.NoneType)
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is Literal:
        return " · ".join(f"`{value}`" for value in typing.get_args(kind))
    if _part(info):
        return "mapping"
    if typing.get_origin(kind) is list and typing.get_origin(typing.get_args(kind)[0]) is typing.Annotated:
        return "list of text"
    readers = {getattr(mark, "func", None) for mark in info.metadata}
    bounds = {name: getattr(mark, name) for mark in info.metadata for name in ("ge", "gt", "le") if hasattr(mark, name)}
    if parse_bytes in readers:
        return f"size to {_whole(format_bytes(bounds['le']))}"
    if parse_duration in readers:
        return f"duration to {bounds['le'] // 86400}d"
    names = {int: "whole number", float: "number", str: "text", bool: "`true` · `false`"}
    text = names.get(kind, "list of `any`")
    low = f"from {bounds['ge']}" if "ge" in bounds else f"above {bounds['gt']}," if "gt" in bounds else ""
    high = f"to {bounds['le']}" if "le" in bounds else ""
    return " ".join(part for part in (text, low, high) if part)


def _whole(size: str) -> str:
    return size.replace(".0 ", "")


def _default(info: FieldInfo) -> str:
    if info.default_factory is not None:
        return "its defaults"
    if info.default is PydanticUndefined:
        return "required"
    value = info.default
    readers = {getattr(mark, "func", None) for mark in info.metadata}
    if parse_bytes in readers:
        return f"`{_whole(format_bytes(value))}`"
    if parse_duration in readers:
        return f"`{value // 3600}h`"
    return "–" if value is None else f"`{str(value).lower() if isinstance(value, bool) else _plain(value)}`"


def _plain(value: Any) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value)


def _state(state: JobState) -> str:
    targets = [target.value for target in JobState if target in TRANSITIONS[state]]
    reason = " (needs a reason)" if state in NEEDS_REASON else ""
    return f"| {state.value}{reason} | {', '.join(targets) or '–'} | {_STATES[state]} |\n"


if __name__ == "__main__":
    sys.stdout.write(render())
