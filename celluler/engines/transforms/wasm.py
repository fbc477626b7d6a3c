"""A WebAssembly module as a step: compiled once, run in a fresh instance for every call, with nothing to reach out by.

Deterministic: no threads, no relaxed SIMD, one form of NaN, and the fuel says when it ends, not the clock.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.errors import InvalidSpec, LocalError
from celluler.models.layers import Signal
from celluler.models.transforms.base import ITEM_BYTES, numpy_dtype
from celluler.models.transforms.programs import (
    WASM_FUEL_A_CALL,
    WASM_FUEL_A_SAMPLE,
    WASM_INPUT_BYTES,
    WASM_MEMORY_BYTES,
    Wasm,
)
from celluler.models.transforms.run import Program

STACK_BYTES = 256 << 10
_SETTINGS = {
    "consume_fuel": True,
    "parallel_compilation": False,
    "max_wasm_stack": STACK_BYTES,
    # Bounds are checked by the code itself: no signal handlers, and no gigabytes of reserved addresses. A memory has
    # all that it may grow to reserved, or else it would be copied whenever it grows.
    "signals_based_traps": False,
    "memory_reservation": WASM_MEMORY_BYTES,
    "memory_guard_size": 0,
    "memory_reservation_for_growth": 0,
    "cranelift_nan_canonicalization": True,
    "wasm_threads": False,
    "wasm_relaxed_simd": False,
    "wasm_memory64": False,
    "wasm_multi_memory": False,
}
_EXPORTS = {"alloc": (("i32",), ("i32",)), "run": (("i32", "i32"), ("i32",))}


def wasm_program(step: Wasm, given: Signal) -> Program:
    """Raises InvalidSpec for a module that does not compile or exports other things, LocalError without wasmtime."""
    try:
        import wasmtime  # noqa: PLC0415
    except ImportError as error:
        hint = "pip install 'celluler[transforms]'"
        raise LocalError("a wasm step needs the package wasmtime", hint=hint) from error
    engine = wasmtime.Engine(_config(wasmtime))
    try:
        module = wasmtime.Module(engine, step.module)
    except wasmtime.WasmtimeError as error:
        raise InvalidSpec("module", f"does not compile: {str(error)[:256]}") from error
    _check_exports(wasmtime, module)
    dtype = numpy_dtype(step.dtype).newbyteorder("<")
    sample_bytes = int(np.prod(step.shape)) * ITEM_BYTES[step.dtype]

    fitting = WASM_INPUT_BYTES // (given.elements * ITEM_BYTES[given.dtype]), WASM_MEMORY_BYTES // 4 // sample_bytes
    most = max(1, min(fitting))

    def run(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate([piece(x[start : start + most]) for start in range(0, len(x), most)])

    def piece(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        data = x.astype(x.dtype.newbyteorder("<"), copy=False).tobytes()
        try:
            raw = _call(wasmtime, engine, module, data, len(x), len(x) * sample_bytes)
        except wasmtime.Trap as error:
            raise InvalidSpec("", _told(wasmtime, error)) from None
        except wasmtime.WasmtimeError as error:
            raise InvalidSpec("", str(error).splitlines()[0][:256]) from None
        return np.frombuffer(raw, dtype).reshape(len(x), *step.shape).astype(step.dtype)

    if given.elements * ITEM_BYTES[given.dtype] + sample_bytes > WASM_MEMORY_BYTES // 2:
        raise InvalidSpec("shape", f"with what is given takes more than half of {WASM_MEMORY_BYTES} bytes")
    return run


def _call(wasmtime: Any, engine: Any, module: Any, data: bytes, samples: int, answer_bytes: int) -> bytearray:
    store = wasmtime.Store(engine)
    store.set_limits(memory_size=WASM_MEMORY_BYTES, table_elements=10_000, instances=1, tables=4, memories=1)
    store.set_fuel(min(WASM_FUEL_A_CALL, samples * WASM_FUEL_A_SAMPLE))
    exports = wasmtime.Instance(store, module, []).exports(store)
    memory = exports["memory"]

    def room(pointer: int, size: int, what: str) -> int:
        start = pointer & 0xFFFFFFFF
        if start + size > memory.data_len(store):
            raise InvalidSpec("", f"{what} {size} bytes from {start} on, outside its memory")
        return start

    place = room(exports["alloc"](store, len(data)), len(data), "wants the input in")
    memory.write(store, data, place)
    # An i32 is signed here, and a pointer is not.
    signed = place - (1 << 32) if place >= 1 << 31 else place
    answer = room(exports["run"](store, samples, signed), answer_bytes, "says that the answer is in")
    found: bytearray = memory.read(store, answer, answer + answer_bytes)
    return found


def _config(wasmtime: Any) -> Any:
    config = wasmtime.Config()
    for name, value in _SETTINGS.items():
        if not isinstance(getattr(type(config), name, None), property):
            hint = "pip install --upgrade 'celluler[transforms]'"
            raise LocalError(f"this wasmtime is too old: it has no {name}", hint=hint)
        setattr(config, name, value)
    return config


def _check_exports(wasmtime: Any, module: Any) -> None:
    if module.imports:
        raise InvalidSpec("module", "imports something, and is given nothing")
    exports = {one.name: one.type for one in module.exports}
    if not isinstance(exports.get("memory"), wasmtime.MemoryType):
        raise InvalidSpec("module", "exports no memory")
    for name, wanted in _EXPORTS.items():
        kind = exports.get(name)
        found = isinstance(kind, wasmtime.FuncType) and (_names(kind.params), _names(kind.results))
        if found != wanted:
            raise InvalidSpec("module", f"exports no {name}({', '.join(wanted[0])}) -> {wanted[1][0]}")


def _names(types: Any) -> tuple[str, ...]:
    return tuple(str(one) for one in types)


def _told(wasmtime: Any, trap: Any) -> str:
    if trap.trap_code == wasmtime.TrapCode.OUT_OF_FUEL:
        return f"ran for more than {WASM_FUEL_A_SAMPLE} units of fuel a sample, or {WASM_FUEL_A_CALL} a call"
    kind = trap.trap_code
    return f"trapped: {'unknown' if kind is None else kind.name.lower().replace('_', ' ')}"
