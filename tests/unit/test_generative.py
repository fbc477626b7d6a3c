"""Models that make samples, give embeddings or write: each learns from real data, and tells what it has learned."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from celluler.aggregation.q16 import decode_parts, encode_parts
from celluler.engines.config import TrainConfig
from celluler.engines.data import Dataset
from celluler.engines.objectives_wired import energy_distance
from celluler.engines.predict import Predictor
from celluler.engines.steps import LocalSteps
from celluler.engines.train import Trainer
from celluler.errors import InvalidSpec
from celluler.models.spec import Architecture, format_spec, parse_spec
from celluler.models.templates import TEMPLATES
from celluler.models.weights import initial_vector, initial_weights
from celluler_node.processes.worker import Worker
from celluler_node.processes.worker_words import Evaluate, Evaluated, LoadModel, Predict
from tests.support.specs import digits, save_tensors

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
Floats = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def learned(body: Architecture, x: Tensor, y: Tensor | None = None, **changes: Any) -> tuple[Predictor, Predictor]:
    """The model before and after some local steps."""
    given: dict[str, Any] = {"inner_steps": 200, "batch": 32, "learning_rate": 0.01} | changes
    steps = LocalSteps(body, TrainConfig(bytes(32), 0, 1, **given), Dataset(x, x if y is None else y))
    start = initial_vector(body, bytes(32))
    steps.begin(start, 0, 0, None)
    steps.take()
    return Predictor(body, torch.from_numpy(start)), Predictor(body, torch.from_numpy(steps.vector.copy()))


def images(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(those to learn from, those held out)"""
    x = torch.from_numpy(digits()[0]).reshape(-1, *shape)
    return x[:-360], x[-360:]


@functools.cache
def trained(name: str) -> tuple[Predictor, Predictor]:
    changes: dict[str, dict[str, Any]] = {
        "vae": {"inner_steps": 300},
        "gan": {"learning_rate": 0.3, "optimizer": "sgd", "inner_steps": 300},
        "diffusion": {"inner_steps": 140, "batch": 16},
        "contrastive": {"inner_steps": 60, "learning_rate": 0.003},
    }
    body = parse_spec(TEMPLATES[name].document)
    return learned(body, images(body.input.shape)[0], **changes[name])


@pytest.mark.parametrize("name", ["vae", "gan", "diffusion"])
def test_samples_of_learned_digits_are_like_digits_and_of_a_seed_always_the_same(name: str) -> None:
    before, after = trained(name)
    _, held_out = images(after.architecture.input.shape)
    seeds = np.arange(200)
    samples = torch.from_numpy(after.predict(seeds, "sample"))
    assert samples.shape == (200, *after.architecture.input.shape)
    distance = energy_distance(held_out, samples)
    pixels = held_out.flatten(1)
    shuffled = pixels[:200].gather(1, torch.rand(200, 64, generator=torch.Generator().manual_seed(0)).argsort(1))
    mean = pixels.mean(dim=0, keepdim=True).expand(200, -1)
    untrained = torch.from_numpy(before.predict(seeds, "sample"))
    for other in (torch.rand(200, 64), shuffled, mean, untrained.flatten(1)):
        assert distance < energy_distance(pixels, other) / 3
    assert float(samples.std(dim=0).mean()) > float(held_out.std(dim=0).mean()) / 2, "all are the same sample"
    assert np.array_equal(after.predict(seeds, "sample"), samples.numpy())
    turned = after.predict(seeds[::-1].copy(), "sample")[::-1]
    assert np.allclose(turned, samples.numpy(), atol=1e-4)
    assert not np.allclose(after.predict(seeds + 1000, "sample"), samples.numpy(), atol=0.1)


