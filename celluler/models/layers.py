"""The vocabulary of declarative architectures: what each layer is called, takes, holds and costs.

`plan` follows one sample through a layer: it checks what comes in, books tensors and costs in a ledger, and says what
goes out. Nothing is allocated; `celluler.engines.build` makes modules of the same layers. Knows no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from celluler.errors import InvalidSpec
from celluler.models.fields import MAX_SIZE, Choice, Flag, Real, Sizes, Whole, declare, read_fields

Shape = tuple[int, ...]
"""Of one sample: the batch axis is never written."""

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Signal:
    """What flows between two layers, for one sample. dtype: float32 or int64."""

    dtype: str
    shape: Shape

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One float32 tensor of the weights file.

    name: the place of its layer, then what it is there: `2.weight`, in a repeat `3.1.0.bias` (layer 3, repetition 1,
    layer 0). role: `weight` (drawn uniformly within ±bound), `zero` and `one` (so initialised), trained; `mean` and
    `variance`, the running statistics of a batch norm, moved by training but not by gradients.
    """

    name: str
    shape: Shape
    role: str
    bound: float = 0.0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def trained(self) -> bool:
        return self.role in ("weight", "zero", "one")


@dataclass(frozen=True, slots=True)
class Budget:
    """What a model may cost at most; a document that asks for more is refused when it is read.

    Costs beside parameters are for one sample. layers: counted after repeats are unrolled.
    """

    parameter_bytes: int = 2 << 30
    activation_bytes: int = 256 << 20
    multiply_adds: int = 10**11
    layers: int = 4096


