"""A worker that scores claimed answers: what comes through its words, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from celluler.errors import InvalidSpec, LocalError
from celluler.inference.checking import TOLERANCES, judge
from celluler.inference.sampling import GREEDY, Sampling
from celluler.inference.scores import Claim, Scores, open_scores
from celluler.models.body import format_body
from celluler.models.memory import RUNTIME_BYTES, DoesNotFit
from celluler.models.weights import save_vector
from celluler_node.processes.worker import Worker
from celluler_node.processes.worker_generate_words import blob_of
from celluler_node.processes.worker_score_words import Score, claim_of, score_call
from celluler_node.processes.worker_words import LoadModel
from tests.support.lms import Model, lm
from tests.unit.test_checking import answered
from tests.unit.test_worker_generate import Ask, asker

pytestmark = pytest.mark.thorough

SAMPLED = Sampling(0.9, seed=3, choice=2)
SLACK = TOLERANCES["float32"].slack


@pytest.fixture(scope="module")
def model() -> Model:
    torch.set_num_threads(1)
    return lm(seed=1)


def loaded(folder: Path, model: Model, memory_bytes: int | None = None) -> Ask:
    save_vector(model.body, model.vector, folder / "weights.safetensors")
    ask = asker(Worker(folder, memory_bytes))
    ask(LoadModel(format_body(model.body), str(folder / "weights.safetensors")))
    return ask


def scored(ask: Ask, claim: Claim) -> Scores:
    request, blobs = score_call(claim, SLACK)
    record, reply = ask(request, *blobs)
    assert record.rows == claim.rows
    return open_scores(bytes(reply.blobs[0]), claim.rows)


def test_a_claim_comes_through_the_words(model: Model) -> None:
    claim = Claim((1, 2), (3, 4, 5), SAMPLED, 7, ends=(9,))
    request, blobs = score_call(claim, SLACK)
    assert claim_of(request, tuple(map(bytearray, blobs))) == claim


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_a_worker_scores_what_it_is_given(tmp_path: Path, model: Model, sampling: Sampling) -> None:
    ask = loaded(tmp_path, model)
    tokens = tuple(one.token for one in answered(model, (1, 2, 3), 8, sampling))
    claim = Claim((1, 2, 3), tokens, sampling)
    assert not judge(scored(ask, claim), sampling, TOLERANCES["float32"]).wrong
    ended = replace(claim, tokens=tokens[:5], ends=(tokens[5],))
    assert not judge(scored(ask, ended), sampling, TOLERANCES["float32"], ended=True).wrong
    lie = replace(claim, tokens=(*tokens[:4], tokens[4] ^ 1, *tokens[5:]))
    verdict = judge(scored(ask, lie), sampling, TOLERANCES["float32"])
    assert (verdict.wrong, verdict.tokens) == (True, 5)


def test_what_a_worker_cannot_score_it_refuses(tmp_path: Path, model: Model) -> None:
    with pytest.raises(LocalError, match="no model"):
        asker(Worker(tmp_path))(*_call(Claim((1,), (2,), GREEDY)))
    ask = loaded(tmp_path, model)
    prompt, tokens = blob_of((1, 2)), blob_of((3,))
    usual = Score(1.0, 1.0, 0, 0, 0, 0, SLACK)
    for request, blobs in (
        (usual, (prompt, tokens)),
        (usual, (b"", tokens, b"")),
        (usual, (prompt, b"", b"")),
        (usual, (prompt, blob_of((128,)), b"")),
        (usual, (prompt, blob_of((1,) * 64), b"")),
        (replace(usual, temperature=3.0), (prompt, tokens, b"")),
        (replace(usual, slack=-1.0), (prompt, tokens, b"")),
    ):
        with pytest.raises(LocalError):
            ask(request, *blobs)
    small = loaded(tmp_path, model, RUNTIME_BYTES + model.body.parameter_bytes + (1 << 20))
    with pytest.raises(DoesNotFit):
        small(*_call(Claim((1,), (2,), GREEDY)))
    other = lm(seed=1, template="mlp")
    with pytest.raises(InvalidSpec, match="next_token"):
        loaded(tmp_path, other)(*_call(Claim((1,), (2,), GREEDY)))


def _call(claim: Claim) -> tuple[Score, bytes, bytes, bytes]:
    request, blobs = score_call(claim, SLACK)
    return (request, *blobs)