def test_a_variational_autoencoder_raises_its_bound_and_gives_back_what_it_saw() -> None:
    before, after = trained("vae")
    _, held_out = images((64,))
    data = Dataset(held_out, held_out)
    one, other = before.evaluate(data), after.evaluate(data)
    assert other.loss < one.loss / 5
    assert (other.metric, other.accuracy, other.perplexity) == ("elbo", None, None)
    assert other.value > one.value
    assert after.evaluate(data) == other
    x = held_out.numpy()
    again, latent = after.predict(x, "reconstruction"), after.predict(x, "embedding")
    assert np.array_equal(again, after.predict(x))
    assert latent.shape == (360, 8)
    assert np.square(again - x).mean() < np.square(x.mean(axis=0) - x).mean() / 1.5
    assert 0.3 < float(latent.std()) < 3, "what it makes of digits is near what samples are made of"


def test_a_generator_is_judged_by_how_far_its_samples_are_from_the_data() -> None:
    before, after = trained("gan")
    _, held_out = images((64,))
    one, other = (model.evaluate(Dataset(held_out, held_out)) for model in (before, after))
    assert other.metric == "energy_distance"
    assert other.value == other.loss < one.loss / 5


def test_a_generator_learns_in_rounds_too_where_momentum_would_turn_it_in_circles() -> None:
    body = parse_spec(TEMPLATES["gan"].document)
    x, held_out = images((64,))
    config = TrainConfig(bytes(32), 0, 2, inner_steps=5, batch=32, learning_rate=0.2, optimizer="sgd")
    start, data = initial_vector(body, bytes(32)), Dataset(x, x)
    members = [Trainer(body, start, data, replace(config, index=index)) for index in (0, 1)]
    before = members[0].evaluate(Dataset(held_out, held_out)).value
    for number in range(40):
        wires = []
        for member in members:
            wire = decode_parts(*encode_parts(member.train(number)[0], 4))
            member.sent(number, wire)
            wires.append(wire)
        for member in members:
            member.apply(number, np.mean(wires, axis=0, dtype=np.float32))
    assert members[0].state_root() == members[1].state_root()
    assert members[0].evaluate(Dataset(held_out, held_out)).value < before / 4


def test_a_denoiser_tells_noise_from_digits() -> None:
    before, after = trained("diffusion")
    _, held_out = images((1, 8, 8))
    one, other = (model.evaluate(Dataset(held_out, held_out)) for model in (before, after))
    knows_nothing = (1 + float(held_out.square().mean())) / 2
    assert other.metric == "denoising_error"
    assert other.value == other.loss < knows_nothing / 1.7
    assert one.loss > knows_nothing


def nearest_is_alike(told: Floats, asked: Floats) -> float:
    """Share of the held-out digits whose nearest among the others, by the cosine, is the same digit."""
    known, labels = told / np.linalg.norm(told, axis=1, keepdims=True), digits()[1]
    asked = asked / np.linalg.norm(asked, axis=1, keepdims=True)
    return float((labels[:-360][(asked @ known.T).argmax(axis=1)] == labels[-360:]).mean())


def test_embeddings_learned_without_labels_find_what_hides_behind_missing_pixels() -> None:
    before, after = trained("contrastive")
    learning, held_out = images((1, 8, 8))
    data = Dataset(held_out, held_out)
    one, other = before.evaluate(data), after.evaluate(data)
    assert other.loss < 0.7 * one.loss
    assert (other.metric, other.accuracy) == ("matched", None)
    assert other.value > 2 * one.value
    assert after.predict(held_out.numpy(), "embedding").shape == (360, 32)
    hidden = held_out.numpy() * (np.random.default_rng(0).random(held_out.shape) > 0.4).astype(np.float32)
    shares = [
        nearest_is_alike(*(model.predict(one, "embedding") for one in (learning.numpy(), hidden)))
        for model in (before, after)
    ]
    assert shares[1] > shares[0] + 0.05
    assert shares[1] > 0.5


