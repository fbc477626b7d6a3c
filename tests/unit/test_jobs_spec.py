"""A job spec says what is wrong, and where."""

from __future__ import annotations

import json

import pytest

from celluler.content.digest import Codec, cid_of, digest_of, parse_cid
from celluler.datasets.schema import Selection
from celluler.errors import InvalidSpec, ProtocolViolation
from celluler.jobs.spec import canonical_job, job_digest, parse_canonical_job, parse_job, with_data
from tests.support.jobs import ALICE, DATA_CID, JOB_YAML

PEER = ALICE.peer_id


def test_the_same_job_in_yaml_and_json_has_one_digest() -> None:
    job = parse_job(JOB_YAML)
    again = parse_job(json.dumps(job.model_dump(mode="json"), indent=2))
    assert again == job
    assert job_digest(again) == job_digest(job)
    assert job.train.learning_rate == 0.01
    assert job.resources.memory == 1 << 30
    assert job.policy.deadline == 7200
    assert job.result_name == "digits"


def test_what_is_left_out_gets_the_documented_default() -> None:
    short = "\n".join(line for line in JOB_YAML.splitlines() if not line.startswith(("resources", "policy", "result")))
    job = parse_job(short)
    assert (job.resources.peers.min, job.resources.peers.max) == (3, 16)
    assert (job.result.version, job.policy.retries) == ("1.0.0", 0)


@pytest.mark.parametrize(
    ("old", "new", "path", "words"),
    [
        ("rounds: 20", "rounds: 0", "train.rounds", "greater than or equal to 1, not 0"),
        ("rounds: 20", "round: 20", "train.round", "unknown key"),
        ("rounds: 20", "rounds: true", "train.rounds", "integer"),
        ("rounds: 20", "rounds: '20'", "train.rounds", "integer"),
        ("rounds: 20", "rounds: 20, audits_per_round: 65", "train.audits_per_round", "less than or equal to 64"),
        ("rounds: 20", "rounds: 20, audits_per_round: 1, consensus: byzantine", "train", "proof-of-learning alone"),
        ("rounds: 20", "rounds: 20, topology: ring", "train", "gossip alone"),
        ("rounds: 20", "rounds: 20, consensus: gossip, wire: q8", "train", "q16 alone"),
        ("rounds: 20", "rounds: 20, consensus: gossip, checkpoint_every: 5", "train", "certified rounds"),
        ("rounds: 20", "rounds: 20, checkpoint_every: -1", "train.checkpoint_every", "greater than or equal to 0"),
        ("partition: iid}", "partition: iid}\nadmission: {mode: listed, peers: [bob]}", "admission.peers.0", "peer id"),
        ("partition: iid}", f"partition: iid}}\nadmission: {{peers: [{PEER}]}}", "admission", "mode listed"),
        ("1e-2", ".nan", "train.learning_rate", "not nan"),
        ("1e-2", "fast", "train.learning_rate", "number"),
        ("aggregator: nk", "aggregator: best", "train.aggregator", "'clipping' or 'mean'"),
        ("1GiB", "lots", "resources.memory", "no size"),
        ("min: 3", "min: 30", "resources.peers", "min 30 is more than max 16"),
        ("2h", "soon", "policy.deadline", "no duration"),
        ("[any]", "[eu]", "policy.regions.0", "should be 'any'"),
        ("alice/digits-mlp:0.1.0", "digits", "model", "CID"),
        ("alice/digits-mlp:0.1.0", "alice/digits-mlp:1", "model", "version"),
        ("cid: b", "cid: x", "data.cid", "not a CID"),
        ("name: digits", "name: Digits!", "name", "a-z"),
        ("version: 2.0.0", "version: 2.0", "result.version", "in quotes"),
        ("partition: iid", "partition: iid, held_out: b", "data.held_out", "unknown key"),
        ("partition: iid", "partition: by-key", "data", "by-key with a key"),
        ("partition: iid", "partition: iid, key: writer", "data", "key goes with"),
        ("partition: iid", "partition: sorted", "data.partition", "'by-label' or 'by-key'"),
        ("partition: iid", "features: [a, a]", "data", "twice"),
        ("partition: iid", "features: []", "data.features", "at least 1"),
        ("partition: iid", "features: [7]", "data.features.0", "name of a column"),
        ("partition: iid", "label: ''", "data.label", "1…128 bytes"),
        ("partition: iid", "dataset: digits", "data.dataset", "CID"),
        (f"cid: {DATA_CID}, ", "", "data", "cid or dataset is missing"),
        ("kind: TrainJob", "kind: BatchJob", "kind", "not built yet"),
        ("kind: TrainJob", "kind: Train", "kind", "TrainJob"),
        ("celluler/v1", "celluler/v2", "apiVersion", "celluler/v1"),
        ("rounds: 20", "rounds: 20, rounds: 3", "", "line 6: 'rounds' is there twice"),
        ("name: digits", "name: &x digits", "", "anchors"),
        ("kind: TrainJob", "kind: [", "", "not YAML"),
        ("kind: TrainJob", "kind: !!python/object:os.system {}", "", "not YAML"),
    ],
)
def test_a_wrong_place_is_named(old: str, new: str, path: str, words: str) -> None:
    assert old in JOB_YAML
    with pytest.raises(InvalidSpec) as raised:
        parse_job(JOB_YAML.replace(old, new, 1))
    assert raised.value.path == path
    assert words in raised.value.problem


def test_a_misspelt_key_gets_a_suggestion() -> None:
    with pytest.raises(InvalidSpec) as raised:
        parse_job(JOB_YAML.replace("rounds", "round"))
    assert raised.value.hint == "did you mean 'rounds'?"


def test_json_with_a_key_twice_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="twice"):
        parse_job('{"kind": "TrainJob", "kind": "TrainJob"}')


@pytest.mark.parametrize("document", ["", "[]", "3", "a" * 70_000, "[" * 1500, '{"a":' * 5000, "{" * 1500, b"\xff\xfe"])
def test_what_is_no_spec_at_all_is_refused(document: str | bytes) -> None:
    with pytest.raises(InvalidSpec):
        parse_job(document)


def test_a_peer_must_send_the_canonical_form() -> None:
    canonical = canonical_job(parse_job(JOB_YAML))
    assert parse_canonical_job(canonical) == parse_job(JOB_YAML)
    for other in (canonical + b" ", canonical.replace(b'"retries":2', b'"retries":200'), JOB_YAML.encode(), b"\xff"):
        with pytest.raises(ProtocolViolation):
            parse_canonical_job(other)


def test_a_dataset_given_by_name_is_looked_up_once_for_all_members() -> None:
    named = JOB_YAML.replace(f"cid: {DATA_CID}", "dataset: alice/digits, features: [pixels, age], key: writer")
    job = parse_job(named.replace("partition: iid", "partition: by-key"))
    with pytest.raises(InvalidSpec, match="was not looked up"):
        _ = job.data.content
    manifest = digest_of(b"manifest of 1.2.0")
    found = with_data(job, digest_of(b"file"), dataset=cid_of(manifest, Codec.MANIFEST), label="digit")
    again = parse_canonical_job(canonical_job(found))
    assert again == found
    assert (again.data.content, again.data.origin) == (digest_of(b"file"), manifest)
    assert again.data.selection == Selection(("pixels", "age"), "digit", "writer")


def test_a_file_given_by_cid_is_its_own_origin() -> None:
    data = parse_job(JOB_YAML).data
    assert data.content == data.origin == parse_cid(DATA_CID)
    assert data.selection == Selection()
