"""Models of ours as ONNX, held against onnxruntime; and what comes back of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import celluler
from celluler.engines.formats.onnx_export import WRITES, export_onnx, onnx_of
from celluler.engines.formats.onnx_import import import_onnx, runtime
from celluler.engines.graph.export import export_graph
from celluler.engines.load import load_model
from celluler.errors import InvalidSpec
from celluler.formats.importing import Wishes
from celluler.models.body import Body, parse_body
from celluler.models.graph_ops import OPERATIONS
from celluler.models.spec import parse_spec
from celluler.models.templates import fill
from celluler.models.weights import initial_weights

pytestmark = pytest.mark.thorough

TOLERANCE = 1e-5
"""Of the largest answer."""
X = torch.linspace(-3, 3, 3 * 4 * 6 * 6).reshape(3, 4, 6, 6)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Of(nn.Module):
    """A function with a weight beside it."""

    def __init__(self, function: Callable[..., Tensor], *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.linspace(-1, 1, max(1, int(np.prod(shape)))).reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "functions": (
        lambda x, w: sum(
            one(x) for one in (
                torch.abs, torch.neg, torch.sign, torch.exp, torch.expm1, torch.sin, torch.cos, torch.erf, torch.floor,
                torch.ceil, torch.round, torch.relu, torch.sigmoid, torch.tanh, functional.relu6, functional.leaky_relu,
                functional.elu, functional.celu, functional.selu, functional.gelu, functional.silu, functional.mish,
                functional.softplus, functional.logsigmoid, functional.hardtanh, functional.hardswish,
                functional.hardsigmoid, torch.square,
                lambda y: functional.gelu(y, approximate="tanh"),
            )
        ) * w, (1,),
    ),
    "positive": (
        lambda x, w: torch.log(y := x.abs() + 2 + w) + y.log1p() + y.sqrt() + y.rsqrt() + y.reciprocal(), (1,),
    ),
    "prelu": (functional.prelu, (4,)),
    "glu": (lambda x, w: functional.glu(x, dim=1) * w, (1,)),
    "softmax": (lambda x, w: torch.softmax(x, 1) + torch.log_softmax(x * w, -1), (6,)),
    "arithmetic": (
        lambda x, w: (2 - torch.add(x, w, alpha=3)) * w / (w.square() + 1) - torch.rsub(x, 1.5, alpha=2) + x / 2 - 1,
        (4, 1, 6),
    ),
    "powers": (lambda x, w: x**2 + x.abs() ** 1.5 + 2.0 ** (x * w) + (x.abs() + 1) ** w, (6,)),
    "rounding": (lambda x, w: torch.div(x * w, 0.7, rounding_mode="floor"), (6,)),
    "bounds": (lambda x, w: x.clamp(-1, 2) + x.clamp_min(0.5) + x.clamp_max(0.1) + torch.minimum(x, w), (6,)),
    "maximum": (torch.maximum, (6,)),
    "products": (
        lambda x, w: torch.bmm(x[:, 0], x[:, 1]) + x[:, 2] @ w + torch.baddbmm(x[:, 3], x[:, 0], x[:, 1], alpha=2),
        (6, 6),
    ),
    "matrices": (
        lambda x, w: torch.addmm(w[0], x[:, 0, 0].mm(w), w, beta=2) + torch.outer(x[:, 0, 0, 0], w[1]), (6, 6),
    ),
    "einsum": (lambda x, w: torch.einsum("bchw,cd->bdh", x, w), (4, 5)),
    "reductions": (
        lambda x, w: (
            x.mean((2, 3)) + x.sum((2, 3)) + x.amax((2, 3)) + x.amin((2, 3)) + torch.logsumexp(x, (2, 3))
            + torch.linalg.vector_norm(x, dim=(2, 3)) + x.var((2, 3), correction=1)
            + x.std((2, 3), correction=0) + x[:, :, 0].max(2)[0]
            + x[:, :, 0].min(2)[0] + x[:, :, 0].argmax(2) + x[:, :, 0].cumsum(2)[:, :, 3]
        ) * w, (4,),
    ),
    "comparisons": (
        lambda x, w: torch.where(torch.logical_or(torch.logical_or(x > w, x == 1), ~(x >= 0)), x, -1.0)
        + torch.where(torch.logical_and(x <= w, torch.logical_not(x != 0.5)), 1.0, x).masked_fill(x > w, 0.25), (6,),
    ),
    "shapes": (
        lambda x, w: torch.cat((
            x.permute(0, 2, 3, 1).flatten(1), x.transpose(1, 2).reshape(x.shape[0], -1),
            x.unflatten(1, (2, 2)).flatten(1), x.movedim((1, 2), (2, 1)).flatten(1, 2).flatten(1),
            x.unsqueeze(1).squeeze(1).flatten(1), x[:, 1:3, ::2].flatten(1), x.select(1, 2).flatten(1),
            x.narrow(1, 1, 2).flatten(1), x.flip(1).flatten(1), x.repeat(1, 2, 1, 1).flatten(1),
            x[:, :1].expand(-1, 3, -1, -1).flatten(1), x.repeat_interleave(2, dim=1).flatten(1),
            torch.stack(x.unbind(1)[:2], 1).flatten(1), x.chunk(2, 1)[1].flatten(1), x.split(3, 1)[1].flatten(1),
            x.tril().flatten(1), x.triu(1).flatten(1), x[:, :1].expand_as(x).flatten(1),
        ), 1) * w, (1,),
    ),
    "choosing": (
        lambda x, w: x.gather(3, (x > 0).long()).sum(3) + x.index_select(2, torch.tensor([1, 0, 2, 5, 4, 3])).sum(3)
        + x[:, :, torch.tensor([3, 2, 1, 0, 4, 5])].sum(3) * w, (6,),
    ),
    "new": (
        lambda x, w: x + torch.zeros(6) + torch.ones_like(x) + torch.full((6,), 2.0) + torch.arange(6)
        + torch.arange(1, 13, 2).to(torch.float32) + x.new_ones(6) + torch.zeros_like(x) + torch.full_like(x, 3) * w,
        (6,),
    ),
    "convolutions": (
        lambda x, w: functional.conv_transpose2d(
            functional.conv2d(x, w, padding="same"), w, stride=2, padding=1, output_padding=1
        ) + functional.conv1d(x[:, :, 0], w[:, :, 0], padding=1).mean(), (4, 4, 3, 3),
    ),
    "norms": (
        lambda x, w: functional.layer_norm(x, (6,), w) + functional.group_norm(x, 2) + functional.instance_norm(x)
        + functional.rms_norm(x, (6,), w, 1e-6), (6,),
    ),
    "pools": (
        lambda x, w: (functional.max_pool2d(x, 3, 2, 1, ceil_mode=True).sum((2, 3))
        + functional.avg_pool2d(x, 3, 2, 1).sum((2, 3)) + functional.avg_pool2d(x, 2, padding=1,
        count_include_pad=False).sum((2, 3)) + functional.adaptive_avg_pool2d(x, 3).sum((2, 3))
        + functional.max_pool1d(x[:, :, 0], 2).sum(2) + functional.adaptive_avg_pool2d(x, 1).flatten(1)) * w, (4,),
    ),
    "resizing": (
        lambda x, w: functional.interpolate(x, scale_factor=2)[:, :, 1:-1, 1:-1] * w
        + functional.interpolate(x, (10, 10), mode="bilinear") + functional.pad(x, (1, 3, 2, 2), value=0.5)
        + functional.pad(x, (1, 3, 2, 2), mode="reflect") + functional.pad(x, (2, 2, 2, 2), mode="replicate"), (1,),
    ),
    "pixels": (lambda x, w: functional.pixel_shuffle(x, 2) * w, (1,)),
    "attention": (
        lambda x, w: functional.scaled_dot_product_attention(x, x * w, x, is_causal=True)
        + functional.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(6, 6, dtype=torch.bool).tril(1))
        + functional.scaled_dot_product_attention(x, x, x, attn_mask=w * torch.ones(6, 6)), (6,),
    ),
}  # fmt: skip


class Remembering(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(6, 5, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rnn(x[:, 0])[0]
        return out


def check_module(module: nn.Module, folder: Path) -> set[str]:
    """Exports a module with a varying batch, and compares; the operations that it was made of."""
    exported = export_graph(module, (X,), dynamic={"batch": (1, 64)}, compare=False)
    graph = exported.module().eval()
    path = folder / "m.onnx"
    path.write_bytes(onnx_of(graph).SerializeToString())
    import onnxruntime  # noqa: PLC0415

    session = runtime(onnxruntime, path)
    for x in (X, X[:1]):
        with torch.no_grad():
            expected = module.eval()(x).numpy()
        got = session.run(None, {"in0": x.numpy()})[0]
        assert got.shape == expected.shape
        assert np.allclose(got, expected, rtol=1e-4, atol=TOLERANCE * max(1.0, np.abs(expected).max()))
    return {node.op for node in exported.graph.nodes}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations_answer_by_onnxruntime_as_by_torch(name: str, tmp_path: Path) -> None:
    function, shape = FUNCTIONS[name]
    check_module(Of(function, *shape), tmp_path)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_ones_answer_the_same(kind: type[nn.RNNBase], tmp_path: Path) -> None:
    assert f"{kind.__name__.lower()}.input" in check_module(Remembering(kind), tmp_path)


def test_only_operations_that_a_graph_may_hold_are_written() -> None:
    assert not WRITES.keys() - OPERATIONS.keys()


# --- whole models ----------------------------------------------------------------------------------------------------


def of_template(name: str, folder: Path) -> tuple[Body, Path]:
    document = fill(name, ["input.shape=[8]", "layers[1].times=1"] if name == "transformer-lm" else [])
    body = parse_spec(document)
    initial_weights(body, b"s" * 32, folder / "weights.safetensors")
    return body, folder / "weights.safetensors"


@pytest.mark.parametrize("name", ["cnn", "lstm-forecast", "transformer-lm", "vae"])
def test_a_template_as_onnx_answers_the_same(name: str, tmp_path: Path) -> None:
    body, weights = of_template(name, tmp_path)
    deviation = export_onnx(body, weights, tmp_path / "m.onnx")
    assert deviation is not None
    assert deviation < TOLERANCE
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)


@pytest.mark.parametrize("name", ["cnn"])
def test_what_went_out_as_onnx_comes_back_as_a_graph_that_answers_the_same(name: str, tmp_path: Path) -> None:
    body, weights = of_template(name, tmp_path)
    export_onnx(body, weights, tmp_path / "m.onnx")
    imported, again, deviation = import_onnx(tmp_path / "m.onnx", Wishes(objective=body.objective.KIND))
    assert deviation is not None
    assert deviation < TOLERANCE
    assert again.objective == body.objective
    x = np.zeros((2, *body.input.shape), body.input.dtype) + 1
    (tmp_path / "back").mkdir()
    document, held = imported.write(tmp_path / "back")
    got = load_model(parse_body("graph", document.read_bytes()), held).predictor().predict(x)
    expected = load_model(body, weights).predictor().predict(x)
    assert np.abs(got - expected).max() < TOLERANCE * max(1.0, np.abs(expected).max())


class Joined(nn.Module):
    """Names its batch: a shape for which a number must not be written."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x.reshape(x.shape[0] * x.shape[1], x.shape[2])).reshape(x.shape)


def test_a_batch_that_varies_by_one_varies_in_onnx_too(tmp_path: Path) -> None:
    celluler.publish(Joined(), torch.randn(2, 6, 4), tmp_path, dynamic={"batch": (2, 3)})
    body = parse_body("graph", (tmp_path / "model.json").read_bytes())
    assert export_onnx(body, tmp_path / "weights.safetensors", tmp_path / "m.onnx") == 0


def test_what_draws_at_random_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="randn_like"):
        check_module(Of(lambda x, w: x + torch.randn_like(x) * w, 1), tmp_path)


def test_what_answers_by_samples_is_not_written(tmp_path: Path) -> None:
    body, weights = of_template("gan", tmp_path)
    with pytest.raises(InvalidSpec, match="drawn at random"):
        export_onnx(body, weights, tmp_path / "m.onnx")
