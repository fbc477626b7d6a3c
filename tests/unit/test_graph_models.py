"""A graph does what its module does, bit by bit: training, evaluating, and after a step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from celluler.engines.graph.export import NotExportable, export_graph
from celluler.engines.graph.interpret import GraphModule
from celluler.engines.graph.measure import measure
from celluler.errors import InvalidSpec, LocalError
from celluler.models.graph import Graph, parse_graph
from tests.support.graphs import NAMES, stored
from tests.support.modules import CASES

pytestmark = pytest.mark.thorough


def graph_of(module: nn.Module, graph: Graph) -> GraphModule:
    """The graph with the module's tensors."""
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    made = GraphModule(graph)
    for name in made.tensors():
        made.put(name, held[name].detach().clone())
    return made


def several(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def run(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    torch.manual_seed(7)
    return several(module(x))


def assert_same(original: nn.Module, graph: GraphModule) -> None:
    """All parameters, all gradients, all running statistics."""
    ours = graph.tensors()
    for name, one in original.named_parameters():
        assert torch.equal(one, ours[name]), name
        assert (one.grad is None) == (ours[name].grad is None), name
        assert one.grad is None or torch.equal(one.grad, ours[name].grad), name
    for name, one in original.named_buffers():
        assert torch.equal(one, ours[name]), name


@pytest.mark.parametrize("name", CASES)
def test_a_graph_trains_and_evaluates_as_its_module(name: str) -> None:
    torch.manual_seed(3)
    make, example, dynamic = CASES[name]
    original, x = make(), example()
    graph = graph_of(original, stored(name))
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.1) for one in (original, graph)]
    for _ in range(2):
        for one, optimizer in zip((original, graph), optimizers, strict=True):
            optimizer.zero_grad()
            sum(out.square().mean() for out in run(one.train(), x)).backward()
        assert_same(original, graph)
        for optimizer in optimizers:
            optimizer.step()
    assert_same(original, graph)
    for size in (4, 3):  # another batch, and where it may be, another length
        x = torch.cat((x, x))[: size + 2]
        x = x[:, :-1] if 1 in dynamic else x
        for mode in (True, False):
            for one, other in zip(run(original.train(mode), x), run(graph.train(mode), x), strict=True):
                assert torch.equal(one, other)
    assert_same(original, graph)
    assert measure(graph.graph, training=False).activation_bytes > 0


@pytest.mark.parametrize("name", ["cnn", "vae", "unet"])
def test_a_stored_graph_is_what_the_exporter_writes(name: str) -> None:
    make, example, dynamic = CASES[name]
    assert export_graph(make(), (example(),), dynamic={NAMES[axis]: ends for axis, ends in dynamic.items()}).graph == (
        stored(name)
    )


def test_ranges_and_vocabularies_of_a_language_model_are_enforced() -> None:
    graph = stored("llama")
    module = graph_of(CASES["llama"][0](), graph)
    assert {one.name: one.aliases for one in graph.tensors if one.aliases} == {"words.weight": ("head.weight",)}
    for wrong in (torch.zeros(2, 33, dtype=torch.int64), torch.zeros(65, 4, dtype=torch.int64),
                  torch.full((2, 4), 32), torch.full((2, 4), -1)):  # fmt: skip
        with pytest.raises(InvalidSpec, match=r"inputs\.in0"):
            module(wrong)


class Various(nn.Module):
    """What published modules do on the way: parts without gradient, masks by `&`, writes in place, named outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(4, 4), nn.Dropout(0.5, inplace=True)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.first(x)
        with torch.no_grad():
            scale = torch.min(hidden.abs().amax(1, keepdim=True), x.exp().sum(1, keepdim=True)) + 1
            if self.training:
                self.mean.mul_(0.9).add_(hidden.mean(0), alpha=0.1)
        kept = (x > -1) & (hidden < scale)
        return {"out": self.drop(hidden / scale) - self.mean, "masked": hidden.masked_fill(kept, 0.0)}


class Fickle(nn.Module):
    """Does other things in evaluation: stochastic depth, and more outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        out = self.norm(self.inner(x))
        if self.training:
            return x + out * (torch.rand(x.shape[0], 1) < 0.7) / 0.7
        return x + out, out * torch.tensor([1.0, 2.0, 3.0])


class Unlisted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Identity(), Lattice())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Lattice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.lgamma(x)


class Overwriting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu_()


def test_parts_without_gradient_are_laid_into_the_graph() -> None:
    torch.manual_seed(2)
    original, x = Various(), torch.randn(6, 4)
    graph = export_graph(original, (x,)).module().train()
    for _ in range(2):
        told = []
        for module in (original, graph):
            torch.manual_seed(7)
            outputs = module(x)
            told.append(tuple(outputs.values()) if isinstance(outputs, dict) else outputs)
            sum(out.sum() for out in told[-1]).backward()
        assert all(torch.equal(one, other) for one, other in zip(*told, strict=True))
        assert_same(original, graph)
    assert original.mean.abs().sum() > 0


def test_an_example_must_lie_within_what_may_vary() -> None:
    for count, dynamic in ((1, None), (3, {"batch": (4, 8)}), (9, {"batch": (4, 8)})):
        with pytest.raises(LocalError, match="axis 0, batch"):
            export_graph(nn.Linear(3, 2), (torch.ones(count, 3),), dynamic=dynamic)


@pytest.mark.parametrize("ends", [(1, 2), (2, 2), (4, 4), (0, 8), (8, 4)])
def test_what_may_vary_has_a_range_that_a_trace_can_hold(ends: tuple[int, int]) -> None:
    with pytest.raises(LocalError, match="is no range"):
        export_graph(nn.Linear(3, 2), (torch.ones(2, 3),), dynamic={"batch": ends})


def test_what_is_otherwise_in_evaluation_has_nodes_of_its_own() -> None:
    torch.manual_seed(2)
    original, x = Fickle(), torch.randn(6, 3)
    exported = export_graph(original, (x,))
    assert exported.graph.evaluation is not None
    assert parse_graph(exported.document) == exported.graph
    graph = exported.module()
    for mode in (True, False, True):
        for one, other in zip(run(original.train(mode), x), run(graph.train(mode), x), strict=True):
            assert torch.equal(one, other)
        assert_same(original, graph)
    evaluated = GraphModule(exported.graph.evaluated())
    for name, value in graph.tensors().items():
        evaluated.put(name, value)
    assert torch.equal(run(evaluated.train(), x)[1], run(original.eval(), x)[1])


@pytest.mark.parametrize(
    ("module", "operation", "path"),
    [(Unlisted(), "lgamma.default", "inner.1"), (Overwriting(), "relu_.default", "")],
    ids=["unlisted", "writes into its input"],
)
def test_what_a_graph_cannot_hold_is_named(module: nn.Module, operation: str, path: str) -> None:
    with pytest.raises(NotExportable) as refused:
        export_graph(module, (torch.rand(2, 3) + 1,))
    assert (refused.value.operation, refused.value.module) == (operation, path)
