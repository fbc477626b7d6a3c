"""Jobs among real nodes whose objective is not to tell classes: each is judged, round by round, by what it is for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from celluler.client import Client, Job
from celluler.models.templates import TEMPLATES
from simulations.digits import write_digits
from simulations.learners import TRAIN_S, start_nodes
from simulations.swarm import Swarm, open_swarm
from tests.support.training import transcript_in

DOCS = Path(__file__).parents[2] / "docs"
TIME, VOCABULARY = 24, 128
LANGUAGE_MODEL: dict[str, Any] = {
    "spec": 1,
    "input": {"dtype": "int64", "shape": [TIME]},
    "layers": [
        {"kind": "embedding", "vocabulary": VOCABULARY, "width": 32},
        {"kind": "residual", "layers": [
            {"kind": "rms_norm"}, {"kind": "attention", "heads": 2, "causal": True, "rope_base": 10000}]},
        {"kind": "residual", "layers": [{"kind": "rms_norm"}, {"kind": "swiglu", "hidden": 48}]},
        {"kind": "rms_norm"},
        {"kind": "dense", "width": VOCABULARY, "bias": False},
    ],
    "objective": {"kind": "next_token", "vocabulary": VOCABULARY},
}  # fmt: skip
IMAGES = {"contrastive": "matched", "vae": "elbo", "gan": "energy_distance", "diffusion": "denoising_error"}


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    with open_swarm(tmp_path / "swarm") as swarm:
        yield swarm


def submit(client: Client, name: str, document: dict[str, Any], data: Path, **train: Any) -> Job:
    model = client.models.add("alice/untrained:1.0.0", document)
    settings = {"inner_steps": 8, "batch": 16, "learning_rate": 0.003, "optimizer": "adam"}
    return client.jobs.submit(
        {
            "apiVersion": "celluler/v1",
            "kind": "TrainJob",
            "name": name,
            "model": model.cid,
            "data": {"cid": client.blobs.add(data, kind="dataset").cid},
            "train": settings | train,
            "resources": {"peers": {"min": 3, "max": 3}},
            "policy": {"deadline": "5m"},
        }
    )


def test_three_members_train_a_language_model_and_what_they_did_is_verified(swarm: Swarm, tmp_path: Path) -> None:
    text = (DOCS / "explanation" / "verified-rounds.md").read_bytes()
    tokens = np.frombuffer(text, np.uint8)[: len(text) // TIME * TIME].reshape(-1, TIME) % VOCABULARY
    save_file({"x": np.ascontiguousarray(tokens.astype(np.int64))}, tmp_path / "text.safetensors")
    nodes = start_nodes(swarm, 3)
    with Client(home=nodes[0].home) as alice:
        job = submit(alice, "writer", LANGUAGE_MODEL, tmp_path / "text.safetensors", rounds=4, learning_rate=0.01)
        ended = job.wait(TRAIN_S)
        assert ended.state == "Succeeded", ended.reason
        rounds = job.rounds()
        losses = [one.loss for one in rounds]
        assert None not in losses
        assert losses[-1] < losses[0] - 0.5  # type: ignore[operator]
        told = [(one.metric, one.value) for one in rounds]
        assert {name for name, _ in told} == {"perplexity"}
        # Of the state before the first round: no better than guessing among all tokens, and no much worse.
        assert VOCABULARY / 2 < told[0][1] < 8 * VOCABULARY  # type: ignore[operator]
        assert told[-1][1] < told[0][1] / 2  # type: ignore[operator]
        assert math.isclose(ended.metrics["perplexity"], told[-1][1])  # type: ignore[arg-type]
        result = job.results()
    verified = nodes[1].call("verify", transcript_in(ended.reason), "--model", result.model, "--rounds", "1")
    assert verified["ok"], verified


@pytest.mark.large
@pytest.mark.parametrize("name", IMAGES)
def test_three_members_train_what_no_label_tells(name: str, swarm: Swarm, tmp_path: Path) -> None:
    digits = write_digits(tmp_path)
    document = TEMPLATES[name].document
    if len(document["input"]["shape"]) == 3:
        from safetensors.numpy import load_file  # noqa: PLC0415

        save_file({"x": load_file(digits.train)["x"].reshape(-1, 1, 8, 8)}, digits.train)
    nodes = start_nodes(swarm, 3)
    with Client(home=nodes[0].home) as alice:
        job = submit(alice, name, document, digits.train, rounds=3)
        ended = job.wait(TRAIN_S)
        assert ended.state == "Succeeded", ended.reason
        rounds = job.rounds()
        assert {one.metric for one in rounds} == {IMAGES[name]}
        assert all(one.value is not None and math.isfinite(one.value) for one in rounds)
        assert rounds[-1].value != rounds[0].value
        result = job.results()
    verified = nodes[1].call("verify", transcript_in(ended.reason), "--model", result.model, "--rounds", "1")
    assert verified["ok"], verified
