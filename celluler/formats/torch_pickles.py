"""The pickle inside a PyTorch checkpoint, followed without doing what it says.

A pickle is a program. This one is not run: its instructions are read one by one, those that build dictionaries and
lists of tensors are followed on paper, and the first that names anything else ends the reading with that name.
What comes out describes tensors; their bytes lie beside the pickle. Source: PEP 307, PEP 3154; torch/serialization.py.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from celluler.errors import InvalidSpec

MAX_PICKLE_BYTES = 64 << 20
MAX_STEPS = 8_000_000
MAX_RANK = 8
_MAX_SIZE = 1 << 40

STORAGES: Mapping[str, str] = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
"""Class of a storage in torch → its type as safetensors names it."""


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor as a checkpoint describes it: elements of the storage `key`, which has `size` of them."""

    key: str
    dtype: str
    size: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Named:
    """Something that the pickle names: module and attribute."""

    module: str
    name: str

    @property
    def text(self) -> str:
        return f"{self.module}.{self.name}"[:96]


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str
    size: int


class CodeInPickle(InvalidSpec):
    """The pickle names what is no part of a state dict. name: what it names."""

    def __init__(self, name: str) -> None:
        super().__init__(
            "file",
            f"its pickle names {name}, which loading would run: only tensors, dictionaries, lists, numbers and text "
            "are read",
            hint="save the weights alone: torch.save(model.state_dict(), path), or safetensors",
        )
        self.name = name


def follow_pickle(data: bytes) -> Any:
    """What the pickle builds: dicts, lists, tuples, numbers, text, and `TensorRecord`. Raises InvalidSpec."""
    if len(data) > MAX_PICKLE_BYTES:
        raise InvalidSpec("file", f"its pickle has {len(data)} bytes, the limit is {MAX_PICKLE_BYTES}")
    machine = _Machine()
    try:
        for step, (opcode, argument, place) in enumerate(pickletools.genops(data)):
            if step >= MAX_STEPS:
                raise InvalidSpec("file", f"its pickle has more than {MAX_STEPS} steps")
            if opcode.name == "STOP":
                if place != len(data) - 1 or len(machine.stack) != 1:
                    raise ValueError("what follows its end, or is left over")
                return machine.stack[0]
            machine.step(opcode.name, argument)
    except InvalidSpec:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InvalidSpec("file", f"its pickle is damaged: {str(error)[:128]}") from error
    raise InvalidSpec("file", "its pickle has no end")


class _Machine:
    """The stack, the marks in it, and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _IGNORED:
            return
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise CodeInPickle(f"the instruction {name}")

    def pop(self) -> Any:
        if self._marks and len(self.stack) <= self._marks[-1]:
            raise ValueError("nothing above a mark")
        return self.stack.pop()

    def to_mark(self) -> list[Any]:
        start = self._marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def mark(self, _: Any) -> None:
        self._marks.append(len(self.stack))

    def put(self, place: Any) -> None:
        self._memo[len(self._memo) if place is None else int(place)] = self.stack[-1]

    def get(self, place: Any) -> None:
        self.stack.append(self._memo[int(place)])

    def tuple_of(self, count: int) -> None:
        taken = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(taken)))

    def tuple_to_mark(self, _: Any) -> None:
        self.stack.append(tuple(self.to_mark()))

    def append(self, _: Any) -> None:
        value = self.pop()
        _need(self.stack[-1], list).append(value)

    def appends(self, _: Any) -> None:
        values = self.to_mark()
        _need(self.stack[-1], list).extend(values)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        _need(self.stack[-1], dict)[_key(key)] = value

    def set_items(self, _: Any) -> None:
        values = self.to_mark()
        if len(values) % 2:
            raise ValueError("a key without its value")
        target = _need(self.stack[-1], dict)
        target.update(zip(map(_key, values[::2]), values[1::2], strict=True))

    def name(self, argument: Any) -> None:
        module, _, name = str(argument).partition(" ")
        self._name(module, name)

    def name_from_stack(self, _: Any) -> None:
        name, module = _need(self.pop(), str), _need(self.pop(), str)
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        named = _Named(module, name)
        if named not in _REBUILDS and not (module == "torch" and name in STORAGES):
            raise CodeInPickle(named.text)
        self.stack.append(named)

    def persistent(self, _: Any) -> None:
        match self.pop():
            case ("storage", _Named("torch", kind), str(key), str(), int(size)) if (
                kind in STORAGES and type(size) is int and 0 <= size < _MAX_SIZE and key.isalnum() and len(key) < 32
            ):
                self.stack.append(_Storage(key, STORAGES[kind], size))
            case _:
                raise ValueError("a reference that is no storage")

    def reduce(self, _: Any) -> None:
        arguments, named = self.pop(), self.pop()
        if not isinstance(named, _Named) or named not in _REBUILDS or not isinstance(arguments, tuple):
            raise ValueError("a call of what cannot be called")
        self.stack.append(_REBUILDS[named](arguments))

    def build(self, _: Any) -> None:
        """State of an OrderedDict: versions of modules, of no use to us."""
        state = self.pop()
        if not isinstance(self.stack[-1], dict) or not isinstance(state, dict):
            raise CodeInPickle("the state of an object")


def _need(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {kind.__name__} was expected")
    return value


def _key(value: Any) -> str | int:
    if not isinstance(value, str | int):
        raise ValueError("a key that is neither text nor a number")
    return value


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise ValueError("an OrderedDict with arguments")
    return {}


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return _sides(arguments[0]) if arguments else ()


def _sides(value: Any) -> tuple[Any, ...]:
    """Looked at before it is copied: a long list that is remembered could be named by every call."""
    if not isinstance(value, tuple | list) or len(value) > MAX_RANK:
        raise ValueError("a shape that no tensor has")
    return tuple(value)


def _parameter(arguments: tuple[Any, ...]) -> TensorRecord:
    if not isinstance(arguments[0], TensorRecord):
        raise ValueError("a parameter that is no tensor")
    return arguments[0]


def _tensor(arguments: tuple[Any, ...]) -> TensorRecord:
    storage, offset, *rest = arguments[:4]
    shape, stride = map(_sides, rest)
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, _Storage) or len(shape) != len(stride):
        raise ValueError("a tensor without its storage")
    if any(type(number) is not int or not 0 <= number < _MAX_SIZE for number in numbers):
        raise ValueError("a tensor with sizes that none has")
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    elements = math.prod(shape)
    if math.prod(max(1, side) for side in shape) >= _MAX_SIZE:  # of empty tensors, too: no array has such sides
        raise ValueError("a tensor with sizes that none has")
    # A view may name one element many times over: a file of a kilobyte would unfold to gigabytes.
    if elements and (last >= storage.size or elements > storage.size):
        raise ValueError("a tensor that is larger than its storage")
    return TensorRecord(storage.key, storage.dtype, storage.size, offset, shape, stride)


_REBUILDS: Mapping[_Named, Callable[[tuple[Any, ...]], Any]] = {
    _Named("collections", "OrderedDict"): _ordered_dict,
    _Named("torch", "Size"): _size,
    _Named("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Named("torch._utils", "_rebuild_parameter"): _parameter,
}
_IGNORED = frozenset(("PROTO", "FRAME"))
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = frozenset(
    ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING")
)
_ACTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": lambda machine, _: machine.put(None),
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": _Machine.tuple_to_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "BINPERSID": _Machine.persistent,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
