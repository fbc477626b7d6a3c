"""Transforms as data: what is refused when they are read, and that what is planned is what comes out."""

from __future__ import annotations

import base64
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import InvalidSpec
from celluler.models.body import Body
from celluler.models.interface import Interface, read_interface
from celluler.models.layers import Signal
from celluler.models.spec import parse_spec
from celluler.models.templates import TEMPLATES
from celluler.models.transforms import programs
from celluler.models.transforms.base import MAX_ELEMENTS, TEXT, numpy_dtype
from celluler.models.transforms.document import NUMBER_STEPS, STEPS, Chain, parse_preprocess, plan_steps
from celluler.models.transforms.run import raw_input, run_chain
from tests.support.specs import WORDS

pytestmark = pytest.mark.thorough

MLP = TEMPLATES["mlp"].document


def chain(dtype: str, shape: tuple[int, ...], *steps: dict[str, Any]) -> Chain:
    raw = {"name": "given", "dtype": dtype, "shape": list(shape)}
    return parse_preprocess({"transforms": 1, "input": raw, "steps": list(steps)}).chain


def run(x: Any, *steps: dict[str, Any], dtype: str = "") -> Any:
    x = np.asarray(x)
    one = chain(dtype or str(x.dtype), x.shape[1:], *steps)
    return run_chain(one, x, {}).tolist()


def texts(*words: str, size: int = 16) -> Any:
    rows = [word.encode().ljust(size, b"\0") for word in words]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), size)


def step(kind: str, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, **fields}


def f32(*rows: Any) -> Any:
    return np.array(rows, np.float32)


# --- each step on numbers worked out by hand ---------------------------------------------------------------------


def test_numbers() -> None:
    assert run(f32([1.9, -1.9, math.nan, 300, math.inf]), step("cast", to="uint8")) == [[1, 0, 0, 255, 255]]
    assert run(f32([1e30]), step("cast", to="int64")) == [[1 << 53]]
    assert run(np.array([[0, 255]], np.uint8), step("scale", by=2, add=-1)) == [[-1, 509]]
    assert run(f32([2, 6]), step("normalise", mean=[1, 2], deviation=[1, 2])) == [[1, 2]]
    assert run(f32([[2, 6], [0, 0]]), step("normalise", mean=[1, 0], deviation=[1, 2], axis=0)) == [[[1, 5], [0, 0]]]
    assert run(f32([-3, 0.5, 3]), step("clip", low=-1, high=1)) == [[-1, 0.5, 1]]
    assert run(np.array([[2, 0]]), step("one_hot", classes=3)) == [[[0, 0, 1], [1, 0, 0]]]
    assert run(f32([0, 0], [1000, 0]), step("softmax")) == [[0.5, 0.5], [1, 0]]
    assert run(f32([0, -1000]), step("sigmoid")) == [[0.5, 0]]
    assert run(f32([1, 3, 3]), step("argmax")) == [1]
    assert run(f32([[1, 3], [2, 0]]), step("argmax", axis=0)) == [[1, 0]]
    assert run(f32([1, 3, 2, 3]), step("top_k", k=3)) == [[1, 3, 2]]
    assert run(f32([1, 3, 2, 3]), step("top_k", k=2, gives="values")) == [[3, 3]]
    assert run(f32([0.4, 0.5]), step("threshold", at=0.5)) == [[0, 1]]


def test_shapes() -> None:
    image = f32([[0, 2], [4, 6]])
    assert run(image, step("resize", height=1, width=1, layout="hw")) == [[[3]]]
    assert run(image, step("resize", height=1, width=4, layout="hw")) == [[[2, 2.5, 3.5, 4]]]
    assert run(image, step("resize", height=3, width=1, layout="hw", method="nearest")) == [[[2], [6], [6]]]
    assert run(image, step("crop", shape=[1, 2], start=[1, 0])) == [[[4, 6]]]
    assert run(f32([1, 2, 3, 4]), step("crop", shape=[1])) == [[2]]
    assert run(np.array([[1]]), step("pad", before=[1], after=[2], value=7)) == [[7, 1, 7, 7]]
    assert run(image, step("reshape", shape=[4])) == [[0, 2, 4, 6]]
    assert run(image, step("transpose", axes=[1, 0])) == [[[0, 4], [2, 6]]]
    assert run(image, step("take", places=[1, 1, 0])) == [[[2, 2, 0], [6, 6, 4]]]


