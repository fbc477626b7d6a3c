"""After the last round: one member publishes the model, the others fetch it and compare it with what they trained.

The first member in roster order that the rule did count publishes; when nothing of it is heard, the next one does.
All members hold the same state bit for bit, so a published model is right exactly if its root is the root of the
weights that a member exports itself: no member takes another's word for the result.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
import trio

from celluler.content.digest import Codec, Digest, cid_of
from celluler.content.manifest import describe
from celluler.errors import CellulerError, ProtocolViolation, Unavailable
from celluler.identity import PeerId, short
from celluler.jobs.checkpoints import checkpoint_name, checkpoint_version
from celluler.learning.report import RunReport
from celluler.models.manifest import Metric, OpenedManifest, describe_model
from celluler_node.repository import Held
from celluler_node.training.record import JobRecord, excluded
from celluler_node.training.site import Site
from celluler_protocols.jobs_messages import Checkpointed, Figure, Outcome

TAKEOVER_S = 20.0
"""How long each member in line waits for the one before it."""
POLL_S = 0.25
REPLICAS = 3
REPLICATE_S = 30.0

Judge = Callable[[OpenedManifest, PeerId], Awaitable[bool]]
"""Whether a published model is the run's. Raises ProtocolViolation where it is a lie, and not only another opinion."""

log = structlog.get_logger()


def publishers(report: RunReport, members: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
    """Who publishes, in order. Read from certified rounds alone, so that all members agree."""
    out = {one.peer for one in excluded(report)}
    last = report.rounds[-1].contributed if report.rounds else members
    return tuple(peer for peer in members if peer in last and peer not in out) or members


async def settle(
    site: Site, record: JobRecord, base: OpenedManifest, weights: Path, metrics: tuple[Metric, ...]
) -> Outcome:
    """Publish or fetch the result; returns it once it is here and verified. Raises Unavailable when nobody publishes.

    weights: our own export of the final state.
    """
    assert record.roster is not None
    assert record.report is not None
    members = tuple(member.peer for member in record.roster.members)
    line = publishers(record.report, members)
    root = (await trio.to_thread.run_sync(describe, weights, "model")).root

    async def ours(opened: OpenedManifest, publisher: PeerId) -> bool:
        if opened.record.weights != root:
            raise ProtocolViolation("published other weights than the run certified", peer=publisher)
        return True

    return await settle_in_line(site, record, base, weights, metrics, line=line, judge=ours)


async def settle_in_line(
    site: Site,
    record: JobRecord,
    base: OpenedManifest,
    weights: Path,
    metrics: tuple[Metric, ...],
    *,
    line: tuple[PeerId, ...],
    judge: Judge,
) -> Outcome:
    """Publish when it is our turn, else take what those in line publish and the judge accepts. Raises Unavailable."""
    place = line.index(site.peer_id) if site.peer_id in line else len(line)
    with trio.move_on_after(TAKEOVER_S * place):
        return _outcome(await _published_by_another(site, record, line, judge))
    if site.peer_id not in line:
        raise Unavailable("no member published the result")
    return _outcome(await _publish(site, record, base, weights, metrics))


async def replicated(site: Site, weights: Digest, wanted: int) -> int:
    """Wait, bounded, until so many peers provide the weights; returns how many do."""
    found = 0
    with trio.move_on_after(REPLICATE_S):
        while found < wanted:
            if found:
                await trio.sleep(POLL_S)
            found = 1 + len(await site.host.dht.providers(weights))
    return found


async def _publish(
    site: Site, record: JobRecord, base: OpenedManifest, weights: Path, metrics: tuple[Metric, ...]
) -> Held:
    spec = record.order.spec
    return await _publish_as(
        site, record, base, weights, spec.result_name, spec.result.version, metrics, record.transcript
    )


async def _publish_as(
    site: Site,
    record: JobRecord,
    base: OpenedManifest,
    weights: Path,
    name: str,
    version: str,
    metrics: tuple[Metric, ...],
    transcript: Digest | None,
) -> Held:
    root = await trio.to_thread.run_sync(site.store.add, weights, "model")
    return await site.repository.publish(
        describe_model(
            name,
            version,
            base.record.spec,
            root,
            created_s=int(site.clock()),
            body=base.record.body,
            nickname=site.nickname,
            labels=base.record.labels,
            metrics=metrics,
            parents=(base.digest,),
            dataset=record.order.spec.data.origin,
            job=record.job,
            transcripts=() if transcript is None else (transcript,),
            **_around(base),
        )
    )


def _around(base: OpenedManifest) -> dict[str, Any]:
    """What stands before and after the model, and beside its weights. Files that were encrypted are left out, and with
    a tokenizer what needs it: whoever publishes need not be able to read them."""
    around = {"preprocess": base.record.preprocess, "postprocess": base.record.postprocess}
    if not base.record.encrypted:
        return around | {"files": base.record.files}
    return around if base.interface.own_tokenizer_at is None else {}


async def publish_checkpoint(
    site: Site, record: JobRecord, base: OpenedManifest, weights: Path, rounds: int, transcript: Digest | None
) -> Checkpointed:
    """Publish the state after so many rounds, under a name that says so. Raises LocalError, Unavailable.

    weights: our own export of it. transcript: of the run so far.
    """
    result = record.order.spec
    name, version = checkpoint_name(result.result_name), checkpoint_version(result.result.version, rounds)
    return Checkpointed(rounds, _outcome(await _publish_as(site, record, base, weights, name, version, (), transcript)))


async def _published_by_another(site: Site, record: JobRecord, line: tuple[PeerId, ...], judge: Judge) -> Held:
    """Watch the announcements of the members in line until one is of this job and its result is accepted."""
    spec = record.order.spec
    refused: set[bytes] = set()
    while True:
        for signed in site.repository.announced():
            told = signed.record
            if signed.signer not in line or (told.name, told.version) != (spec.result_name, spec.result.version):
                continue
            if told.manifest in refused:
                continue
            try:
                held = await _take(site, record, Digest(told.manifest), signed.signer, judge)
            except ProtocolViolation as error:
                refused.add(told.manifest)
                site.host.penalise(signed.signer, error)
                log.info("result_refused", peer=short(signed.signer), reason=str(error))
                continue
            except CellulerError as error:
                log.info("result_not_fetched", peer=short(signed.signer), reason=str(error))
                continue
            if held is not None:
                return held
            refused.add(told.manifest)
        await trio.sleep(POLL_S)


async def _take(site: Site, record: JobRecord, manifest: Digest, publisher: PeerId, judge: Judge) -> Held | None:
    """The published model, fetched, if it is this job's and accepted. Raises what the judge does."""
    reference = cid_of(manifest, Codec.MANIFEST)
    opened = await site.repository.resolve(reference, hints=(publisher,))
    if opened.record.job != record.job or not await judge(opened, publisher):
        return None
    return (await site.repository.pull(reference, hints=(publisher,)))[0]


def _outcome(held: Held) -> Outcome:
    record = held.opened.record
    figures = tuple(Figure(metric.name, metric.value) for metric in record.metrics)
    return Outcome(held.name, held.opened.digest, record.weights, figures)
