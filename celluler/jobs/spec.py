"""What a job is, as a person writes it: YAML or JSON in, a checked `TrainJob` out. See docs/reference/job-spec.md.

Unknown keys are errors; every error names its place (`train.rounds`). One spec has one canonical form, JSON with
sorted keys, defaults filled in and quantities in bytes and seconds: that is what is signed and what peers parse.
Knows neither who submits nor whether the model and the data exist.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, NoReturn

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from celluler.content.digest import Digest, cid_of, digest_of, parse_cid
from celluler.datasets.schema import MAX_COLUMNS, MAX_NAME_BYTES, Selection
from celluler.documents import read_json
from celluler.errors import InvalidSpec, PeerViolation, ProtocolViolation
from celluler.identity import public_key_of
from celluler.jobs.limits import MAX_BATCH, MAX_INNER_STEPS, MAX_ROUNDS
from celluler.models.names import check_word, parse_reference
from celluler.models.version import parse_version
from celluler.quantities import parse_bytes, parse_duration

MAX_SPEC_BYTES = 1 << 16
MAX_NESTING = 16
API_VERSION = "celluler/v1"
PLANNED_KINDS = ("InferJob", "BatchJob")
AUDITED = "proof-of-learning"
USUAL_AUDITS = 2.0
GOSSIP_ONLY = frozenset({"ring", "hierarchical"})


def _checked(check: Callable[[str], object], wanted: str) -> Callable[[Any], str]:
    """A validator for text that one of our own parsers must accept; pydantic adds the place."""

    def validate(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not {wanted}")
        try:
            check(value)
        except InvalidSpec as error:
            raise ValueError(error.problem) from None
        return value

    return validate


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text; people mean a number."""
    if isinstance(value, str) or type(value) is int:
        try:
            return float(value)
        except ValueError:
            pass
    return value


def _check_column(text: str) -> None:
    if not 1 <= len(text.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES or not text.isprintable():
        raise InvalidSpec("", f"a column has a name of 1…{MAX_NAME_BYTES} bytes of printable text")


def _check_peer(text: str) -> None:
    try:
        public_key_of(text)
    except PeerViolation:
        raise InvalidSpec("", f"{text!r} is no peer id") from None


Cid = Annotated[str, BeforeValidator(_checked(parse_cid, "a CID"))]
ModelReference = Annotated[str, BeforeValidator(_checked(parse_reference, "a model such as author/name:1.0.0"))]
Word = Annotated[str, BeforeValidator(_checked(lambda text: check_word(text, ""), "a name"))]
VersionText = Annotated[str, BeforeValidator(_checked(parse_version, "a version such as '1.2.3', in quotes"))]
DatasetReference = Annotated[str, BeforeValidator(_checked(parse_reference, "a dataset such as author/name:1.0.0"))]
ColumnText = Annotated[str, BeforeValidator(_checked(_check_column, "the name of a column"))]
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(le=1 << 50)]
Seconds = Annotated[int, BeforeValidator(parse_duration), Field(le=30 * 86400)]
PeerText = Annotated[str, BeforeValidator(_checked(_check_peer, "the id of a peer"))]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Data(_Part):
    cid: Cid | None = Field(default=None, description="the dataset's file: a content of kind `dataset`")
    dataset: DatasetReference | None = Field(
        default=None, description="or the dataset by name; the node that submits the job looks it up and fills in `cid`"
    )
    partition: Literal["iid", "shard", "by-label", "by-key"] = Field(
        default="iid",
        description="`iid`: every member draws from all of it; else each has a part of its own: `shard`, an equal one "
        "at random; `by-label`, whole classes; `by-key`, whole keys. See [datasets](datasets.md#sharding)",
    )
    label: ColumnText | None = Field(
        default=None, description="column to predict; by default `label`, of a file of tensors `y`"
    )
    key: ColumnText | None = Field(default=None, description="column to shard by; with `by-key` only")
    features: list[ColumnText] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_COLUMNS,
        description="columns that make up the input, in this order; by default all others, of a file of tensors `x`",
    )

    @model_validator(mode="after")
    def _fits(self) -> Data:
        if self.cid is None and self.dataset is None:
            raise ValueError("cid or dataset is missing: what to train on")
        if (self.key is not None) is not (self.partition == "by-key"):
            raise ValueError("key goes with the partition by-key, and by-key with a key")
        if self.features is not None and len(set(self.features)) != len(self.features):
            raise ValueError("features names a column twice")
        return self

    @property
    def selection(self) -> Selection:
        return Selection(tuple(self.features or ()), self.label or "", self.key or "")

    @property
    def content(self) -> Digest:
        """Root of the file. Raises InvalidSpec while a name stands for it that nobody has looked up."""
        if self.cid is None:
            raise InvalidSpec("data.cid", f"is missing: {self.dataset} was not looked up")
        return parse_cid(self.cid)

    @property
    def origin(self) -> Digest:
        """What a model trained on it names as its dataset: the manifest where one is given by CID, else the file."""
        named = parse_reference(self.dataset) if self.dataset else None
        return named if isinstance(named, bytes) else self.content


