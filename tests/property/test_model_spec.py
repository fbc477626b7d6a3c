from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.engines.build import build
from celluler.errors import InvalidSpec, ProtocolViolation
from celluler.models.index import open_index
from celluler.models.layers import Budget
from celluler.models.manifest import open_manifest
from celluler.models.names import parse_reference
from celluler.models.spec import Architecture, format_spec, parse_spec
from celluler.models.templates import TEMPLATES
from tests.support.specs import CNN, TINY, WORDS, regression

torch.set_num_threads(1)  # many threads on tiny tensors only wait for one another
NETS = ("vae", "gan", "diffusion", "contrastive")
SMALL = Budget(parameter_bytes=1 << 20, activation_bytes=1 << 18, multiply_adds=1 << 22, layers=64)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars | st.sampled_from(["dense", "repeat", "relu", "float32"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["kind", "layers", "width", "times", "input", "shape", "spec"]) | st.text(max_size=4), inner
        )
    ),
    max_leaves=20,
)

simple = st.one_of(
    st.fixed_dictionaries({"kind": st.just("dense"), "width": st.integers(1, 9), "bias": st.booleans()}),
    st.fixed_dictionaries(
        {
            "kind": st.just("conv2d"),
            "channels": st.sampled_from([1, 2, 4]),
            "kernel": st.integers(1, 3),
            "stride": st.integers(1, 2),
            "padding": st.integers(0, 2),
            "groups": st.sampled_from([1, 2]),
        }
    ),
    st.fixed_dictionaries({"kind": st.just("activation"), "function": st.sampled_from(["relu", "gelu", "elu"])}),
    st.fixed_dictionaries({"kind": st.sampled_from(["max_pool2d", "avg_pool2d"]), "size": st.integers(1, 3)}),
    st.fixed_dictionaries({"kind": st.just("reshape"), "shape": st.sampled_from([[2, 4, 4], [32], [4, 8], [1, 4, 8]])}),
    st.fixed_dictionaries({"kind": st.sampled_from(["batch_norm", "layer_norm", "flatten", "global_avg_pool"])}),
    st.fixed_dictionaries({"kind": st.sampled_from(["rms_norm", "positions", "mean_pool", "first", "last"])}),
    st.fixed_dictionaries({"kind": st.sampled_from(["feed_forward", "swiglu"]), "hidden": st.integers(1, 5)}),
    st.fixed_dictionaries({"kind": st.just("group_norm"), "groups": st.sampled_from([1, 2, 4])}),
    st.fixed_dictionaries(
        {
            "kind": st.just("conv_transpose2d"),
            "channels": st.sampled_from([1, 2]),
            "kernel": st.integers(1, 3),
            "stride": st.integers(1, 2),
            "padding": st.integers(0, 1),
        }
    ),
    st.fixed_dictionaries({"kind": st.just("upsample2d"), "factor": st.integers(2, 3)}),
    st.fixed_dictionaries(
        {
            "kind": st.just("lstm"),
            "hidden": st.integers(1, 4),
            "layers": st.integers(1, 2),
            "output": st.sampled_from(["sequence", "last"]),
        }
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("attention"),
            "heads": st.sampled_from([1, 2, 4]),
            "kv_heads": st.sampled_from([1, 2]),
            "causal": st.booleans(),
            "bias": st.booleans(),
        }
    ),
    st.just({"kind": "dropout", "rate": 0.5}),
)  # fmt: skip
layers = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.fixed_dictionaries(
            {
                "kind": st.just("residual"),
                "layers": st.lists(inner, min_size=1, max_size=3),
                "join": st.sampled_from(["add", "concat"]),
            }
        ),
        st.fixed_dictionaries(
            {
                "kind": st.just("repeat"),
                "times": st.integers(1, 3),
                "layers": st.lists(inner, min_size=1, max_size=3),
            }
        ),
    ),
    max_leaves=6,
)


def paths(document: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value in a document."""
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [here, *(place for key, value in inner for place in paths(value, (*here, key)))]


@settings(max_examples=40, deadline=None)
@given(values)
def test_random_json_is_refused_as_an_invalid_spec_and_nothing_else(document: Any) -> None:
    for form in (document, json.dumps(document).encode()):
        with pytest.raises(InvalidSpec):
            parse_spec(form)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([TINY, CNN, WORDS, *(TEMPLATES[name].document for name in NETS)]), st.data())
def test_a_document_with_one_value_replaced_is_valid_or_refused(document: dict[str, Any], data: st.DataObject) -> None:
    document = copy.deepcopy(document)
    *way, last = data.draw(st.sampled_from([place for place in paths(document) if place]))
    inner: Any = document
    for step in way:
        inner = inner[step]
    inner[last] = data.draw(values)
    try:
        architecture = parse_spec(document, budget=SMALL)
    except InvalidSpec:
        return
    assert parse_spec(format_spec(architecture)) == architecture


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_by_every_parser_with_its_own_error(data: bytes) -> None:
    with pytest.raises(InvalidSpec):
        parse_spec(data)
    with pytest.raises(InvalidSpec):
        parse_reference(data.decode("latin-1"))
    for opens in (open_manifest, open_index):
        with pytest.raises(ProtocolViolation):
            opens(data)


def kept(drawn: list[dict[str, Any]]) -> Architecture | None:
    """An architecture of those layers that fit behind one another."""
    good: list[dict[str, Any]] = []
    architecture = None
    for layer in drawn:
        try:
            architecture = parse_spec(regression(*good, layer, shape=(2, 4, 4)), budget=SMALL)
        except InvalidSpec:
            continue
        good.append(layer)
    return architecture


@settings(max_examples=40, deadline=None)
@given(st.lists(layers, min_size=1, max_size=6))
def test_what_is_counted_is_what_torch_builds(drawn: list[dict[str, Any]]) -> None:
    architecture = kept(drawn)
    if architecture is None:
        return
    module = build(architecture, torch.zeros(architecture.dimension)).eval()
    assert sum(parameter.numel() for parameter in module.parameters()) == architecture.parameter_count
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == {
        tensor.name: tensor.shape for tensor in architecture.tensors
    }
    assert sum(value.numel() * 4 for value in module.state_dict().values()) == architecture.parameter_bytes
    assert tuple(module(torch.zeros(2, 2, 4, 4)).shape) == (2, *architecture.output)
    assert parse_spec(format_spec(architecture)) == architecture
