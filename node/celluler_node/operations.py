"""What a person may ask of a node. The node implements it, the gateway offers it over HTTP, a light peer runs it
in its own process; the command line and the clients need nothing else.

Every method raises the typed errors of `celluler.errors` and nothing else; waiting is bounded by the caller. The
records it speaks in are `celluler.views`, where each field is explained.

A `ref` names a model: `author/name` (the author's current version), `author/name:version`, `author/name@alias`, or the
CID of a manifest; InvalidSpec when it is none of these, NotFound when nobody asked knows it. Of a dataset, the same.
What changes a name (`add_model`, `alias_model`, `rollback_model` …) is signed, so that only the author's node can do
it: Denied elsewhere. A retracted version is found by its exact version and its CID alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from celluler.inference.questions import Generated, Question
from celluler.tensors import Tensor
from celluler.views import (
    Blob,
    Check,
    Collected,
    Dataset,
    Job,
    JobChange,
    JobCheckpoint,
    JobInvite,
    JobReport,
    JobSpec,
    Lineage,
    Model,
    ModelDiff,
    ModelLog,
    ModelPorts,
    ModelQuery,
    NewDataset,
    NewJob,
    NewModel,
    Peer,
    Ping,
    Prediction,
    Readiness,
    Status,
    StoppedJob,
    StoreCheck,
    TranscriptNote,
    Transfer,
    Verification,
    Versions,
    ViolationReport,
)
from celluler_node.operations_deployments import DeploymentOperations
from celluler_node.operations_serving import ServingOperations


class Operations(DeploymentOperations, ServingOperations, Protocol):
    """A node, or a light peer, seen by its own user."""

    async def status(self) -> Status: ...

    async def readiness(self) -> Readiness:
        """Cheap: asked every second by whoever watches the node."""
        ...

    async def doctor(self) -> tuple[Check, ...]:
        """Look for what is wrong; finding something wrong is an answer, not an error."""
        ...

    async def shutdown(self) -> None:
        """Ask the node to end in order. Returns when it has begun to, not when it has ended."""
        ...

    # peers

    async def peers(self) -> tuple[Peer, ...]:
        """Every member, this node first."""
        ...

    async def peer(self, peer: str) -> Peer:
        """By peer id, its last 8 characters, or a nickname only one member bears. Raises NotFound."""
        ...

    async def ping(self, peer: str) -> Ping:
        """One round trip, named as in `peer`. Raises NotFound, Unavailable."""
        ...

    async def violations(self) -> tuple[ViolationReport, ...]: ...

    # content

    async def add_blob(self, path: Path, kind: str, *, move: bool = False, announce: bool = True) -> Blob:
        """Put a file into the store, pinned, and announce it. kind: `blob`, `dataset`, `model`.

        announce: False tells nobody, as for weights that are about to be encrypted.

        move: the file may be taken, by renaming, instead of copied; what is left at its place is the caller's to
        remove. Raises QuotaExceeded, LocalError when the file cannot be read.
        """
        ...

    async def read_blob(self, cid: str, *, at_most: int | None = None) -> Path:
        """The complete file, fetched from peers when it is not here. Read only; valid until it is evicted.

        at_most: of so many bytes; a larger one is not begun. Raises InvalidSpec for text that is no CID, NotFound,
        QuotaExceeded, also for what is larger.
        """
        ...

    async def blob_stat(self, cid: str) -> Blob:
        """What is here of it, what came from whom, and who provides it; fetches nothing.

        Raises InvalidSpec, NotFound.
        """
        ...

    async def transfers(self) -> tuple[Transfer, ...]:
        """Contents on their way here, oldest first. Cheap: asked several times a second by whoever draws a bar."""
        ...

    async def pin(self, ref: str) -> Blob:
        """Never evict this content, given by its CID, or the weights or file of this model or dataset.

        Raises InvalidSpec, NotFound when it is not here.
        """
        ...

    async def unpin(self, ref: str) -> Blob:
        """The reverse of `pin`; what is not pinned stays so. Raises InvalidSpec, NotFound when it is not here."""
        ...

    async def collect(self, *, target_bytes: int | None = None, dry_run: bool = False) -> Collected:
        """Evict what was used least recently until the store holds at most `target_bytes`; None for all that may go.

        Never what is pinned, served, loaded or in transfer. With `dry_run` only tell what would go.
        """
        ...

    async def check_store(self, *, repair: bool = False) -> StoreCheck:
        """Hash again every byte that the index claims. With `repair`, forget what is damaged and fetch it anew.

        Finding damage is an answer, not an error; so is not finding anybody to fetch from.
        """
        ...

    # models

    async def add_model(self, model: NewModel) -> Model:
        """Sign and publish a model, pinned.

        Raises InvalidSpec, also when the version is a smaller step than its changes ask for; NotFound for its weights
        or a reader, LocalError for a taken version, Denied for another author's name.
        """
        ...

    async def list_models(self, query: ModelQuery | None = None) -> tuple[Model, ...]:
        """Models this node knows of, here or announced by others, without their specs; asks nobody.

        With a query only those that match, in its order. Raises InvalidSpec for an order there is not.
        """
        ...

    async def show_model(self, ref: str) -> Model:
        """One version, with its spec, its aliases and its providers. Raises InvalidSpec, NotFound."""
        ...

    async def pull_model(self, ref: str, *, layers: str | None = None) -> Model:
        """Resolve, fetch what is not here and verify; `local` is true in the answer.

        layers: `0:6`, `3`, `2:` or several with commas between, of the top-level layers of the spec: only their
        tensors, and `local` is true only if that is all of them. Raises InvalidSpec, NotFound, QuotaExceeded, Denied
        when it is encrypted and we are no reader.
        """
        ...

    async def search_models(self, query: ModelQuery) -> tuple[Model, ...]:
        """As `list_models`, over everything the swarm announced: fetches small records that say more, when somebody has
        them. Works offline on what is known. Raises InvalidSpec for an order there is not.
        """
        ...

    async def model_ports(self, ref: str) -> ModelPorts:
        """What it takes and gives. As cheap as `predict` is before it predicts: providers are not asked for.

        Raises InvalidSpec, NotFound.
        """
        ...

    async def model_card(self, ref: str) -> str:
        """Its Markdown, which is anybody's text. Raises InvalidSpec, NotFound also when it has none."""
        ...

    async def verify_model(self, ref: str) -> Verification:
        """Check signatures, records and every byte of the weights that is here; finding something wrong is an answer.

        Raises InvalidSpec, NotFound when there is nothing here to check.
        """
        ...

    async def remove_model(self, ref: str) -> Collected:
        """Forget this version here: weights that no other model here needs, and its manifest. Others keep theirs.

        Raises InvalidSpec, NotFound when it is not here, LocalError while it is in use. A pin does not hold it.
        """
        ...

    async def diff_models(self, old: str, new: str) -> ModelDiff:
        """What changed from one model to another; fetches records and layouts, no weights.

        Raises InvalidSpec, NotFound.
        """
        ...

    async def versions(self, ref: str) -> Versions:
        """All versions of the model that `ref` is one of, as its author signed them. Raises InvalidSpec, NotFound."""
        ...

    async def alias_model(self, ref: str, alias: str) -> Versions:
        """Let `author/name@alias` mean this version from now on. Raises InvalidSpec, NotFound, Denied."""
        ...

    async def drop_alias(self, ref: str) -> Versions:
        """ref: `author/name@alias`, which then means nothing. Raises InvalidSpec, NotFound, Denied."""
        ...

    async def rollback_model(self, ref: str) -> Versions:
        """Let the name alone mean this version, until another is published. Raises InvalidSpec, NotFound, Denied."""
        ...

    async def retract_model(self, ref: str, reason: str) -> Versions:
        """Sign that this version should not be used, and why (1 to 200 characters). It stays in the list; that
        cannot be undone. Raises InvalidSpec, NotFound, Denied.
        """
        ...

    async def model_log(self, ref: str) -> ModelLog:
        """What its author did to the name, chain and signatures checked.

        Raises InvalidSpec, NotFound; IntegrityError or a PeerViolation when the chain does not hold.
        """
        ...

    async def lineage(self, ref: str) -> Lineage:
        """What it was made from: parents, datasets, jobs, as far as records are to be had. Raises as `show_model`."""
        ...

    async def predict(self, ref: str, inputs: Tensor, output: str = "", *, peer: str = "") -> Prediction:
        """Run a model on a batch, here or at the peer that serves it best. output: one of `outputs_of` the model.
        peer: by id or nickname, to ask nobody else.

        Raises NotFound, Unavailable, LocalError; InvalidSpec for what the model does not take or give.
        """
        ...

    async def ensemble(
        self, refs: Sequence[str], inputs: Tensor, output: str = "", *, members: int = 1, aggregate: str = "vote"
    ) -> Prediction:
        """Run one model at several distinct peers, or several models, and make one answer of theirs.

        refs: one model with `members` peers, or several with one each; 2…16 answers in all. aggregate: vote, median or
        mean. More than half of the answers will do; `Prediction.ensemble` says how many came, and who disagreed.
        Raises as `predict`, NoPeers with fewer peers than that, InvalidSpec for models that do not give the same.
        """
        ...

    def generate(self, ref: str, question: Question, *, peer: str = "") -> AbstractAsyncContextManager[Generated]:
        """Let a model write, here or at the peer that serves it best, and on at another one when that fails. Leaving
        the context cancels what is left. peer: as of `predict`.

        Raises what `Answerer` does, on entry or in the middle; NotSupported where nobody can be asked.
        """
        ...

    # datasets

    async def add_dataset(self, dataset: NewDataset) -> Dataset:
        """Summarise in a worker, sign and publish, pinned.

        Raises as `add_model` does, InvalidSpec also for a file that is no dataset or lacks the label's column,
        WorkerFailed.
        """
        ...

    async def list_datasets(self) -> tuple[Dataset, ...]:
        """Datasets this node knows of, here or announced, without columns and balance."""
        ...

    async def show_dataset(self, ref: str) -> Dataset:
        """Raises InvalidSpec, NotFound."""
        ...

    async def pull_dataset(self, ref: str) -> Dataset:
        """Resolve, fetch what is not here and verify. Raises InvalidSpec, NotFound, QuotaExceeded."""
        ...

    # transcripts

    async def transcripts(self, job: str, peers: Sequence[str]) -> tuple[TranscriptNote, ...]:
        """What these peers (by id, 64 at most) signed to be their transcript of a job, in their order; bounded in time.

        Who says nothing is left out. Raises InvalidSpec.
        """
        ...

    # jobs

    async def submit_job(self, job: NewJob) -> Job:
        """Submit, once for each `client_id`. Raises InvalidSpec, NoPeers, Unavailable, Denied."""
        ...

    async def jobs(self) -> tuple[Job, ...]:
        """Newest first."""
        ...

    async def job(self, job: str, *, since: int = 0, wait_s: float = 0.0) -> JobReport:
        """A job and its events after cursor `since`; with `wait_s`, waits that long for one to come.

        job: an id, or an ending of one that names no other. Raises NotFound.
        """
        ...

    async def cancel_job(self, job: str) -> Job:
        """Cancel; a job that has ended stays as it is. Raises NotFound, Denied when it is somebody else's."""
        ...

    async def job_spec(self, job: str) -> JobSpec:
        """Raises NotFound."""
        ...

    async def checkpoint_job(self, job: str) -> JobCheckpoint:
        """Have the state after the last certified round published, by the names of `celluler.jobs.checkpoints`.

        Raises NotFound, Denied when it is somebody else's, Unavailable before the first round, LocalError when it has
        ended.
        """
        ...

    async def stop_job(self, job: str) -> StoppedJob:
        """`checkpoint_job`, then `cancel_job`. Raises as these do; without a checkpoint nothing is cancelled."""
        ...

    async def update_job(self, job: str, change: JobChange) -> Job:
        """Change what may be changed of a job that goes on. Raises NotFound, Denied, InvalidSpec, LocalError when it
        has ended."""
        ...

    async def invite_to_job(self, job: str, peer: str, for_s: int) -> JobInvite:
        """Sign that a peer (by id) may come late into a job's run, for so many seconds, whoever the job lists.

        Raises NotFound, InvalidSpec, Denied unless we submitted or coordinate it, or when it takes nobody late.
        """
        ...

    async def join_job(self, invite: str) -> Job:
        """Come late into the run to which somebody invites this node. Raises InvalidSpec for a damaged invite, Denied
        for one that is of no use here, NotFound for a job that nobody knows of."""
        ...