class Train(_Part):
    rounds: int = Field(ge=1, le=MAX_ROUNDS, description="averaging rounds")
    inner_steps: int = Field(default=20, ge=1, le=MAX_INNER_STEPS, description="local steps in a round")
    batch: int = Field(default=32, ge=1, le=MAX_BATCH, description="samples in a local step")
    learning_rate: Number = Field(default=0.001, gt=0, le=100, description="of the local steps")
    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="of the local steps, fresh in every round")
    aggregator: Literal[
        "auto",
        "nk",
        "winsorised-nk",
        "nnm-cc",
        "multi-krum",
        "krum",
        "geometric-median",
        "median",
        "trimmed-mean",
        "clipping",
        "mean",
    ] = Field(
        default="auto",
        description="rule for the average; `auto` is `nk` where all draw from the same data, else `winsorised-nk`; "
        "`mean` bears no liar, and what the others bear differs",
    )
    parts: int | None = Field(
        default=None, ge=1, le=64, description="pieces an update is cut into; by default one a member"
    )
    consensus: Literal["proof-of-learning", "byzantine", "gossip"] = Field(
        default="proof-of-learning",
        description="how members agree: on certified rounds whose training is audited; on certified rounds without "
        "audits; or with neighbours alone, without certificates. See [consensus](../explanation/consensus.md)",
    )
    topology: Literal["mesh", "star", "ring", "hierarchical"] = Field(
        default="mesh",
        description="who averages with whom: everybody reduces a part; one member reduces all; with `gossip` also a "
        "ring, or one aggregator a region, as the members' `network.region` says",
    )
    audits_per_round: Number | None = Field(
        default=None,
        ge=0,
        le=64,
        description="replays of others' work, of all members together; with audits 2 by default",
    )
    tolerance: Number = Field(
        default=1e-3, gt=0, le=1, description="deviation above which a replayed update was not worked for"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="of the local steps")
    wire: Literal["q16", "q8", "q4", "q4-sparse"] = Field(
        default="q16", description="bits of a value that travels; sparse: of the largest quarter of each 256 alone"
    )
    checkpoint_every: int = Field(
        default=0,
        ge=0,
        le=MAX_ROUNDS,
        description="rounds after which a member, by turns, publishes what there is; 0: never. Not with `gossip`",
    )

    @model_validator(mode="after")
    def _fits(self) -> Train:
        if self.topology in GOSSIP_ONLY and self.consensus != "gossip":
            raise ValueError(f"the topology {self.topology} goes with the consensus gossip alone")
        if self.wire != "q16" and self.consensus == "gossip":
            raise ValueError("neighbours send whole models, which travel as q16 alone")
        if self.checkpoint_every and self.consensus == "gossip":
            raise ValueError("checkpoint_every goes with certified rounds: neighbours share no state to publish")
        if self.audits_per_round and self.consensus != AUDITED:
            raise ValueError(f"audits_per_round goes with the consensus {AUDITED} alone")
        return self

    @property
    def audits(self) -> float:
        """Replays expected in a round, of all members together."""
        if self.consensus != AUDITED:
            return 0.0
        return USUAL_AUDITS if self.audits_per_round is None else self.audits_per_round


