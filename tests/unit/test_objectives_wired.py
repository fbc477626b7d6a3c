"""Objectives that join several nets or draw at random: what a document must say; work that is done again the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from torch import Tensor, nn

from celluler.engines.build import build, idle_biases, net_of, views_of
from celluler.engines.config import PRECISIONS, TrainConfig
from celluler.engines.data import Dataset
from celluler.engines.draws import Draws
from celluler.engines.objectives_wired import Run, constant_of, contrast, denoise, energy_distance, evidence
from celluler.engines.steps import LocalSteps, Vector
from celluler.engines.train import Trainer
from celluler.errors import InvalidSpec, LocalError
from celluler.models.calls import check_call, outputs_of
from celluler.models.interface import read_interface
from celluler.models.layers.elements import FUNCTIONS
from celluler.models.manifest import describe_model
from celluler.models.memory import micro_batch
from celluler.models.objectives import Contrastive, Denoising, Variational
from celluler.models.spec import Architecture, format_spec, parse_spec
from celluler.models.templates import TEMPLATES
from celluler.models.weights import initial_vector
from tests.support.specs import TINY, dense, digits, regression

pytestmark = pytest.mark.thorough

WIRED = ("vae", "gan", "diffusion", "contrastive")
RUN = b"r" * 32
CONFIG = TrainConfig(RUN, index=0, members=2, inner_steps=3, batch=8, learning_rate=0.05)
STEP: dict[str, Any] = {"kind": "timestep", "width": 4}
NORM: dict[str, Any] = {"kind": "batch_norm"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def document(name: str, **changes: Any) -> dict[str, Any]:
    """A template with a net, or a field of the objective, replaced."""
    found = copy.deepcopy(TEMPLATES[name].document)
    for key, value in changes.items():
        if key in found.get("nets", ()):
            found["nets"][key] = value
        elif key in ("nets", "layers", "input"):
            found[key] = value
        else:
            found["objective"][key] = value
    return found


def architecture(name: str) -> Architecture:
    return parse_spec(TEMPLATES[name].document)


def samples(body: Architecture) -> Dataset:
    x = torch.from_numpy(digits()[0][:256]).reshape(-1, *body.input.shape)
    return Dataset(x, x)


# --- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "path"),
    [
        (document("vae", encoder=[dense(15)]), "nets.encoder"),
        (document("vae", decoder=[dense(63)]), "nets.decoder"),
        (document("vae", encoder=[dense(16), {"kind": "dense", "width": 0}]), "nets.encoder[1].width"),
        (document("vae", encoder=[{"kind": "residual", "layers": [dense(3)]}]), "nets.encoder[0]"),
        (document("vae", encoder=[{"kind": "residual", "layers": [{"kind": "odd"}]}]),
         "nets.encoder[0].layers[0].kind"),
        (document("vae", encoder=[]), "nets.encoder"),
        (document("vae", latent=0), "objective.latent"),
        (document("vae", deviation=0), "objective.deviation"),
        (document("vae", latent=1 << 20, decoder=[dense(64)]), "nets.encoder"),
        (document("vae", layers=[dense(64)]), "nets"),
        (document("vae", nets={"encoder": [dense(16)]}), "nets"),
        (document("vae", nets={"coder": [dense(16)]}), "nets.coder"),
        (document("vae", nets=[dense(16)]), "nets"),
        (document("vae", kind="adversarial"), "objective.deviation"),
        (document("gan", generator=[dense(63)]), "nets.generator"),
        (document("gan", discriminator=[dense(2)]), "nets.discriminator"),
        (document("gan", discriminator=[STEP, dense(1)]), "nets.discriminator[0]"),
        (document("gan", kind="classification"), "objective.latent"),
        (document("gan", input={"dtype": "int64", "shape": [64]}), "input.dtype"),
        (document("diffusion", layers=[{"kind": "conv2d", "channels": 1, "kernel": 1}]), "objective.kind"),
        (document("diffusion", layers=[STEP, {"kind": "flatten"}]), "layers"),
        (document("diffusion", layers=[{**STEP, "width": 3}]), "layers[0].width"),
        (document("diffusion", steps=1), "objective.steps"),
        (document("contrastive", encoder=[{"kind": "activation", "function": "relu"}]), "nets.encoder"),
        (document("contrastive", projection=[{"kind": "reshape", "shape": [2, 16]}]), "nets.projection"),
        (document("contrastive", hidden=0), "objective.hidden"),
        (regression(dense(8), STEP), "layers[1]"),
        (TINY | {"objective": {"kind": "vae", "latent": 1}}, "layers"),
        ({key: value for key, value in document("vae").items() if key != "nets"}, "layers"),
    ],
)  # fmt: skip
def test_nets_that_do_not_fit_their_objective_are_refused_with_the_place(found: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(found)
    assert caught.value.path == path


def test_a_latent_that_no_budget_holds_is_refused_before_anything_is_made() -> None:
    huge = document("gan", latent=1 << 20, generator=[{"kind": "repeat", "times": 1024, "layers": [dense(1 << 20)]}])
    with pytest.raises(InvalidSpec, match="budget"):
        parse_spec(huge)


@pytest.mark.parametrize("name", [*WIRED, "text-encoder"])
def test_what_is_counted_of_nets_is_what_torch_builds(name: str) -> None:
    body = architecture(name)
    assert parse_spec(format_spec(body)) == body
    module = build(body, torch.zeros(body.dimension))
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == {
        tensor.name: tensor.shape for tensor in body.tensors
    }
    assert sum(value.numel() for value in module.parameters()) == body.parameter_count
    manifest = describe_model("toy", "1.0.0", format_spec(body), bytes(32), created_s=0)
    assert (manifest.task, manifest.output.shape) == (body.objective.KIND, body.output)


def test_nets_stand_in_the_vector_in_the_order_of_their_objective() -> None:
    turned = document("vae")
    turned["nets"] = dict(reversed(turned["nets"].items()))
    body = parse_spec(turned)
    assert body == architecture("vae")
    assert [tensor.name.partition(".")[0] for tensor in body.tensors] == ["encoder"] * 4 + ["decoder"] * 4


def test_a_step_is_added_to_each_channel_by_two_layers_of_its_features() -> None:
    body = parse_spec(document("diffusion", layers=[STEP]))
    vector = torch.from_numpy(initial_vector(body, bytes(32))).uniform_(generator=torch.Generator().manual_seed(0))
    views = views_of(body, vector)
    x, time = torch.zeros(2, 1, 8, 8), torch.tensor([0.25, 1.0])
    out = build(body, vector)(x, time)
    for row, share in enumerate((0.25, 1.0)):
        angles = [1000 * share * frequency for frequency in (1.0, 0.01)]
        features = torch.tensor([math.cos(one) for one in angles] + [math.sin(one) for one in angles])
        hidden = nn.functional.silu(views["0.up.weight"] @ features + views["0.up.bias"])
        added = views["0.down.weight"] @ hidden + views["0.down.bias"]
        assert torch.allclose(out[row], added.expand(1, 8, 8), atol=1e-5)


def test_what_a_norm_takes_out_of_a_step_again_stays_where_it_is() -> None:
    conv = {"kind": "conv2d", "channels": 4, "kernel": 1}
    groups = {"kind": "group_norm", "groups": 2}
    body = parse_spec(document("diffusion", layers=[conv, STEP, NORM, conv, STEP, groups, conv | {"channels": 1}]))
    assert idle_biases(body) == {"0.bias", "1.down.bias"}


# --- what may be asked -----------------------------------------------------------------------------------------------


def test_each_model_says_what_it_gives() -> None:
    given = {name: outputs_of(architecture(name)) for name in (*WIRED, "text-encoder", "transformer-lm", "mlp")}
    assert {name: list(outputs) for name, outputs in given.items()} == {
        "vae": ["raw", "reconstruction", "sample", "embedding"],
        "gan": ["sample"],
        "diffusion": ["sample"],
        "contrastive": ["raw", "embedding"],
        "text-encoder": ["raw", "probabilities", "labels", "embedding"],
        "transformer-lm": ["raw", "next_token"],
        "mlp": ["raw", "probabilities", "labels"],
    }
    assert given["text-encoder"]["embedding"] == ("float32", (32,))
    assert read_interface(architecture("vae")).answer(3, "embedding") == ("float32", (3, 8), 96)
    assert read_interface(architecture("diffusion")).answer(2, "sample") == ("float32", (2, 1, 8, 8), 512)


def test_a_sample_is_asked_for_by_its_seed() -> None:
    check_call(architecture("gan"), "int64", (5,), "sample")
    for dtype, shape, output, path in (
        ("float32", (5,), "sample", "input.dtype"),
        ("int64", (5, 64), "sample", "input.shape"),
        ("int64", (0,), "sample", "input.shape"),
        ("float32", (5, 64), "raw", "output"),
    ):
        with pytest.raises(InvalidSpec) as caught:
            check_call(architecture("gan"), dtype, shape, output)
        assert caught.value.path == path
    with pytest.raises(InvalidSpec, match="gives raw"):
        check_call(architecture("contrastive"), "int64", (5,), "sample")


# --- draws -----------------------------------------------------------------------------------------------------------


def test_draws_are_the_same_on_every_machine() -> None:
    draws = Draws(RUN, b"place", range(64))
    drawn = [draws.normal("latent", (33,)), draws.uniform("first", (5,)), draws.below("step", 1000).int()]
    assert blake3(b"".join(one.numpy().tobytes() for one in drawn)).hexdigest(length=8) == "0ecbaaa3fa76526f"


def test_draws_are_distributed_as_they_should_be() -> None:
    draws = Draws(RUN, b"", range(200))
    normal = draws.normal("latent", (501,)).double()
    assert torch.isfinite(normal).all()
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert float((normal**power).mean()) == pytest.approx(moment, abs=0.06)
    assert abs(float((normal[:, :250] * normal[:, 250:500]).mean())) < 0.02
    assert float((normal < 1).double().mean()) == pytest.approx(0.8413, abs=0.005)
    uniform = draws.uniform("first", (500,))
    assert (float(uniform.min()) >= 0, float(uniform.max()) < 1) == (True, True)
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.005)
    assert set(Draws(RUN, b"", range(999)).below("step", 5).tolist()) == set(range(5))


def test_a_sample_draws_its_own_whoever_stands_beside_it() -> None:
    whole = Draws(RUN, b"x", range(6)).normal("latent", (3, 4))
    assert torch.equal(Draws(RUN, b"x", range(2, 5)).normal("latent", (3, 4)), whole[2:5])
    for other in (Draws(RUN, b"y", range(6)), Draws(bytes(32), b"x", range(6)), Draws(RUN, b"x", range(6, 12))):
        assert not torch.isclose(other.normal("latent", (3, 4)), whole).any()
    assert not torch.isclose(Draws(RUN, b"x", range(6)).normal("mixed", (3, 4)), whole).any()
    assert Draws(RUN, b"", [-1]).below("step", 1 << 20).item() == Draws(RUN, b"", [2**64 - 1]).below("step", 1 << 20)


# --- steps -----------------------------------------------------------------------------------------------------------


def walked(body: Architecture, *, turns: bool = False, index: int = 0, number: int = 3, **changes: Any) -> Vector:
    steps = LocalSteps(body, replace(CONFIG, **changes), samples(body))
    steps.begin(initial_vector(body, bytes(32)), number, index, None)
    while not steps.done:
        steps.take(lambda: turns)
    return steps.vector.copy()


@pytest.mark.parametrize("name", WIRED)
def test_a_round_done_again_gives_the_same_bits_and_another_one_others(name: str) -> None:
    body = architecture(name)
    for precision in PRECISIONS if name in ("vae", "gan") else ("fp32", "bf16"):
        whole = walked(body, precision=precision)
        assert np.isfinite(whole).all()
        torch.manual_seed(1234)
        torch.randn(7)  # the process's own generator has no part in it
        assert np.array_equal(walked(body, turns=True, precision=precision), whole)
    whole = walked(body)
    for other in (walked(body, index=1), walked(body, number=4), walked(body, run=bytes(32))):
        assert not np.array_equal(other, whole)


@pytest.mark.parametrize("name", ["vae", "gan", "diffusion"])
def test_what_is_drawn_for_a_sample_does_not_depend_on_how_the_batch_is_cut(name: str) -> None:
    body = architecture(name)
    whole, pieces = (walked(body, micro_batch=micro, optimizer="sgd") for micro in (0, 3))
    assert np.allclose(whole, pieces, atol=1e-5)
    assert not np.array_equal(whole, initial_vector(body, bytes(32)))


@pytest.mark.parametrize("name", WIRED)
def test_an_audit_finds_what_a_member_sent(name: str) -> None:
    body = architecture(name)
    trainer = Trainer(body, initial_vector(body, bytes(32)), samples(body), replace(CONFIG, index=1))
    sent, loss = trainer.train(0)
    again = trainer.replaying(0, 1, trainer.parameters.copy())
    again.take(lambda: True)
    trainer.apply(0, sent)
    again.take()
    assert np.array_equal(trainer.work_of(again, None).update, sent)
    assert np.linalg.norm(sent) > 0
    assert math.isfinite(loss)


def test_a_contrastive_batch_is_taken_whole() -> None:
    body = architecture("contrastive")
    assert micro_batch(body, 64, 1 << 30) == 64
    with pytest.raises(LocalError, match="whole"):
        LocalSteps(body, replace(CONFIG, micro_batch=2), samples(body))
    with pytest.raises(LocalError, match="2 samples"):
        LocalSteps(body, replace(CONFIG, batch=1), samples(body))


def test_a_step_moves_the_discriminator_first_and_then_the_generator_against_it() -> None:
    found = document("gan", generator=[dense(64)], discriminator=[dense(1)], penalty=3)
    body = parse_spec(found)
    start, data = initial_vector(body, bytes(32)), samples(body)
    steps = LocalSteps(body, replace(CONFIG, optimizer="sgd", inner_steps=1), data)
    steps.begin(start, 0, 0, None)
    rows = steps.rows(0)
    steps.take()

    vector = torch.from_numpy(start.copy())
    module = build(body, vector)
    generator, discriminator = net_of(module, "generator"), net_of(module, "discriminator")
    draws = Draws(RUN, bytes(24), range(len(rows)))
    with torch.no_grad():
        made = generator(draws.normal("false", (16,)))
    sure = nn.functional.binary_cross_entropy_with_logits
    real, false = discriminator(data.x[rows]), discriminator(made)
    steepness = next(discriminator.parameters()).square().sum()  # of a linear one, the same everywhere
    first = sure(real, torch.ones_like(real)) + sure(false, torch.zeros_like(false)) + 1.5 * steepness
    step(list(discriminator.parameters()), first)
    taken = discriminator(generator(draws.normal("made", (16,))))
    step(list(generator.parameters()), sure(taken, torch.ones_like(taken)))
    assert np.allclose(steps.vector, vector.numpy(), atol=1e-6)
    total = (first + sure(taken, torch.ones_like(taken))).detach()
    assert steps.loss == pytest.approx(float(total), rel=1e-5)


STEEP: dict[str, list[dict[str, Any]]] = {
    "dense": [{"kind": "feed_forward", "hidden": 4}, {"kind": "swiglu", "hidden": 4}, {"kind": "dropout", "rate": 0.5}],
    "norms": [{"kind": "layer_norm"}, {"kind": "rms_norm"}, NORM],
    "images": [
        {"kind": "reshape", "shape": [1, 8, 8]},
        {"kind": "conv2d", "channels": 4, "kernel": 3, "padding": 1},
        *(NORM, {"kind": "group_norm", "groups": 2}, {"kind": "max_pool2d", "size": 2}, {"kind": "upsample2d"}),
        {"kind": "conv_transpose2d", "channels": 2, "kernel": 2},
        *({"kind": "avg_pool2d", "size": 2}, {"kind": "residual", "join": "concat", "layers": [{"kind": "dropout",
          "rate": 0.1}]}, {"kind": "global_avg_pool"}),
    ],
    "attention": [
        *({"kind": "reshape", "shape": [8, 8]}, {"kind": "positions"}),
        {"kind": "attention", "heads": 2, "kv_heads": 1, "causal": True, "rope_base": 100, "bias": True},
        {"kind": "mean_pool"},
    ],
    "lstm": [{"kind": "reshape", "shape": [8, 8]}, {"kind": "lstm", "hidden": 4}, {"kind": "last"}],
    **{name: [{"kind": "activation", "function": name}] for name in FUNCTIONS},
}  # fmt: skip


@pytest.mark.parametrize("layers", STEEP)
def test_whatever_a_discriminator_is_made_of_its_steepness_has_a_gradient(layers: str) -> None:
    body = parse_spec(document("gan", discriminator=[*STEEP[layers], dense(1)]))
    steep = parse_spec(document("gan", discriminator=[*STEEP[layers], dense(1)], penalty=1.1))
    for precision in ("fp32", "bf16"):
        vectors = [walked(one, optimizer="sgd", learning_rate=0.01, precision=precision) for one in (body, steep)]
        assert all(np.isfinite(vector).all() for vector in vectors)
        assert not np.array_equal(vectors[0], vectors[1])


def step(parameters: list[nn.Parameter], loss: Tensor) -> None:
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.data.sub_(gradient, alpha=CONFIG.learning_rate)


# --- what is computed ------------------------------------------------------------------------------------------------


class Nets(nn.ModuleDict):
    """Named nets that are functions."""

    def __init__(self, **functions: Any) -> None:
        super().__init__({name: Function(one) for name, one in functions.items()})

    def forward(self, x: Tensor) -> Tensor:
        return self["encoder"](x)  # type: ignore[no-any-return]


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Tensor) -> Tensor:
        return self.function(*given)  # type: ignore[no-any-return]


def test_the_bound_is_that_of_a_linear_model_whose_evidence_is_known() -> None:
    objective = Variational(latent=1, deviation=0.5)
    body = parse_spec(document("vae", input={"dtype": "float32", "shape": [1]}, encoder=[dense(2)],
                               decoder=[dense(1)], latent=1))  # fmt: skip
    # x = z + 0.5·e has the posterior N(0.8·x, 0.2), and its bound is then the logarithm of N(0, 1.25), for every draw
    # on average.
    vector = torch.tensor([0.8, 0.0, 0.0, math.log(0.2), 1.0, 0.0])
    assert [tensor.shape for tensor in body.tensors] == [(2, 1), (2,), (1, 1), (1,)]
    x = torch.full((20_000, 1), 0.7)
    bound = -evidence(objective, Run(build(body, vector)), x, Draws(RUN, b"", range(len(x))))
    known = -(0.7**2) / 2.5 - math.log(2 * math.pi * 1.25) / 2
    assert float(bound.detach().mean()) - constant_of(objective, 1) == pytest.approx(known, abs=0.01)


def test_samples_come_out_of_noise_exactly_when_the_noise_is_told_exactly() -> None:
    objective, clean = Denoising(steps=7), torch.tensor([[0.5, -2.0, 3.0]])

    def told(x: Tensor, time: Tensor) -> Tensor:
        angle = math.pi / 2 * time[:, None]
        noise = (x - angle.cos() * clean) / angle.sin()
        return angle.cos() * noise - angle.sin() * clean

    for seed in range(3):
        noise = Draws(RUN, b"", [seed]).normal("sample", (3,))
        assert torch.allclose(denoise(objective, Run(Function(told)), noise), clean, atol=1e-4)


def test_a_view_hides_a_share_and_whoever_ignores_what_is_hidden_matches_all() -> None:
    objective, seen = Contrastive(hidden=0.5, temperature=0.1), []

    def remember(x: Tensor) -> Tensor:
        seen.append(x)
        return x[:, :8].sign()

    x = torch.ones(6, 1000)
    x[:, :8] = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)) * 0.001
    draws = Draws(RUN, b"", range(6))
    contrast(objective, Run(Function(remember)), x, draws)
    first, second = seen
    assert float((first == 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert not torch.equal(first, second)
    codes = torch.eye(6).repeat(1, 50)
    loss, matched = contrast(Contrastive(hidden=0.01, temperature=0.1), Run(Function(lambda one: one)), codes, draws)
    assert float(matched) == 1.0
    assert float(loss) < math.log(11) / 100
    same, chance = contrast(objective, Run(Function(lambda one: torch.ones(len(one), 2))), codes, draws)
    assert float(same) == pytest.approx(math.log(11))
    assert float(chance) <= 2 / 12


def test_zero_stands_for_the_tokens_that_a_view_hides() -> None:
    seen: list[Tensor] = []

    def remember(x: Tensor) -> Tensor:
        seen.append(x)
        return x.float()

    contrast(Contrastive(), Run(Function(remember)), torch.full((4, 100), 7), Draws(RUN, b"", range(4)))
    assert {value for view in seen for value in view.flatten().tolist()} == {0, 7}


def test_energy_distance_is_zero_for_the_same_and_known_for_points() -> None:
    one = torch.tensor([[0.0], [0.0]])
    assert energy_distance(one, one) == 0.0
    assert energy_distance(one, one + 3) == pytest.approx(6.0)
    assert energy_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0]])) == pytest.approx(2 * 1 - 1 - 0)
