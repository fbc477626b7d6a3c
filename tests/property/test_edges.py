"""Sizes, durations, tensors and views come back as they went."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from celluler import views
from celluler.errors import CellulerError, InvalidSpec, NotFound, ProtocolViolation
from celluler.failures import describe_error, rebuild_error
from celluler.quantities import format_bytes, format_duration, parse_bytes, parse_duration
from celluler.tensors import DTYPES, Tensor, tensor_from_json, tensor_of, tensor_to_json
from celluler.views import from_json, to_json

few = settings(max_examples=60, deadline=None)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@few
@given(st.sampled_from(sorted(DTYPES)), SHAPES, st.data())
def test_an_array_comes_back_from_bytes_from_json_and_from_lists(
    dtype: str, shape: tuple[int, ...], data: st.DataObject
) -> None:
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.startswith("f") else {}
    array = data.draw(arrays.arrays(dtype, shape, elements=elements))
    tensor = tensor_of(array, dtype)
    assert np.array_equal(tensor.numpy(), array)
    assert tensor_from_json(json.loads(json.dumps(tensor_to_json(tensor)))) == tensor
    assert tensor.lists() == array.tolist()
    if 0 not in shape:
        assert tensor_of(array.tolist(), dtype) == tensor


@pytest.mark.parametrize(
    "value",
    [
        [[1], [1, 2]],
        [1, [2]],
        [[1], 2],
        ["1", 2],
        [None],
        [True],
        [[[[[[[[[1]]]]]]]]],
        {"shape": [1]},
        [["text"], "text"],
        [1e400, "x"],
    ],
)
def test_what_is_no_array_is_refused(value: object) -> None:
    with pytest.raises(InvalidSpec):
        tensor_from_json(value)


@pytest.mark.parametrize(
    ("shape", "dtype", "data"),
    [((2,), "float32", b"1234"), ((-1,), "float32", b""), ((1,), "object", b"1"), ((1 << 40,), "uint8", b"")],
)
def test_bytes_that_do_not_fill_their_shape_are_refused(shape: tuple[int, ...], dtype: str, data: bytes) -> None:
    with pytest.raises(InvalidSpec):
        Tensor(shape, dtype, data)


@few
@given(st.integers(1, 1 << 50))
def test_a_size_is_read_as_it_is_written(size: int) -> None:
    assert parse_bytes(size) == parse_bytes(str(size)) == parse_bytes(f"{size} B") == size
    assert math.isclose(parse_bytes(format_bytes(size)), size, rel_tol=0.06)


@few
@given(st.integers(1, 10**6))
def test_a_duration_is_read_as_it_is_written(seconds: int) -> None:
    days, rest = divmod(seconds, 86400)
    assert parse_duration(f"{days}d{rest // 3600}h{rest // 60 % 60}m{rest % 60}s") == seconds
    assert parse_duration(str(seconds)) == parse_duration(seconds) == seconds
    assert format_duration(seconds)


@few
@given(st.text(max_size=12) | st.none() | st.booleans() | st.floats() | st.integers(-5, 0))
def test_what_is_no_quantity_raises_value_error(value: object) -> None:
    for parse in (parse_bytes, parse_duration):
        try:
            assert parse(value) > 0
        except ValueError:
            continue


def test_views_go_through_json_and_refuse_what_lacks_a_field() -> None:
    model = views.Model(
        "a/b:1.0.0", "1.0.0", "cid", "peer", "a", "classification", 3, "w", 12, True, 1.5,
        ("x",), {"accuracy": 1.0}, providers=("p",), spec={"layers": [1]},
    )  # fmt: skip
    told = json.loads(json.dumps(to_json(model)))
    assert from_json(views.Model, told | {"of a later version": 1}) == model
    for wrong in ([], told | {"cid": 3}, told | {"labels": "x"}, {k: v for k, v in told.items() if k != "cid"}):
        with pytest.raises(ProtocolViolation):
            from_json(views.Model, wrong)


def test_every_error_comes_back_as_itself() -> None:
    stack: list[type[CellulerError]] = [CellulerError]
    while stack:
        cls = stack.pop()
        stack += [one for one in cls.__subclasses__() if one.__module__ == "celluler.errors"]  # the others stay inside
        error = cls.__new__(cls)
        CellulerError.__init__(error, "what happened", peer="p", hint="next")
        back = rebuild_error(json.loads(json.dumps(describe_error(error))))
        assert (type(back), str(back), back.peer, back.hint) == (cls, "what happened", "p", "next")
    back = rebuild_error(describe_error(NotFound("a thing")))
    assert isinstance(back, NotFound)
    assert back.what == "a thing"
    for odd in (None, [], {}, {"type": "Nonsense", "message": 3}, {"type": "logging"}):
        assert rebuild_error(odd).exit_code == 6