@dataclass(slots=True)
class Ledger:
    """What the layers planned so far cost; raises InvalidSpec as soon as the budget is overdrawn."""

    budget: Budget
    parameter_bytes: int = 0
    activation_bytes: int = 0
    multiply_adds: int = 0
    layers: int = 0
    vocabulary: int = MAX_SIZE
    tensors: list[TensorSpec] = field(default_factory=list)

    def book(self, at: Place, out: Signal, multiply_adds: int, tensors: tuple[TensorSpec, ...] = ()) -> None:
        parameter_bytes = FLOAT_BYTES * sum(tensor.elements for tensor in tensors)
        self._check(at, parameter_bytes, FLOAT_BYTES * out.elements, multiply_adds, 1)
        self.parameter_bytes += parameter_bytes
        self.activation_bytes += FLOAT_BYTES * out.elements
        self.multiply_adds += multiply_adds
        self.layers += 1
        self.tensors += tensors

    def totals(self) -> tuple[int, int, int, int]:
        return self.parameter_bytes, self.activation_bytes, self.multiply_adds, self.layers

    def foresee(self, at: Place, since: tuple[int, int, int, int], times: int) -> None:
        """Refuse now if what was booked since `since`, another `times` over, would overdraw the budget."""
        each = (now - before for now, before in zip(self.totals(), since, strict=True))
        self._check(at, *(times * cost for cost in each))

    def _check(self, at: Place, parameter_bytes: int, activation_bytes: int, multiply_adds: int, layers: int) -> None:
        for what, spent, limit in (
            ("bytes of parameters", self.parameter_bytes + parameter_bytes, self.budget.parameter_bytes),
            ("bytes of activations a sample", self.activation_bytes + activation_bytes, self.budget.activation_bytes),
            ("multiply-adds a sample", self.multiply_adds + multiply_adds, self.budget.multiply_adds),
            ("layers", self.layers + layers, self.budget.layers),
        ):
            if spent > limit:
                raise InvalidSpec(at.path, f"needs {spent} {what}, the budget is {limit}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer stands. path: in the document (`layers[2]`). prefix: of its tensors (`2.`)."""

    path: str = ""
    prefix: str = ""

    def child(self, place: int, *, copy: int | None = None) -> Place:
        """Of the layer `place` inside this one; `copy` counts repetitions."""
        path = f"{self.path}.layers[{place}]" if self.path else f"layers[{place}]"
        repetition = "" if copy is None else f"{copy}."
        return Place(path, f"{self.prefix}{repetition}{place}.")


class Layer(Protocol):
    """A frozen dataclass of declared fields."""

    KIND: ClassVar[str]

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        """What comes out of this layer. Raises InvalidSpec when `given` does not fit or the budget does not reach."""


# --- layers with parameters ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dense:
    """Weighted sums over the last axis: (…, n) → (…, width). Tensors: weight (width, n), bias (width)."""

    KIND: ClassVar[str] = "dense"
    width: int = declare(Whole(1, MAX_SIZE), "number of outputs")
    bias: bool = declare(Flag(), "add a trained offset", default=True)

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        _need_float(given, at)
        n = given.shape[-1]
        tensors = _weight_and_bias(at, (self.width, n), fan_in=n, bias=self.bias)
        out = Signal("float32", (*given.shape[:-1], self.width))
        ledger.book(at, out, out.elements * n, tensors)
        return out


@dataclass(frozen=True, slots=True)
class Conv2d:
    """Convolution with a square kernel: (c, h, w) → (channels, h', w').

    Tensors: weight (channels, c/groups, kernel, kernel), bias (channels).
    """

    KIND: ClassVar[str] = "conv2d"
    channels: int = declare(Whole(1, MAX_SIZE), "number of output channels")
    kernel: int = declare(Whole(1, 64), "side of the kernel")
    stride: int = declare(Whole(1, 64), "step of the kernel", default=1)
    padding: int = declare(Whole(0, 64), "zeros added at each side", default=0)
    groups: int = declare(Whole(1, MAX_SIZE), "must divide both channel counts", default=1)
    bias: bool = declare(Flag(), "add a trained offset a channel", default=True)

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        _need_float(given, at)
        c, h, w = _need_image(given, at)
        if c % self.groups or self.channels % self.groups:
            raise InvalidSpec(f"{at.path}.groups", f"must divide {c} input and {self.channels} output channels")
        fan_in = c // self.groups * self.kernel**2
        shape = (self.channels, c // self.groups, self.kernel, self.kernel)
        tensors = _weight_and_bias(at, shape, fan_in=fan_in, bias=self.bias)
        side_h, side_w = (_slide(side, self.kernel, self.stride, self.padding, at) for side in (h, w))
        out = Signal("float32", (self.channels, side_h, side_w))
        ledger.book(at, out, out.elements * fan_in, tensors)
        return out


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """Normalises each channel (the first axis) over the batch, by running statistics when predicting.

    Tensors: weight, bias, running_mean, running_var, all (c).
    """

    KIND: ClassVar[str] = "batch_norm"

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        _need_float(given, at)
        if len(given.shape) > 3:
            raise InvalidSpec(at.path, f"takes at most 3 axes, given {given.shape}")
        names = (("weight", "one"), ("bias", "zero"), ("running_mean", "mean"), ("running_var", "variance"))
        tensors = tuple(TensorSpec(at.prefix + name, given.shape[:1], role) for name, role in names)
        ledger.book(at, given, 2 * given.elements, tensors)
        return given


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Normalises the last axis of each sample. Tensors: weight, bias, both (n)."""

    KIND: ClassVar[str] = "layer_norm"

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        _need_float(given, at)
        names = (("weight", "one"), ("bias", "zero"))
        tensors = tuple(TensorSpec(at.prefix + name, given.shape[-1:], role) for name, role in names)
        ledger.book(at, given, 2 * given.elements, tensors)
        return given


@dataclass(frozen=True, slots=True)
class Embedding:
    """A trained vector for each number below `vocabulary`: int64 (…) → (…, width).

    Tensors: weight (vocabulary, width).
    """

    KIND: ClassVar[str] = "embedding"
    vocabulary: int = declare(Whole(1, MAX_SIZE), "numbers known")
    width: int = declare(Whole(1, MAX_SIZE), "length of a vector")

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        if given.dtype != "int64":
            raise InvalidSpec(at.path, f"takes int64, given {given.dtype}")
        weight = TensorSpec(f"{at.prefix}weight", (self.vocabulary, self.width), "weight", bound=math.sqrt(3))
        out = Signal("float32", (*given.shape, self.width))
        ledger.book(at, out, out.elements, (weight,))
        ledger.vocabulary = min(ledger.vocabulary, self.vocabulary)
        return out


# --- layers without parameters ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Activation:
    """A function applied to every element."""

    KIND: ClassVar[str] = "activation"
    function: str = declare(Choice(("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid")), "which")

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        _need_float(given, at)
        ledger.book(at, given, given.elements)
        return given


@dataclass(frozen=True, slots=True)
class Dropout:
    """Zeroes elements at random while training."""

    KIND: ClassVar[str] = "dropout"
    rate: float = declare(Real(0.0, 1.0), "share of elements zeroed")

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        _need_float(given, at)
        ledger.book(at, given, given.elements)
        return given


@dataclass(frozen=True, slots=True)
class Flatten:
    """All axes into one: (a, b, …) → (a·b·…)."""

    KIND: ClassVar[str] = "flatten"

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        out = Signal(given.dtype, (given.elements,))
        ledger.book(at, out, 0)
        return out


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same elements under another shape."""

    KIND: ClassVar[str] = "reshape"
    shape: Shape = declare(Sizes(), "of one sample")  # noqa: RUF009

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        out = Signal(given.dtype, self.shape)
        if out.elements != given.elements:
            raise InvalidSpec(f"{at.path}.shape", f"holds {out.elements} elements, given {given.elements}")
        ledger.book(at, out, 0)
        return out


@dataclass(frozen=True, slots=True)
class MaxPool2d:
    """The largest element of each square window: (c, h, w) → (c, h', w')."""

    KIND: ClassVar[str] = "max_pool2d"
    size: int = declare(Whole(1, 64), "side of the window")
    stride: int | None = declare(Whole(1, 64), "step of the window; `size` when absent", default=None)

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        return _plan_pool(self.size, self.stride, given, at, ledger)


@dataclass(frozen=True, slots=True)
class AvgPool2d:
    """The mean of each square window: (c, h, w) → (c, h', w')."""

    KIND: ClassVar[str] = "avg_pool2d"
    size: int = declare(Whole(1, 64), "side of the window")
    stride: int | None = declare(Whole(1, 64), "step of the window; `size` when absent", default=None)

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        return _plan_pool(self.size, self.stride, given, at, ledger)


@dataclass(frozen=True, slots=True)
class GlobalAvgPool:
    """The mean of each channel: (c, h, w) → (c)."""

    KIND: ClassVar[str] = "global_avg_pool"

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        _need_float(given, at)
        c, _, _ = _need_image(given, at)
        out = Signal("float32", (c,))
        ledger.book(at, out, given.elements)
        return out


# --- layers made of layers -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Body:
    """The rule of a field that holds layers."""

    @property
    def text(self) -> str:
        return "list of 1…256 layers"

    def read(self, value: Any, path: str) -> tuple[Layer, ...]:
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= 256:
            raise InvalidSpec(path, "must be a list of 1…256 layers")
        return tuple(read_layer(item, f"{path}[{place}]") for place, item in enumerate(value))


@dataclass(frozen=True, slots=True)
class Residual:
    """What comes in, joined with what its layers make of it."""

    KIND: ClassVar[str] = "residual"
    layers: tuple[Layer, ...] = declare(Body(), "the branch")
    join: str = declare(
        Choice(("add", "concat")), "sum of equal shapes, or concatenation on the first axis", default="add"
    )

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        _need_float(given, at)
        branch = plan_layers(self.layers, given, at, ledger)
        if self.join == "add":
            if branch.shape != given.shape:
                raise InvalidSpec(at.path, f"cannot add {branch.shape} to {given.shape}")
            out = given
        else:
            if branch.shape[1:] != given.shape[1:]:
                raise InvalidSpec(at.path, f"cannot concatenate {branch.shape} to {given.shape}")
            out = Signal("float32", (given.shape[0] + branch.shape[0], *given.shape[1:]))
        ledger.book(at, out, out.elements)
        return out


@dataclass(frozen=True, slots=True)
class Repeat:
    """Its layers several times in a row, each time with parameters of their own."""

    KIND: ClassVar[str] = "repeat"
    times: int = declare(Whole(1, 1024), "how often")
    layers: tuple[Layer, ...] = declare(Body(), "what is repeated")

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        for copy in range(self.times):
            before = ledger.totals()
            out = plan_layers(self.layers, given, at, ledger, copy=copy)
            if out == given and copy == 0:
                ledger.foresee(at, before, self.times - 1)
            given = out
        return given


KINDS: dict[str, type[Layer]] = {
    cls.KIND: cls
    for cls in (
        Dense,
        Conv2d,
        BatchNorm,
        LayerNorm,
        Embedding,
        Activation,
        Dropout,
        Flatten,
        Reshape,
        MaxPool2d,
        AvgPool2d,
        GlobalAvgPool,
        Residual,
        Repeat,
    )
}
"""Every layer there is, by its name in a document."""


def read_layer(document: Any, path: str) -> Layer:
    """A layer from its JSON object; its shapes are not looked at yet."""
    if not isinstance(document, dict):
        raise InvalidSpec(path, "must be an object")
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidSpec(f"{path}.kind", f"must be one of {', '.join(KINDS)}")
    return KINDS[kind](**read_fields(KINDS[kind], document, path, besides=("kind",)))


def plan_layers(
    layers: tuple[Layer, ...], given: Signal, at: Place, ledger: Ledger, *, copy: int | None = None
) -> Signal:
    """One sample through all of `layers` in order."""
    for place, layer in enumerate(layers):
        given = layer.plan(given, at.child(place, copy=copy), ledger)
    return given


def count_layers(layers: tuple[Layer, ...]) -> int:
    """With repeats unrolled, by arithmetic alone."""
    total = 0
    for layer in layers:
        match layer:
            case Repeat():
                total += layer.times * count_layers(layer.layers)
            case Residual():
                total += 1 + count_layers(layer.layers)
            case _:
                total += 1
    return total


# --- what the layers share -------------------------------------------------------------------------------------------


def _need_float(given: Signal, at: Place) -> None:
    if given.dtype != "float32":
        raise InvalidSpec(at.path, f"takes float32, given {given.dtype}; an embedding makes float32 of int64")


def _need_image(given: Signal, at: Place) -> tuple[int, int, int]:
    if len(given.shape) != 3:
        raise InvalidSpec(at.path, f"takes (channels, height, width), given {given.shape}")
    return given.shape[0], given.shape[1], given.shape[2]


def _slide(side: int, window: int, stride: int, padding: int, at: Place) -> int:
    """How many places a window has along a side."""
    room = side + 2 * padding - window
    if room < 0:
        raise InvalidSpec(at.path, f"a window of {window} does not fit on a side of {side} padded by {padding}")
    return room // stride + 1


def _weight_and_bias(at: Place, shape: Shape, *, fan_in: int, bias: bool) -> tuple[TensorSpec, ...]:
    # He et al. 2015, equation 10, as a uniform distribution: variance 2/fan_in.
    weight = TensorSpec(f"{at.prefix}weight", shape, "weight", bound=math.sqrt(6 / fan_in))
    return (weight, TensorSpec(f"{at.prefix}bias", shape[:1], "zero")) if bias else (weight,)


def _plan_pool(size: int, stride: int | None, given: Signal, at: Place, ledger: Ledger) -> Signal:
    _need_float(given, at)
    c, h, w = _need_image(given, at)
    out = Signal("float32", (c, _slide(h, size, stride or size, 0, at), _slide(w, size, stride or size, 0, at)))
    ledger.book(at, out, out.elements * size**2)
    return out