class Admission(_Part):
    mode: Literal["open", "listed"] = Field(
        default="open", description="who may take part: whoever offers, or the peers listed"
    )
    peers: list[PeerText] = Field(default_factory=list, max_length=256, description="ids of those who may, if listed")
    late: bool = Field(default=True, description="whether one may come when the training has begun")
    probation: int = Field(default=1, ge=0, le=1024, description="rounds that a late one follows before it counts")
    suspension: int = Field(
        default=32, ge=0, le=1024, description="rounds that a member sits out whose links fail again and again"
    )

    @model_validator(mode="after")
    def _fits(self) -> Admission:
        if self.peers and self.mode != "listed":
            raise ValueError("peers goes with the mode listed")
        return self

    def admits(self, peer: str) -> bool:
        return self.mode == "open" or peer in self.peers


class Peers(_Part):
    min: int = Field(default=3, ge=1, le=64, description="the job waits for so many")
    max: int = Field(default=16, ge=1, le=64, description="and takes no more than so many")

    @model_validator(mode="after")
    def _ordered(self) -> Peers:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


class Resources(_Part):
    peers: Peers = Field(default_factory=Peers, description="how many take part")
    memory: Bytes = Field(default=1 << 30, description="that a worker of a member must be allowed")
    accelerator: Literal["any", "cpu", "cuda", "rocm", "mps"] = Field(
        default="any", description="device a member must have"
    )


class Policy(_Part):
    priority: int = Field(default=5, ge=0, le=9, description="among the jobs that wait at one node; higher goes first")
    deadline: Seconds = Field(default=7200, description="from submission; then the job fails")
    retries: int = Field(default=0, ge=0, le=10, description="how often it may be queued again after its run broke")
    preemptible: bool = Field(default=False, description="a more urgent job may take its place")
    regions: list[Literal["any"]] = Field(default=["any"], min_length=1, max_length=1, description="nothing else yet")


class Result(_Part):
    name: Word | None = Field(default=None, description="name to publish under; by default the job's")
    version: VersionText = Field(default="1.0.0", description="version to publish as")


class TrainJob(_Part):
    """Train a model on a dataset, together."""

    apiVersion: Literal["celluler/v1"]  # noqa: N815  # the key as people know it from other job specs
    kind: Literal["TrainJob"]
    name: Word = Field(description="what people call the job")
    model: ModelReference = Field(description="to start from: `author/name:version`, `author/name` or a CID")
    data: Data
    train: Train
    resources: Resources = Field(default_factory=Resources)
    admission: Admission = Field(default_factory=Admission)
    policy: Policy = Field(default_factory=Policy)
    result: Result = Field(default_factory=Result)

    @property
    def rule(self) -> str:
        """The rule that averages."""
        if self.train.aggregator != "auto":
            return self.train.aggregator
        return "nk" if self.data.partition == "iid" else "winsorised-nk"

    @property
    def result_name(self) -> str:
        return self.result.name or self.name


def parse_job(document: str | bytes) -> TrainJob:
    """A job from YAML or JSON. Raises InvalidSpec with the place and what is wrong there."""
    return check_job(read_document(document))


def check_job(document: Any) -> TrainJob:
    """A job from parsed YAML or JSON. Raises InvalidSpec."""
    if not isinstance(document, dict):
        raise InvalidSpec("", "a job is a mapping with apiVersion, kind, name, model, data, train")
    if document.get("kind") in PLANNED_KINDS:
        raise InvalidSpec("kind", f"{document['kind']} is planned and not built yet; TrainJob is")
    try:
        return TrainJob.model_validate(document)
    except ValidationError as error:
        _explain(error)


