"""A stage of a body at work: its own layers alone, with their slot cache, on hidden states of places of sequences.

Its modules bear the names that they have in the whole body, so that weights find their places as they do there. Only
the tensors of the stage are read, out of a file of which the rest may be holes. See `celluler.inference.stages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from celluler.engines.build import row_of
from celluler.engines.generation.cached import KeysAndValues, Step, cached_steps, where_of
from celluler.engines.narrow import put, put_narrow
from celluler.errors import InvalidSpec, LocalError
from celluler.inference.caching import MAX_SLOTS
from celluler.inference.stages import Block, Stage
from celluler.models.memory import RUNTIME_BYTES, DoesNotFit
from celluler.models.narrow import is_narrow
from celluler.models.weights import TensorView, check_weights, map_floats


def load_stage(stage: Stage, weights: Path) -> nn.Module:
    """The modules of its blocks, in eval, under their names in the whole body. weights: holes where others' tensors
    are.

    Raises InvalidSpec for a file that does not fit, or holds values of this stage that are not finite.
    """
    body, views = stage.body, check_weights(stage.body, weights)
    module = _skeleton(stage)
    wide = {tensor.name for tensor in stage.tensors if body.dtype == "float32" or not is_narrow(tensor.shape)}
    still = {one.name: _bytes(weights, views[one.name]) for one in stage.stored if one.name not in wide}
    for tensor in stage.tensors:
        if tensor.name not in wide:
            continue
        values = map_floats(weights, views[tensor.name].start, tensor.elements)
        if not np.isfinite(values).all():
            raise InvalidSpec(f"weights.{tensor.name}", "holds values that are not finite")
        put(module, tensor, torch.from_numpy(values).view(tensor.shape))
    for tensor in stage.tensors:  # behind all others: a linear layer takes its bias with it
        if tensor.name not in wide:
            put_narrow(module, tensor, body, still)
    return module.eval()


def _bytes(weights: Path, view: TensorView) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.fromfile(weights, dtype=np.uint8, count=view.end - view.start, offset=view.start)


def _skeleton(stage: Stage) -> nn.Module:
    module = nn.Module()
    for block in stage.blocks:
        row = row_of(block.layers, block.given)
        place, _, copy = block.path.partition(".")
        if not copy:
            module.add_module(place, row[0])
            continue
        if not hasattr(module, place):
            module.add_module(place, nn.Module())
        module.get_submodule(place).add_module(copy, row)
    return module


def row_in(module: nn.Module, block: Block) -> nn.Sequential:
    """The layers of a block, in a module that `load_stage` made."""
    held = module.get_submodule(block.path)
    if not block.repeated:
        return nn.Sequential(held)
    assert isinstance(held, nn.Sequential)
    return held


class StageSlots:
    """Sequences in slots, each as far as it was given. Every method raises LocalError for what does not fit, and has
    then changed nothing."""

    def __init__(
        self, stage: Stage, module: nn.Module, *, slots: int, length: int, memory_bytes: int | None = None
    ) -> None:
        """module: as `load_stage` gives it, of this stage or a wider one. length: places of a slot. memory_bytes: what
        this process may take. Raises DoesNotFit before anything is allocated."""
        longest = stage.body.input.shape[0]
        if not 1 <= slots <= MAX_SLOTS or not 1 <= length <= longest:
            raise LocalError(f"{slots} slots of {length} places: must be 1…{MAX_SLOTS} of 1…{longest}")
        self.stage, self.length = stage, length
        self.cache_bytes = stage.cached.byte_count(slots, length)
        needed = RUNTIME_BYTES + stage.weight_bytes + self.cache_bytes
        if memory_bytes is not None and needed > memory_bytes:
            raise DoesNotFit(f"a stage with {slots} slots of {length} places", needed, memory_bytes)
        self._filled = [0] * slots
        device = next((one.device for one in module.parameters()), torch.device("cpu"))
        heads = iter(stage.cached.attentions)

        def cache() -> KeysAndValues:
            return KeysAndValues(next(heads), slots, length, device)

        steps: list[tuple[Step, bool]] = []
        for block in stage.blocks:
            steps += cached_steps(block.layers, row_in(module, block), cache)
        # Behind the last layer that looks at other places only the last place of a sequence is asked for.
        last = max((place for place, (_, looks_back) in enumerate(steps) if looks_back), default=-1) + 1
        self._body = tuple(step for step, _ in (steps[:last] if stage.is_last else steps))
        self._head = tuple(step for step, _ in (steps[last:] if stage.is_last else ()))
        self._device = device

    def filled(self, slot: int) -> int:
        """Places that are held."""
        return self._filled[self._slot(slot)]

    def prefill(self, slot: int, start: int, x: Tensor, *, told: bool = True) -> Tensor | None:
        """Places from `start` on, which is not behind the last one held; what stood there and behind it is forgotten.

        x: (places) int64 at the first stage, else (places, width) float32 → (places, gives) float32, of the last stage
        (1, gives): logits behind the last place. None unless `told`.
        """
        count = self._check([slot], [start], x, len(x))
        with torch.inference_mode():
            positions = torch.arange(start, start + count, device=self._device)[None]
            return self._run([slot], positions, x[None], told=told)

    def decode(self, slots: Sequence[int], starts: Sequence[int], x: Tensor) -> Tensor:
        """One place of each of several sequences. slots: ascending. x: (rows) int64 or (rows, width) float32 → (rows,
        gives) float32."""
        if len(x) != len(slots) or any(one >= other for one, other in pairwise(slots)):
            raise LocalError("slots to decode must ascend, each with one place")
        self._check(slots, starts, x, 1)
        with torch.inference_mode():
            positions = torch.tensor(list(starts), device=self._device)[:, None]
            out = self._run(slots, positions, x[:, None], told=True)
        assert out is not None
        return out

    def clear(self, slot: int) -> None:
        """Of a sequence that is over."""
        self._filled[self._slot(slot)] = 0

    def _run(self, slots: Sequence[int], positions: Tensor, x: Tensor, *, told: bool) -> Tensor | None:
        where = where_of(slots, positions, int(positions.max()) + 1)
        x = x.to(self._device)
        for step in self._body:
            x = step(x, where)
        for slot, end in zip(slots, (positions[:, -1] + 1).tolist(), strict=True):
            self._filled[slot] = end
        if not told:
            return None
        if self.stage.is_last:
            x = x[:, -1:]
            for step in self._head:
                x = step(x, where)
        return x.flatten(0, 1).float()

    def _check(self, slots: Sequence[int], starts: Sequence[int], x: Tensor, count: int) -> int:
        width = self.stage.given
        if tuple(x.shape[1:]) != ((width,) if width else ()) or x.is_floating_point() is not bool(width) or not len(x):
            raise LocalError(f"{x.dtype} of shape {tuple(x.shape)}: this stage takes width {width}")
        if not width and not bool(((x >= 0) & (x < self.stage.body.vocabulary)).all()):
            raise LocalError(f"a token that is not below {self.stage.body.vocabulary}")
        for slot, start in zip(slots, starts, strict=True):
            if not 0 <= start <= self.filled(slot):
                raise LocalError(f"slot {slot} holds {self.filled(slot)} places, {start} would leave a gap")
            if start + count > self.length:
                raise LocalError(f"slot {slot} has {self.length} places")
        return count

    def _slot(self, slot: int) -> int:
        if not 0 <= slot < len(self._filled):
            raise LocalError(f"there is no slot {slot}, there are {len(self._filled)}")
        return slot