def test_texts() -> None:
    def tokens(*words: str, **fields: Any) -> Any:
        return run(texts(*words), step(**fields), dtype=TEXT)

    assert tokens("hi", "", kind="byte_tokens", length=4) == [[104, 105, 0, 0], [0, 0, 0, 0]]
    assert tokens("abcdef", kind="byte_tokens", length=4, offset=3, begin=1, end=2) == [[1, 100, 101, 2]]
    words = ["a", "ab", "abc", "é", " "]
    assert tokens("abcab a", kind="tokenise", entries=words, length=6, pad=9) == [[2, 1, 4, 0, 9, 9]]
    assert tokens("aéxñb", kind="tokenise", entries=words, length=5, unknown=7, pad=9) == [[0, 3, 7, 7, 7]]
    assert tokens("xABx", kind="tokenise", entries=words, length=3, lower=True, pad=9) == [[1, 9, 9]]
    (told,) = run(np.array([[1, 0]]), step("labels", names=["cat", "käse"]))
    assert [bytes(row) for row in told] == ["käse".encode(), b"cat\0\0"]


def test_every_number_step_is_among_those_worked_out() -> None:
    source = Path(__file__).read_text("utf-8")
    assert all(f'"{one.KIND}"' in source.split("# --- refused")[0] for one in NUMBER_STEPS)


# --- refused ---------------------------------------------------------------------------------------------------------

CROP, ENTRIES = step("crop", shape=[9]), step("tokenise", entries=["a", "a"], length=4)


