"""Decoding with a slot cache: keys and values of all places seen are kept, one new place is computed at a time.

The cache is (slots, length, kv_heads, head_width) for the keys of each attention, and as much for its values. Slots
stand at places of their own (ragged); an attention sees of its slot what stands at its own place and before it, so what
a former sequence left behind in a slot is never seen. The weights are those of the module that answers: every layer but
attention and positions is called as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from celluler.engines.build_layers import AttentionModule, PositionsModule, turn
from celluler.inference.caching import Cached, Heads
from celluler.models.layers import Attention, Layer, Positions, Repeat, Residual, walk
from celluler.models.spec import Architecture


@dataclass(frozen=True, slots=True)
class Where:
    """rows: of the cache. positions: (rows, time). reach: places that any row sees. seen: (rows, 1, time, reach), None
    where each row sees all of them."""

    rows: Tensor | slice
    index: Tensor
    positions: Tensor
    reach: int
    seen: Tensor | None


Step = Callable[[Tensor, Where], Tensor]


class CachedDecoder:
    """See `celluler.engines.generation.decoder.Decoder`."""

    def __init__(self, body: Architecture, module: nn.Module, cached: Cached, slots: int, length: int) -> None:
        self.device = next((one.device for one in module.parameters()), torch.device("cpu"))
        self._filled = [0] * slots
        heads = iter(cached.attentions)
        self._caches: list[KeysAndValues] = []

        def cache() -> KeysAndValues:
            self._caches.append(KeysAndValues(next(heads), slots, length, self.device))
            return self._caches[-1]

        assert isinstance(module, nn.Sequential)
        steps = cached_steps(body.layers, module, cache)
        last = max(place for place, (_, looks_back) in enumerate(steps) if looks_back) + 1
        self._body = tuple(step for step, _ in steps[:last])
        self._head = tuple(step for step, _ in steps[last:])

    def prefill(self, slot: int, tokens: Sequence[int], *, last: bool) -> Tensor | None:
        with torch.inference_mode():
            x, where = self._appended(slot, tokens)
            return self._told(x, where)[0] if last else None

    def score(self, slot: int, tokens: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            x, where = self._appended(slot, tokens)
            return self._through(self._head, x, where)[0].float()

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        at = [self._filled[slot] for slot in slots]
        with torch.inference_mode():
            where = where_of(slots, torch.tensor(at, device=self.device)[:, None], max(at) + 1)
            x = self._through(self._body, torch.tensor(tokens, device=self.device)[:, None], where)
            for slot in slots:
                self._filled[slot] += 1
            return self._told(x, where)

    def copy(self, source: int, target: int, count: int) -> None:
        if source != target and count:
            with torch.inference_mode():
                for cache in self._caches:
                    cache.keys[target, :count] = cache.keys[source, :count]
                    cache.values[target, :count] = cache.values[source, :count]
        self._filled[target] = count

    def _appended(self, slot: int, tokens: Sequence[int]) -> tuple[Tensor, Where]:
        """(1, tokens, width) in front of the head."""
        start = self._filled[slot]
        positions = torch.arange(start, start + len(tokens), device=self.device)[None]
        where = where_of([slot], positions, start + len(tokens))
        x = self._through(self._body, torch.tensor([list(tokens)], device=self.device), where)
        self._filled[slot] = start + len(tokens)
        return x, where

    def _through(self, steps: tuple[Step, ...], x: Tensor, where: Where) -> Tensor:
        for step in steps:
            x = step(x, where)
        return x

    def _told(self, x: Tensor, where: Where) -> Tensor:
        """(rows, vocabulary): behind the last attention each place is on its own, and only the last is asked for."""
        return self._through(self._head, x[:, -1:], where)[:, -1].float()


def where_of(slots: Sequence[int], positions: Tensor, reach: int) -> Where:
    """slots: of the rows. positions: (rows, time). reach: one more than the largest of them."""
    in_a_row = list(slots) == list(range(slots[0], slots[0] + len(slots)))
    index = torch.tensor(list(slots), device=positions.device)
    seen = torch.arange(reach, device=positions.device) <= positions[:, None, :, None]
    rows = slice(slots[0], slots[0] + len(slots)) if in_a_row else index
    return Where(rows, index[:, None], positions, reach, None if bool(seen.all()) else seen)


class KeysAndValues:
    """Of one attention, (slots, length, kv_heads, head_width) each."""

    def __init__(self, heads: Heads, slots: int, length: int, device: torch.device) -> None:
        shape = (slots, length, heads.groups, heads.width)
        self.keys, self.values = (torch.zeros(shape, device=device) for _ in range(2))


def cached_steps(
    layers: tuple[Layer, ...], module: nn.Sequential, cache: Callable[[], KeysAndValues]
) -> list[tuple[Step, bool]]:
    """What each layer does, repeats unrolled, and whether it looks at other places or asks for its own."""
    steps: list[tuple[Step, bool]] = []
    for layer, one in zip(layers, module, strict=True):
        match layer:
            case Repeat():
                for copy in one.children():
                    assert isinstance(copy, nn.Sequential)
                    steps += cached_steps(layer.layers, copy, cache)
            case Residual():
                assert isinstance(one, nn.Sequential)
                branch = tuple(step for step, _ in cached_steps(layer.layers, one, cache))
                looks_back = any(isinstance(inner, Attention | Positions) for inner in walk(layer.layers))
                steps.append((_Added(branch), looks_back))
            case Attention():
                assert isinstance(one, AttentionModule)
                steps.append((_CachedAttention(one, cache()), True))
            case Positions():
                assert isinstance(one, PositionsModule)
                steps.append((_AtPositions(one), True))
            case _:
                steps.append((_Pointwise(one), False))
    return steps


class _Pointwise:
    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, x: Tensor, where: Where) -> Tensor:
        out: Tensor = self._module(x)
        return out


class _Added:
    def __init__(self, branch: tuple[Step, ...]) -> None:
        self._branch = branch

    def __call__(self, x: Tensor, where: Where) -> Tensor:
        out = x
        for step in self._branch:
            out = step(out, where)
        return x + out


class _AtPositions:
    def __init__(self, module: PositionsModule) -> None:
        self._module = module

    def __call__(self, x: Tensor, where: Where) -> Tensor:
        return x + self._module.weight[where.positions]


class _CachedAttention:
    def __init__(self, module: AttentionModule, cache: KeysAndValues) -> None:
        self._module, self._cache = module, cache

    def __call__(self, x: Tensor, where: Where) -> Tensor:  # (rows, time, n)
        its, cache = self._module, self._cache
        rows, time = x.shape[:2]
        query = its.query(x).view(rows, time, its.heads, its.head_width)
        key = its.key(x).view(rows, time, its.groups, its.head_width)
        if its.turns is not None:
            cosine, sine = (of.to(x.device)[where.positions][:, :, None] for of in its.turns)
            query, key = turn(query, cosine, sine), turn(key, cosine, sine)
        cache.keys[where.index, where.positions] = key.float()
        cache.values[where.index, where.positions] = its.value(x).view(key.shape).float()
        keys, values = (of[where.rows, : where.reach].transpose(1, 2) for of in (cache.keys, cache.values))
        # Queries of several heads that share keys stand as if they were several places: keys are not repeated.
        shared = its.heads // its.groups
        asked = query.float().view(rows, time, its.groups, shared, its.head_width).permute(0, 2, 3, 1, 4).flatten(2, 3)
        seen = None if where.seen is None else where.seen.repeat(1, 1, shared, 1)
        told = nn.functional.scaled_dot_product_attention(asked, keys, values, attn_mask=seen)
        told = told.view(rows, its.groups, shared, time, its.head_width).permute(0, 3, 1, 2, 4).reshape(x.shape)
        out: Tensor = its.output(told)
        return out