def with_data(job: TrainJob, content: Digest, *, dataset: str, label: str = "") -> TrainJob:
    """The job whose dataset was looked up. dataset: CID of its manifest, in place of a name that may move on.

    content: root of its file. label: what the manifest says, for a job that says nothing.
    """
    found = {"cid": cid_of(content), "dataset": dataset, "label": job.data.label or label or None}
    return job.model_copy(update={"data": job.data.model_copy(update=found)})


def canonical_job(job: TrainJob) -> bytes:
    """The one form of a spec: what is signed. Raises InvalidSpec above MAX_SPEC_BYTES."""
    text = json.dumps(job.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    data = text.encode("utf-8")
    if len(data) > MAX_SPEC_BYTES:
        raise InvalidSpec("", f"the spec has {len(data)} bytes, the most is {MAX_SPEC_BYTES}")
    return data


def job_digest(job: TrainJob) -> Digest:
    """Of the canonical form: two specs that mean the same have the same digest."""
    return digest_of(canonical_job(job))


def parse_canonical_job(data: bytes) -> TrainJob:
    """A job from a peer, which must be in canonical form. Raises ProtocolViolation."""
    try:
        job = check_job(read_json(data, limit=MAX_SPEC_BYTES))
        if canonical_job(job) != data:
            raise ProtocolViolation("job spec: not in canonical form")
    except InvalidSpec as error:
        raise ProtocolViolation(f"job spec: {error}") from error
    return job


def read_document(document: str | bytes) -> Any:
    """YAML or JSON to plain values, bounded in size and depth. Raises InvalidSpec."""
    text = _decode(document.encode("utf-8", "surrogatepass") if isinstance(document, str) else document)
    value = read_json(text.encode(), limit=MAX_SPEC_BYTES) if text.lstrip().startswith("{") else _read_yaml(text)
    if any(depth > MAX_NESTING for depth in _depths(value)):
        raise InvalidSpec("", f"nested deeper than {MAX_NESTING}")
    return value


# --- reading -----------------------------------------------------------------------------------------------------


def _decode(data: bytes) -> str:
    if len(data) > MAX_SPEC_BYTES:
        raise InvalidSpec("", f"the spec has {len(data)} bytes, the most is {MAX_SPEC_BYTES}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidSpec("", f"not UTF-8: {error.reason} at byte {error.start}") from None


class _Loader(yaml.SafeLoader):
    """Plain YAML: a key once, no anchors (a few lines of them expand to gigabytes)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # derived from SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InvalidSpec("", f"not YAML: {line}{error.problem}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InvalidSpec("", f"not YAML: {type(error).__name__}") from None


def _depths(root: Any) -> Iterator[int]:
    stack = [(root, 1)]
    while stack:
        value, depth = stack.pop()
        yield depth
        if depth <= MAX_NESTING:
            children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            stack += [(child, depth + 1) for child in children]


# --- explaining --------------------------------------------------------------------------------------------------


def _explain(error: ValidationError) -> NoReturn:
    """One thing that is wrong, in one sentence: an unknown key first, for it is often the missing one misspelt."""
    found = error.errors(include_url=False)
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    path = ".".join(str(step) for step in first["loc"])
    raise InvalidSpec(path, _problem(first), hint=_hint(first)) from None


def _problem(error: ErrorDetails) -> str:
    match error["type"]:
        case "extra_forbidden":
            return "unknown key"
        case "missing":
            return "missing"
        case "value_error":
            return str(error["ctx"]["error"])
    text = error["msg"][:1].lower() + error["msg"][1:]
    return f"{text.removeprefix('input ')}, not {repr(error['input'])[:60]}"


def _hint(error: ErrorDetails) -> str | None:
    if error["type"] != "extra_forbidden":
        return None
    model: Any = TrainJob
    for step in error["loc"][:-1]:
        model = model.model_fields[step].annotation
    close = difflib.get_close_matches(str(error["loc"][-1]), model.model_fields, 1)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(model.model_fields)}"