@pytest.mark.parametrize(
    ("dtype", "shape", "bad", "path"),
    [
        ("float32", (3,), step("reshap", shape=[3]), "preprocess.steps[0].kind"),
        ("float32", (3,), step("scale", bye=2), "preprocess.steps[0].bye"),
        ("float32", (3,), step("scale", by=math.inf), "preprocess.steps[0].by"),
        ("float32", (3,), step("normalise", mean=[0, 0], deviation=[1, 1]), "preprocess.steps[0].mean"),
        ("float32", (3,), step("normalise", mean=[0], deviation=[0]), "preprocess.steps[0].deviation[0]"),
        ("float32", (3,), step("normalise", mean=[0], deviation=[1], axis=1), "preprocess.steps[0].axis"),
        ("float32", (3,), step("one_hot", classes=3), "preprocess.steps[0]"),
        ("int64", (3,), step("softmax"), "preprocess.steps[0]"),
        ("float32", (3,), CROP, "preprocess.steps[0].shape[0]"),
        ("float32", (3,), step("crop", shape=[1], start=[3]), "preprocess.steps[0].shape[0]"),
        ("float32", (3,), step("top_k", k=4), "preprocess.steps[0].k"),
        ("float32", (3,), step("transpose", axes=[0, 1]), "preprocess.steps[0].axes"),
        ("float32", (3,), step("take", places=[0, 3]), "preprocess.steps[0].places[1]"),
        ("float32", (3,), step("reshape", shape=[2, 2]), "preprocess.steps[0].shape"),
        ("uint8", (3,), step("pad", before=[1], after=[0], value=0.5), "preprocess.steps[0].value"),
        ("uint8", (3,), step("pad", before=[1], after=[0], value=256), "preprocess.steps[0].value"),
        ("float32", (3,), step("resize", height=4, width=4), "preprocess.steps[0].layout"),
        ("float32", (4, 4, 4), step("resize", height=1 << 14, width=1 << 14), "preprocess.steps[0]"),
        ("int64", (1 << 12,), step("one_hot", classes=1 << 16), "preprocess.steps[0]"),
        ("float32", (3,), step("pad", before=[1 << 20], after=[1 << 20]), ""),
        (TEXT, (8,), step("reshape", shape=[2, 4]), "preprocess.steps[0]"),
        (TEXT, (8,), ENTRIES, "preprocess.steps[0].entries"),
        (TEXT, (8,), step("byte_tokens", length=2, begin=0, end=1), "preprocess.steps[0].length"),
        (TEXT, (2, 8), step("byte_tokens", length=2), "preprocess.input.shape"),
        ("float64", (8,), step("sigmoid"), "preprocess.input.dtype"),
        ("uint8", (1 << 12, 1 << 12), step("scale"), "preprocess.input.shape"),
        (TEXT, (8,), step("wasm", module="AGFzbQ==", dtype="float32", shape=[1]), "preprocess.steps[0].module"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(dtype: str, shape: Any, bad: dict[str, Any], path: str) -> None:
    if not path:
        assert chain(dtype, shape, bad).gives.elements < MAX_ELEMENTS
        bad, path = step("pad", before=[1 << 20], after=[1 << 20]), "preprocess.steps[1]"
        with pytest.raises(InvalidSpec) as told:
            chain(dtype, shape, bad, bad, bad)
        assert told.value.path == path
        return
    with pytest.raises(InvalidSpec) as told:
        chain(dtype, shape, bad)
    assert told.value.path == path


LOCALS = b"\x0a\x13\x03" + b"\x05\x01\xff\xff\x01\x7f" * 3
"""Three functions of 32767 local variables each."""


@pytest.mark.parametrize(
    "module",
    [b"", b"\x02\x01\x00", b"\x02\x01\x01", b"\x08\x01\x00", b"\x01\xff", b"\x63\0", LOCALS, b"\x0a\x02\xff\x01"],
)
def test_a_module_with_imports_or_a_start_or_torn_sections_is_refused(module: bytes) -> None:
    told = base64.b64encode(b"\0asm\1\0\0\0" + module).decode()
    one = step("wasm", module=told, dtype="float32", shape=[1])
    if module in (b"", b"\x02\x01\x00"):  # nothing, or an empty list of imports
        assert chain("float32", (3,), one).gives == Signal("float32", (1,))
        return
    with pytest.raises(InvalidSpec, match=r"steps\[0\].module"):
        chain("float32", (3,), one)


def test_functions_that_declare_into_each_other_are_refused_at_once() -> None:
    """Each of these has room for three bytes and announces 16,000 groups, all of which each would read."""
    functions = b"\x03\x80\xfd\x00" * 20_000
    size = len(functions) + 3
    code = b"\x0a" + bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + b"\x90\xce\x00" + functions
    began = time.process_time()
    with pytest.raises(InvalidSpec, match="beyond the function's end"):
        programs._check_module(b"\0asm\1\0\0\0" + code, "module")
    assert time.process_time() - began < 1


def test_twenty_thousand_labels_are_told_at_once() -> None:
    names = [f"class {place}" for place in range(20_000)]
    began = time.process_time()
    told = run(np.array([[19_999]], np.int64), step("labels", names=names))
    assert bytes(told[0][0]) == b"class 19999"
    assert time.process_time() - began < 5


def test_values_that_a_step_does_not_take_are_refused_with_the_step() -> None:
    for wrong, one in ((3, step("one_hot", classes=3)), (-1, step("labels", names=["a", "b"]))):
        with pytest.raises(InvalidSpec, match=rf"steps\[1\]: is given {wrong}"):
            run(np.array([[0], [wrong]]), step("cast", to="int64"), one)
    with pytest.raises(InvalidSpec, match=r"input\[1\]: holds values that are not finite"):
        raw_input(Signal("float32", (2,)), f32([0, 1], [0, math.nan]))
    with pytest.raises(InvalidSpec, match=r"input\[1\]: is not UTF-8"):
        raw_input(Signal(TEXT, (4,)), np.array([[65, 0], [0xFF, 0]], np.uint8))
    assert raw_input(Signal(TEXT, (4,)), texts("ab", size=2)).tolist() == [[97, 98, 0, 0]]


# --- with a model ------------------------------------------------------------------------------------------------


def body(document: Any = MLP) -> Body:
    return parse_spec(document)


def image(*steps: dict[str, Any], shape: tuple[int, ...] = (8, 8)) -> dict[str, Any]:
    return {"transforms": 1, "input": {"name": "image", "dtype": "uint8", "shape": list(shape)}, "steps": list(steps)}


def classifier() -> Interface:
    mlp = body()
    size = math.prod(mlp.input.shape)
    before = image(step("scale", by=1 / 255), step("reshape", shape=list(mlp.input.shape)), shape=(size // 8, 8))
    names = [f"class {k}" for k in range(mlp.output[0])]
    after = [
        {"name": "label", "of": "labels", "steps": [step("labels", names=names)]},
        {"name": "best", "of": "probabilities", "steps": [step("top_k", k=2)]},
    ]
    return read_interface(mlp, before, {"transforms": 1, "outputs": after})


def test_a_model_with_transforms_says_what_goes_in_and_out() -> None:
    one = classifier()
    assert one.usual == "label"
    assert list(one.outputs) == ["label", "best", "raw", "probabilities", "labels"]
    assert one.takes == Signal("uint8", (8, 8))
    assert one.outputs["best"] == Signal("int64", (2,))
    assert one.answer(3, "label") == ("uint8", (3, 7), 21)
    for output in one.outputs:
        one.check("uint8", (3, 8, 8), output)
    for dtype, shape, output, path in (
        ("float32", (3, 8, 8), "label", "input.dtype"),
        ("uint8", (3, 64), "raw", "input.shape"),
        ("uint8", (0, 8, 8), "raw", "input.shape"),
        ("uint8", (1 << 18, 8, 8), "raw", "input.shape"),
        ("uint8", (3, 8, 8), "embedding", "output"),
    ):
        with pytest.raises(InvalidSpec) as told:
            one.check(dtype, shape, output)
        assert told.value.path == path


def test_a_model_without_transforms_is_asked_as_ever() -> None:
    one = read_interface(body())
    assert one.usual == "raw"
    one.check("float32", (2, *body().input.shape), "labels")
    assert one.answer(2, "labels") == ("int64", (2,), 16)


@pytest.mark.parametrize(
    ("before", "after", "path"),
    [
        (image(step("scale")), None, "preprocess"),
        (image(step("reshape", shape=[64])), None, "preprocess"),
        (b"[]", None, "preprocess"),
        (b'{"transforms": 2, "input": {}, "steps": []}', None, "preprocess.transforms"),
        (None, {"transforms": 1, "outputs": []}, "postprocess.outputs"),
        (None, {"transforms": 1, "outputs": [{"name": "raw"}]}, "postprocess.outputs[0].name"),
        (None, {"transforms": 1, "outputs": [{"name": "a"}, {"name": "a"}]}, "postprocess.outputs[1].name"),
        (None, {"transforms": 1, "outputs": [{"name": "a", "of": "b"}]}, "postprocess.outputs[0].of"),
        (
            None,
            {"transforms": 1, "outputs": [{"name": "a", "steps": [step("top_k", k=99)]}]},
            "postprocess.outputs[0].steps[0].k",
        ),
    ],
)
def test_transforms_that_do_not_fit_the_model_are_refused(before: Any, after: Any, path: str) -> None:
    with pytest.raises(InvalidSpec) as told:
        read_interface(body(), before or b"", after or b"")
    assert told.value.path == path


def test_tokens_that_the_model_does_not_know_are_refused() -> None:
    document = {"transforms": 1, "input": {"name": "text", "dtype": "text", "shape": [64]}}
    cut = step("crop", shape=[5])
    for tokens, known in (
        (step("byte_tokens", length=9), False),
        (step("tokenise", entries=["a", "b"], length=9, unknown=6), True),
        (step("tokenise", entries=["a", "b"], length=9, pad=7), False),
        (step("tokenise", entries=list("abcdefgh"), length=9), False),
    ):
        if known:
            assert read_interface(body(WORDS), document | {"steps": [tokens, cut]}).takes == Signal(TEXT, (64,))
            continue
        with pytest.raises(InvalidSpec, match="knows numbers below 7") as told:
            read_interface(body(WORDS), document | {"steps": [tokens, cut]})
        assert told.value.path == "preprocess.steps[0]"


def test_seeds_go_past_a_preprocess() -> None:
    with pytest.raises(InvalidSpec, match="seeds alone"):
        read_interface(body(TEMPLATES["diffusion"].document), image())
    shape = body(TEMPLATES["diffusion"].document).output
    pixels = step("scale", by=127.5, add=127.5)
    after = {
        "transforms": 1,
        "outputs": [{"name": "image", "of": "sample", "steps": [pixels, step("cast", to="uint8")]}],
    }
    one = read_interface(body(TEMPLATES["diffusion"].document), b"", after)
    one.check("int64", (4,), "image")
    assert one.answer(4, "image")[:2] == ("uint8", (4, *shape))


# --- what is planned is what comes out ---------------------------------------------------------------------------

SIDES = st.lists(st.integers(1, 5), min_size=1, max_size=4)
SMALL = st.integers(1, 6)
REAL = st.floats(-100, 100)


def drawn(kind: str, now: Signal) -> st.SearchStrategy[dict[str, Any]]:
    """A step of that kind for such samples, if it takes them at all."""
    rank, last = len(now.shape), (now.shape or (1,))[-1]
    axes = st.integers(-rank, rank - 1)
    edges = st.lists(st.integers(0, 2), min_size=rank, max_size=rank)
    layouts = {2: ["hw"], 3: ["hwc", "chw"]}.get(rank, ["hwc"])
    fields: dict[str, dict[str, st.SearchStrategy[Any]]] = {
        "cast": {"to": st.sampled_from(["float32", "int64", "uint8"])},
        "scale": {"by": REAL, "add": REAL},
        "normalise": {"mean": st.just([0.5]), "deviation": st.just([2.0]), "axis": axes},
        "clip": {"low": st.floats(-9, 0), "high": st.floats(0, 9)},
        "one_hot": {"classes": st.integers(256, 300)},
        "softmax": {"axis": axes},
        "argmax": {"axis": axes},
        "top_k": {"k": st.integers(1, last), "gives": st.sampled_from(["places", "values"])},
        "threshold": {"at": REAL},
        "resize": {
            "height": SMALL,
            "width": SMALL,
            "layout": st.sampled_from(layouts),
            "method": st.sampled_from(["nearest", "bilinear"]),
        },
        "crop": {"shape": st.tuples(*(st.integers(1, side) for side in now.shape)).map(list)},
        "pad": {"before": edges, "after": edges},
        "reshape": {"shape": st.sampled_from([[now.elements], [1, now.elements], list(now.shape[::-1])])},
        "transpose": {"axes": st.permutations(range(rank))},
        "take": {"places": st.lists(st.integers(0, last - 1), min_size=1, max_size=4)},
        "byte_tokens": {"length": SMALL},
        "tokenise": {"length": SMALL, "entries": st.just(["a", "bb", "é"]), "unknown": st.just(3)},
        "labels": {"names": st.just([f"{k}" for k in range(300)])},
    }
    return st.fixed_dictionaries({"kind": st.just(kind), **fields.get(kind, {})})


def test_every_number_step_is_drawn() -> None:
    assert {one.KIND for one in NUMBER_STEPS} == set(STEPS) - {"graph", "wasm", "tokenizer"}


@settings(max_examples=100, deadline=None)
@given(data=st.data(), samples=st.integers(1, 3))
def test_what_is_planned_is_what_comes_out(data: st.DataObject, samples: int) -> None:
    dtype = data.draw(st.sampled_from(["float32", "int64", "uint8", TEXT]))
    shape = tuple(data.draw(SIDES)) if dtype != TEXT else (data.draw(SMALL),)
    values = np.array([data.draw(st.integers(0, 255)) for _ in range(samples)])
    if dtype == TEXT:
        values %= 128
    x = np.broadcast_to(values.reshape(samples, *[1] * len(shape)), (samples, *shape)).astype(numpy_dtype(dtype))
    now, fitting = Signal(dtype, shape), []
    for kind in data.draw(st.lists(st.sampled_from([one.KIND for one in NUMBER_STEPS]), min_size=4, max_size=12)):
        if not now.shape:
            break
        try:
            one = chain(now.dtype, now.shape, data.draw(drawn(kind, now)))
        except InvalidSpec:
            continue
        fitting.append(one.steps[0])
        now = one.gives
    planned = plan_steps(tuple(fitting), Signal(dtype, shape), "p")
    try:
        made = run_chain(planned, raw_input(planned.given, x), {})
    except InvalidSpec as error:
        assert "is given" in error.problem  # noqa: PT017
        return
    assert made.shape == (samples, *now.shape)
    assert made.dtype == numpy_dtype(now.dtype)
    alone = np.concatenate([run_chain(planned, raw_input(planned.given, x[k : k + 1]), {}) for k in range(samples)])
    assert np.array_equal(made, alone, equal_nan=made.dtype.kind == "f")