@functools.cache
def documentation(width: int) -> Tensor:
    """Every eighth window of the pages that explain: (n, width) int64."""
    pages = [path.read_text("utf-8") for path in sorted((ROOT / "docs" / "explanation").glob("*.md"))[:3]]
    codes = np.frombuffer("\n".join(pages).encode("ascii", "ignore"), dtype=np.uint8)
    return torch.from_numpy(np.lib.stride_tricks.sliding_window_view(codes, width)[::8].astype(np.int64))


def test_a_language_model_learns_to_write_like_the_documentation() -> None:
    body = parse_spec(TEMPLATES["transformer-lm"].document)
    text = documentation(64)
    held_out = text[-64:]
    before, after = learned(body, text[:-128], inner_steps=60, batch=8)
    one, other = (model.evaluate(Dataset(held_out, held_out)) for model in (before, after))
    assert other.metric == "perplexity"
    assert other.perplexity == other.value == pytest.approx(np.exp(other.loss))
    counts = torch.bincount(text[:-128].flatten(), minlength=128) + 1
    frequencies = torch.log(counts / counts.sum())
    assert other.value < one.value / 5
    assert other.value < float(torch.exp(-frequencies[held_out].mean())) / 1.4, (
        "no better than by the letters' frequency"
    )
    logits = after.predict(held_out.numpy(), "next_token")
    assert logits.shape == (64, 128)
    assert np.array_equal(logits, after.predict(held_out.numpy())[:, -1])
    turned = held_out.numpy().copy()
    turned[:, :-1] = turned[:, -2::-1]
    assert not np.allclose(after.predict(turned, "next_token"), logits, atol=0.1)


def test_texts_of_one_kind_have_embeddings_near_each_other() -> None:
    body = parse_spec(TEMPLATES["text-encoder"].document)
    code = np.frombuffer((ROOT / "celluler" / "wire.py").read_bytes(), dtype=np.uint8) % 128
    windows = torch.from_numpy(np.lib.stride_tricks.sliding_window_view(code, 64)[::8].astype(np.int64))
    pages = documentation(64)[: len(windows)]
    x = torch.cat((pages, windows[: len(pages)]))
    y = torch.arange(len(x)) // len(pages)
    _, after = learned(body, x, y, inner_steps=80, batch=16, learning_rate=0.005)
    told = after.evaluate(Dataset(x[::7], y[::7]))
    assert told.accuracy is not None
    assert told.metric == "accuracy"
    assert told.value == told.accuracy > 0.8
    embedded = after.predict(x[::7].numpy(), "embedding")
    head = [after.predict(x[::7].numpy())[:, place] for place in (0, 1)]
    assert embedded.shape == (len(x[::7]), 32)
    centres = [embedded[(y[::7] == place).numpy()].mean(axis=0) for place in (0, 1)]
    nearer = np.square(embedded - centres[1]).sum(axis=1) < np.square(embedded - centres[0]).sum(axis=1)
    assert (nearer == (head[1] > head[0])).mean() > 0.8


def test_a_worker_makes_samples_and_says_by_what_it_judges(tmp_path: Path) -> None:
    body = parse_spec(TEMPLATES["diffusion"].document)
    initial_weights(body, bytes(32), tmp_path / "weights")
    worker = Worker(tmp_path)
    worker.load_model(LoadModel(format_spec(body), str(tmp_path / "weights")), ())
    seeds = bytearray(np.array([3, -4], dtype="<i8").tobytes())
    reply = worker.predict(Predict("int64", (2,), "sample"), (seeds,))
    assert (reply.record.dtype, reply.record.shape) == ("float32", (2, 1, 8, 8))
    assert len(reply.blobs[0]) == 2 * 64 * 4
    with pytest.raises(InvalidSpec, match="gives sample"):
        worker.predict(Predict("int64", (2,), "raw"), (seeds,))
    data = save_tensors(tmp_path / "data.safetensors", {"x": digits()[0][:32].reshape(-1, 1, 8, 8)})
    told = worker.evaluate(Evaluate(str(data)), ())
    assert isinstance(told, Evaluated)
    assert (told.metric, told.value, told.accuracy) == ("denoising_error", told.loss, None)
