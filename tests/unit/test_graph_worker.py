"""Graphs at work: published by an author, served and trained by a worker, and what a worker refuses of them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

import celluler
from celluler.client.calls_models import add_model, model_files
from celluler.engines.config import TrainConfig
from celluler.engines.data import load_dataset
from celluler.engines.graph.measure import check_measured, measured_body
from celluler.engines.load import load_model
from celluler.engines.steps import LocalSteps
from celluler.errors import InvalidSpec, LocalError
from celluler.models.body import parse_body, read_body
from celluler.models.folder import DOCUMENT, WEIGHTS
from celluler.models.graph_body import GraphBody, format_graph_body, idle_biases, parse_graph_body
from celluler.models.memory import RUNTIME_BYTES, DoesNotFit, check_batch, check_training, micro_batch
from celluler.models.weights import load_still, load_vector, save_vector, still_of
from celluler_node.processes.worker import Worker
from celluler_node.processes.worker_words import (
    ApplyRound,
    Evaluate,
    Export,
    LoadModel,
    Predict,
    Replay,
    StartRun,
    TrainRound,
)
from tests.support.graphs import stored
from tests.support.modules import CASES, VOCABULARY

pytestmark = pytest.mark.thorough

RUN = b"r" * 32


class Small(nn.Module):
    """Most of what an export has to take care of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.body = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.register_buffer("scale", torch.arange(4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.norm(self.first(x))) * self.scale + torch.tensor([1.0, 2.0, 3.0, 4.0])
        return x.reshape(x.shape[0], 2, 2).flatten(1)


def body_of(name: str, **objective: Any) -> GraphBody:
    return measured_body(stored(name), objective)


def write(body: GraphBody, module: nn.Module, folder: Path) -> Path:
    """The module's weights, as `celluler.publish` writes them."""
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    moved = [held[tensor.name].detach().reshape(-1) for tensor in body.tensors]
    still = {one.name: held[one.name].detach().reshape(-1).view(torch.uint8).numpy() for one in still_of(body)}
    save_vector(body, torch.cat(moved).numpy(), folder / WEIGHTS, still)
    return folder / WEIGHTS


def start(body: GraphBody, weights: Path, data: Path, **changes: Any) -> StartRun:
    base = StartRun(
        run=RUN,
        spec=format_graph_body(body),
        weights=str(weights),
        data=str(data),
        partition="iid",
        index=0,
        members=1,
        parts=2,
        inner_steps=4,
        batch=8,
        learning_rate=0.05,
        optimizer="sgd",
        outer_learning_rate=0.7,
        outer_momentum=0.4,
        body="graph",
        kept_states=2,
    )
    return replace(base, **changes)


def pictures(folder: Path) -> Path:
    """Two classes, told by where a square is bright."""
    y = np.arange(64, dtype=np.int64) % 5
    x = np.random.default_rng(0).normal(0, 0.1, (64, 3, 16, 16)).astype(np.float32)
    for row, label in enumerate(y):
        x[row, :, 3 * label : 3 * label + 3] += 2
    save_file({"x": x, "y": y}, folder / "data")
    return folder / "data"


def answer(reply: Any) -> Any:
    return np.frombuffer(bytes(reply.blobs[0]), dtype=reply.record.dtype).reshape(reply.record.shape)


def test_a_published_folder_is_the_module(tmp_path: Path) -> None:
    original = Small()
    before = copy.deepcopy(original.state_dict())
    folder = tmp_path / "m"
    written = celluler.publish(original, torch.randn(4, 4), folder, dynamic={"batch": (1, 16)})
    assert all(torch.equal(one, before[name]) for name, one in original.state_dict().items())
    body = parse_body("graph", (folder / DOCUMENT).read_bytes())
    assert body == written
    assert (body.objective.KIND, body.input.shape, body.output, body.batch) == ("regression", (4,), (4,), (1, 16))
    x = np.random.default_rng(0).normal(size=(35, 4)).astype(np.float32)
    told = load_model(body, folder / WEIGHTS).predictor().predict(x)
    with torch.inference_mode():
        assert np.array_equal(told, np.concatenate([original.eval()(torch.from_numpy(x[at])).numpy() for at in
                                                    (slice(0, 16), slice(16, 32), slice(32, 35))]))  # fmt: skip
    again = tmp_path / "again"
    celluler.publish(original, torch.randn(4, 4), again, dynamic={"batch": (1, 16)})
    assert [(folder / name).read_bytes() == (again / name).read_bytes() for name in (DOCUMENT, WEIGHTS)] == [True, True]


def test_a_folder_is_added_as_a_model_with_its_weights(tmp_path: Path) -> None:
    body = body_of("resnet", kind="classification")
    weights = write(body, CASES["resnet"][0](), tmp_path)
    with pytest.raises(LocalError, match=r"no model\.json"):
        model_files(tmp_path, None)
    (tmp_path / DOCUMENT).write_bytes(format_graph_body(body))
    assert model_files(tmp_path, None) == (tmp_path / DOCUMENT, weights)
    assert model_files(tmp_path, "a CID") == (tmp_path / DOCUMENT, "a CID")
    call = add_model("me/resnet:1.0.0", tmp_path / DOCUMENT, "a CID", {})
    assert call.json is not None
    assert (call.json["body"], read_body("graph", call.json["spec"])) == ("graph", body)


def test_members_steps_are_the_modules_own_bit_by_bit(tmp_path: Path) -> None:
    torch.manual_seed(1)
    original, body = CASES["resnet"][0](), body_of("resnet", kind="classification")
    model = load_model(body, write(body, original, tmp_path), micro=8)
    data = load_dataset(body, pictures(tmp_path))
    steps = LocalSteps(body, TrainConfig(RUN, 0, 1, 3, 8, 0.05, "sgd"), data, model.still)
    for number in range(2):
        steps.begin(model.vector, number, 0, None)
        steps.take()
        walked = copy.deepcopy(original).train()
        optimizer = torch.optim.SGD(walked.parameters(), lr=0.05)
        for step in range(3):
            rows = steps.rows(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(walked(data.x[rows]), data.y[rows]).backward()
            optimizer.step()
        held = {**dict(walked.named_parameters()), **dict(walked.named_buffers())}
        expected = torch.cat([held[tensor.name].detach().reshape(-1) for tensor in body.tensors])
        assert torch.equal(torch.from_numpy(steps.vector), expected), number


def test_a_worker_trains_a_graph_and_serves_what_came_of_it(tmp_path: Path) -> None:
    torch.manual_seed(1)
    body = body_of("resnet", kind="classification")
    weights, data = write(body, CASES["resnet"][0](), tmp_path), pictures(tmp_path)
    (tmp_path / "scratch").mkdir()
    worker = Worker(tmp_path / "scratch", 4 << 30)
    ready = worker.start_run(start(body, weights, data), ())
    assert ready.dimension == body.dimension
    before = worker.evaluate(Evaluate(str(data)), ())
    for number in range(6):
        sent = worker.train_round(TrainRound(number, fresh=False), ())
        worker.apply_round(ApplyRound(number, sent.record.exponents), tuple(map(bytearray, sent.blobs)))
        if number == 0:
            again = worker.replay(Replay(0, 0, (0, 1), sent.record.exponents, ()), tuple(map(bytearray, sent.blobs)))
            assert again.same
    after = worker.evaluate(Evaluate(str(data)), ())
    assert after.accuracy > max(0.5, before.accuracy)
    exported = worker.export(Export("trained"), ())
    trained = load_file(exported.path)
    assert trained.keys() == {one.name for one in body.stored}
    assert trained["bn1.num_batches_tracked"] == 0, "what is no part of the vector is as the author published it"
    assert not np.array_equal(trained["bn1.running_mean"], load_file(weights)["bn1.running_mean"])
    server = Worker(tmp_path / "scratch", 4 << 30)
    loaded = server.load_model(LoadModel(format_graph_body(body), exported.path, "graph"), ())
    assert loaded.parameters == body.parameter_count
    x = load_file(data)["x"]
    told = answer(server.predict(Predict("float32", x.shape, "labels"), (bytearray(x.tobytes()),)))
    assert (told == load_file(data)["y"]).mean() == after.accuracy


def test_a_language_model_is_trained_on_one_length_and_asked_at_another(tmp_path: Path) -> None:
    body = body_of("llama", kind="next_token")
    assert (body.input.shape, body.output, body.sequence) == ((32,), (32, VOCABULARY), (2, 32))
    weights = write(body, CASES["llama"][0](), tmp_path)
    tokens = (np.arange(9) + np.arange(40)[:, None]).astype(np.int64) % VOCABULARY
    save_file({"x": tokens}, tmp_path / "text")
    worker = Worker(tmp_path)
    worker.start_run(start(body, weights, tmp_path / "text", optimizer="adam", inner_steps=20), ())
    sent = worker.train_round(TrainRound(0, fresh=False), ())
    worker.apply_round(ApplyRound(0, sent.record.exponents), tuple(map(bytearray, sent.blobs)))
    assert worker.evaluate(Evaluate(str(tmp_path / "text")), ()).loss < sent.record.loss
    worker.load_model(LoadModel(format_graph_body(body), str(weights), "graph"), ())
    for length in (2, 32):
        x = np.zeros((3, length), dtype=np.int64)
        told = answer(worker.predict(Predict("int64", x.shape, "raw"), (bytearray(x.tobytes()),)))
        assert told.shape == (3, length, VOCABULARY)
    for shape in ((3, 33), (3, 1), (1, 4)):
        x = np.zeros(shape, dtype=np.int64)
        with pytest.raises(InvalidSpec, match="input"):
            worker.predict(Predict("int64", shape, "raw"), (bytearray(x.tobytes()),))
    save_file({"x": np.zeros((4, 40), dtype=np.int64)}, tmp_path / "long")
    with pytest.raises(InvalidSpec, match=r"dataset\.x"):
        worker.start_run(start(body, weights, tmp_path / "long"), ())


# --- refusals --------------------------------------------------------------------------------------------------------


def claiming(body: GraphBody, **fields: Any) -> GraphBody:
    return parse_graph_body(json.loads(format_graph_body(body)) | fields)


def test_a_worker_measures_what_a_document_says_before_it_reads_weights(tmp_path: Path) -> None:
    body = body_of("unet", kind="reconstruction")
    none = tmp_path / "none"
    with pytest.raises(InvalidSpec, match="the budget is 200"):
        load_model(claiming(body, activation_bytes=100), none)
    regression = body_of("unet", kind="regression")
    with pytest.raises(InvalidSpec, match="output: must be float32"):
        load_model(claiming(regression, output=[1, 8, 9]), none)
    with pytest.raises(InvalidSpec, match="cannot be read"):
        load_model(body, none)


def test_a_model_that_does_not_fit_is_told_before_it_is_loaded(tmp_path: Path) -> None:
    body = body_of("llama", kind="next_token")
    with pytest.raises(DoesNotFit, match="memory") as refused:
        load_model(body, tmp_path / "none", memory_bytes=RUNTIME_BYTES)
    assert refused.value.needed_bytes > refused.value.memory_bytes == RUNTIME_BYTES
    with pytest.raises(DoesNotFit, match="training"):
        load_model(body, tmp_path / "none", memory_bytes=RUNTIME_BYTES + 2 * body.activation_bytes, micro=2)


def test_a_batch_is_cut_to_what_a_graph_takes() -> None:
    free, whole = body_of("llama", kind="next_token"), body_of("resnet", kind="classification")
    assert [micro_batch(free, batch, None) for batch in (8, 64, 100, 1000)] == [8, 64, 64, 64]
    assert micro_batch(whole, 100, 1) == 100
    check_batch(free, 128, 64)
    for body, batch, micro in ((whole, 100, 100), (free, 65, 64), (free, 1, 1)):
        with pytest.raises(InvalidSpec, match=r"train\.batch"):
            check_batch(body, batch, micro)
    check_measured(free, 64)
    check_training(free, 1000 - 1000 % 64)
    with pytest.raises(InvalidSpec, match=r"train\.batch"):
        check_training(whole, 65)


def test_biases_before_a_norm_over_the_batch_are_known() -> None:
    assert idle_biases(body_of("cnn", kind="classification")) == {"first.bias"}
    assert idle_biases(body_of("resnet", kind="classification")) == frozenset()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_parameters_that_are_not_float32_are_served_and_not_trained(tmp_path: Path, precision: str) -> None:
    document = json.loads(format_graph_body(body_of("mlp", kind="regression")))
    tensors = document["graph"]["tensors"]
    tensors[0]["dtype"] = precision
    weight = document["graph"]["nodes"][0]
    document["graph"]["nodes"].insert(0, {"name": "wide", "op": "to.dtype",
                                          "args": {"self": weight["args"]["weight"], "dtype": "float32"}})  # fmt: skip
    weight["args"]["weight"] = "wide"
    body = parse_graph_body(document | {"activation_bytes": document["activation_bytes"] + 2048})
    assert (body.dtype, body.tensors[0].name) == ("mixed", tensors[1]["name"])
    held = dict(CASES["mlp"][0]().named_parameters())
    still = {tensors[0]["name"]: held[tensors[0]["name"]].detach().to(getattr(torch, precision)).reshape(-1)
             .view(torch.uint8).numpy()}  # fmt: skip
    moved = torch.cat([held[tensor.name].detach().reshape(-1) for tensor in body.tensors])
    save_vector(body, moved.numpy(), tmp_path / "w", still)
    assert load_model(body, tmp_path / "w").predictor().predict(np.ones((2, 8), np.float32)).shape == (2, 4)
    with pytest.raises(InvalidSpec, match="members train float32"):
        load_model(body, tmp_path / "w", micro=8)
    still[tensors[0]["name"]][:] = 255
    save_vector(body, moved.numpy(), tmp_path / "w", still)
    with pytest.raises(InvalidSpec, match="not finite"):
        load_model(body, tmp_path / "w")


def test_a_weights_file_holds_exactly_the_tensors_of_the_graph(tmp_path: Path) -> None:
    body = body_of("cnn", kind="classification")
    path = write(body, CASES["cnn"][0](), tmp_path)
    good = load_file(path)
    save_file(good, path)  # in another order
    assert np.array_equal(load_vector(body, path), np.concatenate([good[one.name].ravel() for one in body.tensors]))
    assert load_still(body, path)["norm.num_batches_tracked"].tobytes() == bytes(8)
    name = "head.weight"
    for change in ({name: good[name].T.copy()}, {name: good[name].astype(np.float64)}, {"more": good[name]},
                   {name: good[name] * np.nan}, {"norm.num_batches_tracked": np.zeros((), np.int32)}):  # fmt: skip
        save_file(good | change, path)
        with pytest.raises(InvalidSpec, match="weights"):
            load_vector(body, path)


def test_cells_without_states_or_weights_are_refused() -> None:
    """The operations themselves do not count them: with too few of either they read memory that is not theirs."""
    document = json.loads(format_graph_body(body_of("lstm", kind="next_token")))
    nodes = document["graph"]["nodes"]
    (at,) = (place for place, node in enumerate(nodes) if node["op"] == "lstm.input")
    given = nodes[at]["args"]
    for change in ({"num_layers": 9}, {"params": given["params"][:-1]}, {"hx": given["hx"][:1]},
                   {"bidirectional": True}):  # fmt: skip
        nodes[at]["args"] = given | change
        with pytest.raises(InvalidSpec, match=r"cells|states"):
            check_measured(parse_graph_body(document))
    nodes[at]["args"] = given
    check_measured(parse_graph_body(document))
    nodes[at - 1]["args"]["size"][0] = 7
    with pytest.raises(InvalidSpec, match="states"):
        check_measured(parse_graph_body(document))
