"""A job that is right in every place, for tests to break one place of."""

from __future__ import annotations

from celluler.content.digest import cid_of, digest_of
from celluler.identity import Identity
from celluler.jobs.spec import parse_job
from celluler_protocols.jobs_orders import seal_order

DATA_CID = cid_of(digest_of(b"digits"))
ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
NOW_S = 1_800_000_000

JOB_YAML = f"""\
apiVersion: celluler/v1
kind: TrainJob
name: digits
model: alice/digits-mlp:0.1.0
data: {{cid: {DATA_CID}, partition: iid}}
train: {{inner_steps: 20, rounds: 20, learning_rate: 1e-2, aggregator: nk}}
resources: {{peers: {{min: 3, max: 16}}, memory: 1GiB, accelerator: any}}
policy: {{priority: 5, preemptible: true, deadline: 2h, retries: 2, regions: [any]}}
result: {{version: 2.0.0}}
"""


def sealed_order(*, coordinator: str = BOB.peer_id, created_s: int = NOW_S, life_s: int = 7200) -> bytes:
    return seal_order(
        ALICE,
        parse_job(JOB_YAML),
        client_id="c-1",
        coordinator=coordinator,
        model=digest_of(b"manifest"),
        created_s=created_s,
        expires_s=created_s + life_s,
    )
