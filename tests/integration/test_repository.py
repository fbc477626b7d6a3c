"""The model repository over real node processes: versions, history, readers, layers, damage, datasets, search."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from celluler.client import Client
from celluler.content.digest import parse_cid
from celluler.engines.formats.convert import convert
from celluler.errors import Denied, InvalidSpec, NotFound
from celluler.formats.importing import Wishes
from simulations.digits import MLP
from simulations.swarm import CommandFailed, Swarm, celluler, open_swarm
from tests.support.decoders import LLAMA, hf_folder, llama_state
from tests.support.waiting import eventually

WIDE = {**MLP, "layers": [{"kind": "dense", "width": 2048}, *MLP["layers"]]}


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """alice publishes, bob and carol look. Tests use names of their own, and end no node."""
    with open_swarm(tmp_path_factory.mktemp("swarm")) as swarm:
        alice = swarm.start("alice")
        for name in ("bob", "carol"):
            swarm.launch(name, join=[alice.address])
        for node in swarm.nodes[1:]:
            swarm.await_ready(node)
        yield swarm


@pytest.fixture
def own_swarm(tmp_path: Path) -> Iterator[Swarm]:
    """Of a test that ends nodes."""
    with open_swarm(tmp_path / "own") as swarm:
        yield swarm


@pytest.fixture
def alice(swarm: Swarm) -> Iterator[Client]:
    with Client(home=swarm.nodes[0].home) as client:
        yield client


@pytest.fixture
def bob(swarm: Swarm) -> Iterator[Client]:
    with Client(home=swarm.nodes[1].home) as client:
        yield client


@pytest.fixture
def carol(swarm: Swarm) -> Iterator[Client]:
    with Client(home=swarm.nodes[2].home) as client:
        yield client


def test_a_name_means_what_its_author_last_said(alice: Client, bob: Client) -> None:
    alice.models.add("alice/history:1.0.0", MLP, aliases=["stable"])
    alice.models.add("alice/history:1.1.0", MLP, seed=1)
    assert bob.models.show("alice/history").version == "1.1.0"
    assert bob.models.show("alice/history@stable").version == "1.0.0"
    alice.models.rollback("alice/history:1.0.0")
    assert bob.models.show("alice/history").version == "1.0.0"
    alice.models.alias("alice/history:1.1.0", "stable")
    assert bob.models.show("alice/history@stable").version == "1.1.0"
    alice.models.add("alice/history:1.2.0", MLP, seed=2)
    versions = bob.models.versions("alice/history")
    assert [(one.version, one.current) for one in versions.versions] == [
        ("1.2.0", True),
        ("1.1.0", False),
        ("1.0.0", False),
    ]


def test_a_retracted_version_is_found_no_more_and_says_why(alice: Client, bob: Client) -> None:
    alice.models.add("alice/taken-back:1.0.0", MLP)
    wrong = alice.models.add("alice/taken-back:1.1.0", MLP, seed=1)
    alice.models.retract("alice/taken-back:1.1.0", "trained on the test set")
    assert bob.models.show("alice/taken-back").version == "1.0.0"
    with pytest.raises(NotFound, match="trained on the test set"):
        bob.models.pull("alice/taken-back:1.1.0")
    assert bob.models.show("alice/taken-back:1.1.0").retracted == "trained on the test set"
    assert bob.models.show(wrong.cid).retracted == "trained on the test set"


def test_a_step_that_says_too_little_is_refused(alice: Client) -> None:
    alice.models.add("alice/steps:1.0.0", MLP)
    with pytest.raises(InvalidSpec) as refused:
        alice.models.add("alice/steps:1.0.1", MLP, seed=1)
    assert refused.value.hint == "the least is 1.1.0"
    with pytest.raises(InvalidSpec) as refused:
        alice.models.add("alice/steps:1.1.0", WIDE)
    assert refused.value.hint == "the least is 2.0.0"


def test_nobody_but_the_author_changes_a_name(alice: Client, bob: Client) -> None:
    alice.models.add("alice/mine:1.0.0", MLP)
    for change in (
        lambda: bob.models.rollback("alice/mine:1.0.0"),
        lambda: bob.models.retract("alice/mine:1.0.0", "no"),
        lambda: bob.models.alias("alice/mine:1.0.0", "stable"),
        lambda: bob.models.add("alice/mine:2.0.0", MLP),
    ):
        with pytest.raises(Denied):
            change()


def test_the_log_tells_every_change_and_a_model_verifies(alice: Client, bob: Client) -> None:
    alice.models.add("alice/logged:1.0.0", MLP, aliases=["stable"])
    alice.models.add("alice/logged:1.1.0", MLP, seed=1)
    alice.models.rollback("alice/logged:1.0.0")
    bob.models.pull("alice/logged:1.0.0")
    log = bob.models.log("alice/logged")
    assert [(line.number, line.action, line.version) for line in log.entries] == [
        (4, "rolled-back", "1.0.0"),
        (3, "published", "1.1.0"),
        (2, "aliased", "1.0.0"),
        (1, "published", "1.0.0"),
    ]
    verified = bob.models.verify("alice/logged:1.0.0")
    assert verified.ok
    assert {check.name for check in verified.checks} == {"signature", "manifest", "index", "log", "content", "weights"}


def test_a_difference_is_told_with_norms_and_bytes_to_fetch(alice: Client, bob: Client) -> None:
    alice.models.add("alice/differs:1.0.0", MLP, licence="MIT")
    alice.models.add("alice/differs:1.1.0", MLP, seed=1, licence="Apache-2.0")
    afar = bob.models.diff("alice/differs:1.0.0", "alice/differs:1.1.0")
    assert afar.bump == "minor"
    assert {change.name for change in afar.tensors} == {"0.weight", "2.weight", "4.weight"}
    assert afar.bytes_to_fetch is not None
    assert 0 < afar.bytes_to_fetch < 70_000
    assert [(one.path, one.old, one.new) for one in afar.metadata] == [("licence", '"MIT"', '"Apache-2.0"')]
    near = alice.models.diff("alice/differs:1.0.0", "alice/differs:1.1.0")
    assert all(change.relative is not None and change.relative > 0.5 for change in near.tensors)


def test_some_layers_are_fetched_without_the_rest(alice: Client, bob: Client, swarm: Swarm) -> None:
    model = alice.models.add("alice/layered:1.0.0", WIDE, copies=1)  # nobody keeps it for the swarm
    part = bob.models.pull("alice/layered:1.0.0", layers="0")
    assert not part.local
    first = 4 * (64 * 2048 + 2048)
    assert first <= part.have_bytes < first + 4096
    stat = bob.blobs.stat(model.weights)
    assert stat.wanted_bytes == stat.have_bytes < stat.total_bytes
    assert bob.models.pull("alice/layered:1.0.0").local
    received = {one.peer: one.received_bytes for one in bob.blobs.stat(model.weights).received}
    assert stat.total_bytes - 4096 < sum(received.values()) <= stat.total_bytes  # nothing was fetched twice


def test_only_named_readers_read_an_encrypted_model(alice: Client, bob: Client, carol: Client, tmp_path: Path) -> None:
    model = alice.models.add("alice/secret:1.0.0", MLP, readers=["bob"])
    assert model.encrypted
    assert bob.models.pull("alice/secret").local
    assert bob.models.verify("alice/secret").ok
    answer = bob.predict("alice/secret", np.zeros((1, 64), dtype=np.float32))
    assert answer.outputs.shape == (1, 10)
    with pytest.raises(Denied):
        carol.models.pull("alice/secret")
    assert (
        carol.blobs.get(model.weights, tmp_path / "ciphertext") > model.weights_bytes
    )  # anybody may store and serve it
    alice.models.add("alice/secret:1.0.1", MLP, readers=["carol"])
    assert carol.models.pull("alice/secret:1.0.1").local
    with pytest.raises(Denied):
        bob.models.pull("alice/secret:1.0.1")
    with pytest.raises(InvalidSpec, match="everybody"):  # by leaving something out
        alice.models.add("alice/secret:1.1.0", MLP)


def test_a_reader_that_serves_does_not_answer_everybody(
    swarm: Swarm, alice: Client, bob: Client, tmp_path: Path
) -> None:
    alice.models.add("alice/for-bob:1.0.0", MLP, readers=["bob"])
    bob.models.pull("alice/for-bob")
    np.save(tmp_path / "x.npy", np.zeros((1, 64), dtype=np.float32))
    with pytest.raises(CommandFailed) as refused:
        celluler(
            "run",
            "alice/for-bob",
            str(tmp_path / "x.npy"),
            "--join",
            swarm.nodes[1].address,
            home=tmp_path / "stranger",
        )
    assert refused.value.code == 5


def test_an_upload_beyond_the_quota_is_refused_and_does_not_hang(own_swarm: Swarm, tmp_path: Path) -> None:
    home = own_swarm.folder / "small"
    home.mkdir(parents=True)
    (home / "config.toml").write_text('[store]\nquota = "8MiB"\n')
    small, source = own_swarm.start("small"), tmp_path / "source"
    source.write_bytes(os.urandom(40 << 20))
    with pytest.raises(CommandFailed) as refused:
        small.call("blob", "add", str(source))
    assert refused.value.code == 8


def test_card_log_and_name_outlive_the_author(own_swarm: Swarm) -> None:
    alice = own_swarm.start("alice")
    bob, carol = (own_swarm.start(name, join=[alice.address]) for name in ("bob", "carol"))
    with Client(home=alice.home) as author, Client(home=bob.home) as keeper, Client(home=carol.home) as stranger:
        author.models.add("alice/lasting:1.0.0", MLP, card="# Lasting")
        author.models.add("alice/lasting:1.1.0", MLP, seed=1, card="# Lasting on")
        keeper.models.pull("alice/lasting")
        keeper.models.log("alice/lasting")
        keeper.models.card("alice/lasting")
        alice.kill()
        assert stranger.models.card("alice/lasting") == "# Lasting on"
        assert len(stranger.models.log("alice/lasting").entries) == 2


def test_files_of_a_model_travel_with_its_weights(alice: Client, bob: Client, carol: Client, tmp_path: Path) -> None:
    files = {"tokenizer": tmp_path / "tokenizer.json", "chat-template": tmp_path / "template"}
    for file in files.values():
        file.write_text(f'{{"is": "{file.name}"}}')
    told = alice.models.add("alice/with-files:1.0.0", MLP, seed=41, copies=1, files=files)
    assert bob.models.pull("alice/with-files").files == told.files
    names = {check.name: check.ok for check in bob.models.verify("alice/with-files").checks}
    assert names["files"]
    gone = bob.models.rm("alice/with-files").contents
    assert {one.cid for one in gone} == {told.weights, *told.files.values()}
    sealed = alice.models.add("alice/sealed-files:1.0.0", MLP, seed=42, copies=1, files=files, readers=["bob"])
    assert not set(sealed.files.values()) & set(told.files.values())
    bob.models.pull("alice/sealed-files")
    checked = {check.name: check.ok for check in bob.models.verify("alice/sealed-files").checks}
    assert checked["files"]
    with pytest.raises(Denied):
        carol.models.pull("alice/sealed-files")
    files["chat-template"].write_bytes(bytes(65 << 10))
    with pytest.raises(InvalidSpec, match="chat-template"):
        alice.models.add("alice/too-large:1.0.0", MLP, files=files)


def test_a_model_with_its_own_tokenizer_is_asked_with_texts(alice: Client, bob: Client, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    folder = hf_folder(tmp_path / "hf", LLAMA, llama_state(LLAMA))
    words = {"model": {"type": "WordLevel", "vocab": {"<unk>": 0, "one": 1, "two": 2}, "unk_token": "<unk>"}}
    splits = {"pre_tokenizer": {"type": "Whitespace"}, "added_tokens": [], "version": "1.0"}
    (folder / "tokenizer.json").write_text(json.dumps(words | splits))
    (tmp_path / "ours").mkdir()
    convert(folder, None, "celluler", Wishes(context=8), tmp_path / "ours")
    alice.models.add("alice/reads:1.0.0", tmp_path / "ours", copies=1)
    told = bob.predict("alice/reads", ["one two two", "two"], output="next_token").outputs.numpy()
    assert told.shape == (2, LLAMA["vocab_size"])
    assert not np.allclose(told[0], told[1])
    assert np.allclose(told[1], bob.predict("alice/reads", ["two"], output="raw").outputs.numpy()[0, 0], atol=1e-5)


def test_damage_on_the_disk_is_found_and_mended(alice: Client, bob: Client, swarm: Swarm) -> None:
    model = alice.models.add("alice/damaged:1.0.0", MLP)
    bob.models.pull("alice/damaged")
    file = swarm.nodes[1].home / "store" / "content" / parse_cid(model.weights).hex() / "data"
    file.chmod(0o644)
    with file.open("r+b") as damaged:
        damaged.seek(-100, os.SEEK_END)
        damaged.write(b"\xff" * 50)
    assert not bob.models.verify("alice/damaged").ok
    found = bob.check_store()
    assert [one.cid for one in found.damaged] == [model.weights]
    mended = bob.check_store(repair=True)
    assert mended.ok
    assert mended.damaged[0].restored
    assert bob.models.verify("alice/damaged").ok


def test_models_are_found_by_what_is_said_of_them(alice: Client, bob: Client) -> None:
    said = {"tags": ["handwriting"], "licence": "MIT", "description": "reads ancient numerals", "card": "# Numerals"}
    alice.models.add("alice/numerals:1.0.0", MLP, seed=77, copies=1, **said)
    eventually(lambda: [one.name for one in bob.models.search("ancient handwriting")] == ["numerals"])
    found = bob.models.search("numerals")[0]
    assert (found.task, found.licence, found.tags, found.local) == ("classification", "MIT", ("handwriting",), False)
    assert bob.models.card("alice/numerals") == "# Numerals"


def test_what_is_pinned_or_new_stays_when_room_is_made(alice: Client, bob: Client) -> None:
    kept = alice.models.add("alice/kept:1.0.0", MLP, copies=1)
    lost = alice.models.add("alice/lost:1.0.0", MLP, seed=1, copies=1)
    bob.models.pull("alice/kept")
    bob.models.pull("alice/lost")
    bob.pin("alice/kept")
    would = {one.cid for one in bob.blobs.gc(dry_run=True).contents}
    assert lost.weights in would
    assert kept.weights not in would
    assert bob.blobs.stat(lost.weights).complete
    bob.blobs.gc()
    assert bob.blobs.stat(kept.weights).complete
    with pytest.raises(NotFound):
        bob.blobs.stat(lost.weights)


def test_a_table_is_described_published_and_pulled(alice: Client, bob: Client, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    table = pa.table(
        {
            "height": pa.array([None if row % 10 == 0 else float(row) for row in range(500)], pa.float32()),
            "who": [f"patient-{row % 20}" for row in range(500)],
            "label": rng.integers(0, 3, 500),
        }
    )
    file = tmp_path / "patients.parquet"
    pq.write_table(table, file)
    published = alice.datasets.add("alice/patients:1.0.0", file, label="label", licence="CC0-1.0")
    assert published.rows == 500
    assert {column.name: column.missing for column in published.columns} == {"height": 50, "who": 0, "label": 0}
    assert sum(published.balance.values()) == 500
    assert bob.datasets.pull("alice/patients").local
    assert [one.reference for one in bob.datasets.ls()] == ["alice/patients:1.0.0"]
    with pytest.raises(NotFound, match="dataset"):
        bob.models.show("alice/patients")
    pq.write_table(table.drop(["who"]), file)
    with pytest.raises(InvalidSpec) as refused:
        alice.datasets.add("alice/patients:1.1.0", file, label="label")
    assert refused.value.hint == "the least is 2.0.0"


def test_bytes_moved_are_told_by_peer(alice: Client, bob: Client, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(24 << 20))
    blob = alice.blobs.add(source)
    before = bob.peers.show("alice").received_bytes
    assert bob.blobs.get(blob.cid, tmp_path / "target") == 24 << 20
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    stat = bob.blobs.stat(blob.cid)
    assert [one.received_bytes for one in stat.received] == [24 << 20]
    assert bob.peers.show("alice").received_bytes - before >= 24 << 20
