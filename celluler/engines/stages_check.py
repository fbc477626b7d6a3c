"""Whether a stage computes what the same layers compute in the whole model: looked into before a peer takes part.

What layers do one after another in one pass over a sequence is held against what they do cut in two, with caches, in
pieces and place by place, beside another sequence. A kind of layer that cannot be cut, such as one that adds positions
again, differs; so does an engine that is built otherwise. The layers are those that were loaded, the inputs random.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from celluler.engines.stages import StageSlots, row_in
from celluler.errors import LocalError
from celluler.inference.stages import Stage, stage_of

TOLERANCE, NARROW_TOLERANCE = 1e-4, 0.06
"""Of the largest value: of float32 weights, and of narrower ones, whose kernels round activations to bfloat16."""
PLACES = 12
_PIECE = 5
_SEED = 20


class SplitDiffers(LocalError):
    """A stage of this model does not compute what the whole model does: it is not to be split here."""


def check_split(stage: Stage, module: nn.Module) -> float:
    """How far the two ways are apart, of the largest value. Raises SplitDiffers.

    module: of the stage, as `load_stage` gives it. Takes memory for two sequences of a few places.
    """
    places = min(PLACES, stage.body.input.shape[0])
    generator = torch.Generator().manual_seed(_SEED)
    given = [_random(stage, places, generator) for _ in range(2)]
    allowed = TOLERANCE if stage.body.dtype == "float32" else NARROW_TOLERANCE
    apart = 0.0
    with torch.inference_mode():
        cut = _Cut(stage, module, places)
        whole = [_whole(stage, module, x) for x in given]
        for place, told in cut.both(given):
            for one, wanted in zip(told, whole, strict=True):
                largest = float(wanted.abs().max()) or 1.0
                apart = max(apart, _apart(one, wanted[place : place + len(one)]) / largest)
                if stage.is_last and not _same_choice(one[-1], wanted[place + len(one) - 1], allowed * largest):
                    raise SplitDiffers("the last stage would draw another token than the whole model")
    if not apart <= allowed:  # also of what is no number
        raise SplitDiffers(f"a stage differs from the whole model by {apart:.2g} of the largest value")
    return apart


class _Cut:
    """The stage as two, where it has two blocks."""

    def __init__(self, stage: Stage, module: nn.Module, places: int) -> None:
        middle = (stage.first + stage.until) // 2
        ends = [(stage.first, middle), (middle, stage.until)] if middle > stage.first else [(stage.first, stage.until)]
        self._parts = [StageSlots(stage_of(stage.body, *end), module, slots=2, length=places) for end in ends]
        self._places, self._is_last = places, stage.is_last

    def both(self, given: list[Tensor]) -> list[tuple[int, list[Tensor]]]:
        """(place of the first that is told, (told, gives) of both sequences), as they are computed: the first by a
        piece and then place by place, the second beside it."""
        piece = min(_PIECE, self._places - 1) or 1
        told = []
        firsts = [self._prefill(slot, given[slot][:piece]) for slot in range(2)]
        told.append((piece - 1, firsts) if self._is_last else (0, firsts))
        for place in range(piece, self._places):
            x = torch.stack([one[place] for one in given])
            for part in self._parts:
                x = part.decode((0, 1), (place, place), x)
            told.append((place, [x[:1], x[1:]]))
        return told

    def _prefill(self, slot: int, x: Tensor) -> Tensor:
        for part in self._parts:
            out = part.prefill(slot, 0, x)
            assert out is not None
            x = out
        return x


def _whole(stage: Stage, module: nn.Module, x: Tensor) -> Tensor:
    """(places, gives): one pass of the layers as they stand in the model."""
    x = x[None]
    for block in stage.blocks:
        x = row_in(module, block)(x)
    return x[0].float()


def _random(stage: Stage, places: int, generator: torch.Generator) -> Tensor:
    if stage.is_first:
        return torch.randint(0, stage.body.vocabulary, (places,), generator=generator)
    return torch.randn((places, stage.given), generator=generator)


def _apart(told: Tensor, wanted: Tensor) -> float:
    return float((told - wanted).abs().max())


def _same_choice(told: Tensor, wanted: Tensor, allowed: float) -> bool:
    """The likeliest is the same, where the whole model leaves no doubt."""
    best = wanted.topk(min(2, len(wanted))).values
    clear = len(best) == 1 or float(best[0] - best[1]) > 2 * allowed
    return not clear or int(told.argmax()) == int(wanted.argmax())
