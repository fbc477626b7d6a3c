"""What every route of the node's own surface takes and gives, as far as the routes do not say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from celluler import views
from celluler.inference.ensemble import RULES
from celluler_node.gateway.schemas import (
    ANYTHING,
    BYTES,
    COUNT,
    NUMBER,
    OBJECT,
    SWITCH,
    TENSOR,
    TEXT,
    Schema,
    document,
    either,
    given,
    list_of,
)

JSON, PLAIN, OCTETS = "application/json", "text/plain", "application/octet-stream"
_YES_NO: Schema = {"type": "string", "enum": ["yes", "no"]}
_PLACES: Schema = {"type": "string", "enum": ["true", "false", "1", "0"]}


@dataclass(frozen=True, slots=True)
class Many:
    """Records in a list of this name."""

    name: str
    record: type


@dataclass(frozen=True, slots=True)
class Says:
    """summary: what it does. answer: a record, records, or a schema. body: a record or a schema; query: by name, those
    in `needs` necessary. more: other statuses that are answered in the same form."""

    summary: str
    answer: type | Many | Schema
    body: type | Schema | None = None
    query: Mapping[str, Schema] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    status: int = 200
    more: tuple[int, ...] = ()
    media: tuple[str, ...] = (JSON,)
    body_media: tuple[str, ...] = (JSON,)


def _query_of(record: type) -> dict[str, Schema]:
    return {name: _PLACES if name == "local" else TEXT for name in record.__dataclass_fields__}  # type: ignore[attr-defined]


_MODEL = given(model=TEXT)
_PREDICTION = document(
    model=TEXT,
    cid=TEXT,
    peer=TEXT,
    elapsed_s=NUMBER,
    labels=list_of(TEXT),
    output=TEXT,
    text=SWITCH,
    outputs=ANYTHING,
    arm_=TEXT,
    cached_=SWITCH,
    ensemble_=ANYTHING,
)

NODE: dict[tuple[str, str], Says] = {
    ("GET", "/healthz"): Says("Whether the process serves", TEXT, media=(PLAIN,)),
    ("GET", "/readyz"): Says("Whether it has joined and serves", views.Readiness, more=(503,)),
    ("GET", "/metrics"): Says("Prometheus' text", TEXT, media=(PLAIN,)),
    ("GET", "/openapi.json"): Says("This document", OBJECT),
    ("GET", "/api/v1/status"): Says("The node in one record", views.Status),
    ("GET", "/api/v1/doctor"): Says("Look for what is wrong", Many("checks", views.Check)),
    ("GET", "/api/v1/violations"): Says("Peers that broke a protocol", Many("violations", views.ViolationReport)),
    ("GET", "/api/v1/peers"): Says("Members, this node first", Many("peers", views.Peer)),
    ("GET", "/api/v1/peers/{peer}"): Says("One member", views.Peer),
    ("POST", "/api/v1/peers/{peer}/ping"): Says("One round trip", views.Ping),
    ("POST", "/api/v1/shutdown"): Says("End in order", document(ending=SWITCH), status=202),
}
CONTENT: dict[tuple[str, str], Says] = {
    ("POST", "/api/v1/blobs"): Says(
        "Add a content, pinned", views.Blob, BYTES, {"kind": TEXT, "announce": _YES_NO}, status=201,
        body_media=(OCTETS,),
    ),
    ("GET", "/api/v1/blobs/{cid}"): Says(
        "The bytes", BYTES, query={"at_most": COUNT}, more=(206,), media=(OCTETS,)
    ),
    ("GET", "/api/v1/blobs/{cid}/stat"): Says("What is here of it, and who has it", views.Blob),
    ("GET", "/api/v1/transfers"): Says("What is on its way here", Many("transfers", views.Transfer)),
    ("POST", "/api/v1/pin"): Says("Never evict it", views.Blob, given(ref=TEXT)),
    ("POST", "/api/v1/unpin"): Says("The reverse", views.Blob, given(ref=TEXT)),
    ("POST", "/api/v1/store/gc"): Says(
        "Evict what was used least recently", views.Collected, given(target_bytes_=COUNT, dry_run_=SWITCH)
    ),
    ("POST", "/api/v1/store/check"): Says("Hash everything again", views.StoreCheck, given(repair_=SWITCH)),
}  # fmt: skip
MODELS: dict[tuple[str, str], Says] = {
    ("GET", "/api/v1/models"): Says(
        "Models known here", Many("models", views.Model), query=_query_of(views.ModelQuery)
    ),
    ("GET", "/api/v1/models/search"): Says(
        "Models of the swarm", Many("models", views.Model), query=_query_of(views.ModelQuery)
    ),
    ("POST", "/api/v1/models"): Says("Publish a model", views.Model, views.NewModel, status=201),
    ("GET", "/api/v1/models/{ref}"): Says("One version", views.Model),
    ("DELETE", "/api/v1/models/{ref}"): Says("Forget it here", views.Collected),
    ("GET", "/api/v1/models/{ref}/card"): Says("Its card, Markdown", document(card=TEXT)),
    ("GET", "/api/v1/models/{ref}/versions"): Says("Versions under the name", views.Versions),
    ("GET", "/api/v1/models/{ref}/log"): Says("What its author did to the name", views.ModelLog),
    ("GET", "/api/v1/models/{ref}/lineage"): Says("What it was made from", views.Lineage),
    ("GET", "/api/v1/models/diff"): Says(
        "What changed", views.ModelDiff, query={"old": TEXT, "new": TEXT}, needs=("old", "new")
    ),
    ("POST", "/api/v1/models/pull"): Says("Fetch and verify", views.Model, given(model=TEXT, layers_=TEXT)),
    ("POST", "/api/v1/models/verify"): Says("Check what is here", views.Verification, _MODEL),
    ("POST", "/api/v1/models/alias"): Says("Name a version", views.Versions, given(model=TEXT, alias=TEXT)),
    ("POST", "/api/v1/models/drop-alias"): Says("Take such a name away", views.Versions, _MODEL),
    ("POST", "/api/v1/models/rollback"): Says("Let the name mean this version", views.Versions, _MODEL),
    ("POST", "/api/v1/models/retract"): Says("Take a version back", views.Versions, given(model=TEXT, reason=TEXT)),
    ("POST", "/api/v1/predict"): Says(
        "Run a model on a batch",
        _PREDICTION,
        given(
            model=TEXT,
            inputs=either(list_of(ANYTHING), TENSOR, NUMBER, TEXT),
            dtype_=TEXT,
            output_=TEXT,
            ensemble_=COUNT,
            models_=list_of(TEXT),
            aggregate_={"type": "string", "enum": [*RULES, ""]},
            peer_=TEXT,
        ),
    ),
    ("GET", "/api/v1/datasets"): Says("Datasets known here", Many("datasets", views.Dataset)),
    ("POST", "/api/v1/datasets"): Says("Publish a dataset", views.Dataset, views.NewDataset, status=201),
    ("GET", "/api/v1/datasets/{ref}"): Says("One version", views.Dataset),
    ("POST", "/api/v1/datasets/pull"): Says("Fetch and verify", views.Dataset, given(dataset=TEXT)),
}
SERVING: dict[tuple[str, str], Says] = {
    ("GET", "/api/v1/serving"): Says("Models at work here", views.Serving),
    ("POST", "/api/v1/serving/load"): Says("Have a model ready", views.LoadedModel, _MODEL),
    ("POST", "/api/v1/serving/unload"): Says("Free what a model takes", views.Serving, _MODEL),
}
JOBS: dict[tuple[str, str], Says] = {
    ("GET", "/api/v1/jobs"): Says("Jobs, newest first", Many("jobs", views.Job)),
    ("POST", "/api/v1/jobs"): Says(
        "Submit, once for each client_id",
        views.Job,
        given(client_id=TEXT, spec=either(TEXT, OBJECT), attachments_=list_of(TEXT)),
        status=201,
    ),
    ("POST", "/api/v1/jobs/join"): Says("Come late into a run", views.Job, given(invite=TEXT), status=201),
    ("GET", "/api/v1/jobs/{job}"): Says("One job", views.Job),
    ("PATCH", "/api/v1/jobs/{job}"): Says("Change what may be changed", views.Job, views.JobChange),
    ("GET", "/api/v1/jobs/{job}/spec"): Says("What was asked for", views.JobSpec),
    ("GET", "/api/v1/jobs/{job}/events"): Says(
        "What happened since, or is about to", views.JobReport, query={"since": COUNT, "wait_s": NUMBER}
    ),
    ("POST", "/api/v1/jobs/{job}/checkpoint"): Says("Have its state published", views.JobCheckpoint),
    ("POST", "/api/v1/jobs/{job}/stop"): Says("The same, then cancel", views.StoppedJob),
    ("POST", "/api/v1/jobs/{job}/cancel"): Says("Cancel", views.Job),
    ("POST", "/api/v1/jobs/{job}/invites"): Says(
        "Let a peer come late", views.JobInvite, given(peer=TEXT, for_s_=COUNT), status=201
    ),
    ("POST", "/api/v1/transcripts"): Says(
        "Who has a transcript of a run",
        Many("transcripts", views.TranscriptNote),
        given(job=TEXT, peers=list_of(TEXT)),
    ),
}
DEPLOYMENTS: dict[tuple[str, str], Says] = {
    ("GET", "/api/v1/deployments"): Says("Deployments of this node", Many("deployments", views.Deployment)),
    ("POST", "/api/v1/deployments"): Says("Make one", views.Deployment, views.NewDeployment, status=201),
    ("GET", "/api/v1/deployments/{name}"): Says("One, with what became of its requests", views.Deployment),
    ("PATCH", "/api/v1/deployments/{name}"): Says(
        "Another version, another share, other replicas", views.Deployment, views.DeploymentChange
    ),
    ("POST", "/api/v1/deployments/{name}/promote"): Says("Give an arm everything", views.Deployment, given(arm_=TEXT)),
    ("POST", "/api/v1/deployments/{name}/rollback"): Says("Take back the last step", views.Deployment),
    ("DELETE", "/api/v1/deployments/{name}"): Says("Remove it", document(removed=TEXT)),
    ("GET", "/api/v1/answer-cache"): Says("Answers kept to be given again", views.AnswerCacheUsage),
}
OWN: dict[tuple[str, str], Says] = NODE | CONTENT | MODELS | SERVING | JOBS | DEPLOYMENTS
