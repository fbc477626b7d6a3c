"""Slots that generate: a prompt goes in by chunks, tokens are drawn from what the model says, one a step.

Whoever calls decides who gets a slot and when (`celluler.inference.scheduler`); nothing here waits or knows of clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from torch import Tensor, nn

from celluler.engines.generation.constraint import Allowed, Constraint
from celluler.engines.generation.decoder import Decoder, open_decoder
from celluler.errors import LocalError
from celluler.inference.caching import MAX_SLOTS, Cached, Recomputed, caching_of, longest_of
from celluler.inference.requests import Drawn, Stepped
from celluler.inference.sampling import Chosen, Logits, Sampling, UndefinedLogits, choose
from celluler.models.body import Body
from celluler.models.memory import RUNTIME_BYTES, DoesNotFit
from celluler.models.transforms.decoding import TextCodec, TextStream

_READ_BEFORE = 8
"""Tokens of the prompt that a text's reading begins with: how a token reads depends on those before it."""


@dataclass(slots=True)
class _Slot:
    """held: tokens whose places the decoder holds. left: of the prompt, to be prefilled. token: drawn, to be decoded
    next. drawn: how many were. stream: reads them. constraint: what may be drawn."""

    held: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    sampling: Sampling | None = None
    token: int | None = None
    drawn: int = 0
    stream: TextStream | None = None
    constraint: Constraint | None = None


class GeneratingSlots:
    """Made of a loaded model. Every method raises LocalError for a slot or a token that does not fit, and has then
    changed nothing."""

    def __init__(
        self,
        body: Body,
        module: nn.Module,
        *,
        slots: int,
        length: int | None = None,
        memory_bytes: int | None = None,
        codec: TextCodec | None = None,
    ) -> None:
        """module: of the body, in eval. length: places of a slot; None: as many as the model looks at. memory_bytes:
        what this process may take. codec: reads what is drawn.

        Raises InvalidSpec for a model that does not tell the next token, DoesNotFit before anything is allocated.
        """
        longest = longest_of(body)
        self.length = longest if length is None else length
        if not 1 <= slots <= MAX_SLOTS or not 1 <= self.length <= longest:
            raise LocalError(f"{slots} slots of {self.length} places: must be 1…{MAX_SLOTS} of 1…{longest}")
        self.caching = caching_of(body)
        self.cache_bytes = self.caching.byte_count(slots, self.length) if isinstance(self.caching, Cached) else 0
        needed = RUNTIME_BYTES + body.parameter_bytes + self.cache_bytes
        if memory_bytes is not None and needed > memory_bytes:
            raise DoesNotFit(f"a cache of {slots} slots of {self.length} places", needed, memory_bytes)
        self.vocabulary = body.vocabulary
        self._codec = codec
        self._decoder: Decoder = open_decoder(body, module, self.caching, slots, self.length)
        self._slots = [_Slot() for _ in range(slots)]

    @property
    def why_not_cached(self) -> str:
        """Empty when there is a cache."""
        return self.caching.why if isinstance(self.caching, Recomputed) else ""

    def admit(
        self,
        slot: int,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        source: int | None = None,
        shared: int = 0,
        drawn: int = 0,
        constraint: Constraint | None = None,
    ) -> None:
        """Begin a sequence in a slot that was released, or never used.

        source, shared: the first so many places are those of that slot, busy or not, and are not computed again; less
        than the whole prompt, since its last token has to be. drawn: so many tokens at the end of the prompt belong to
        the answer: what is drawn and read goes on behind them. constraint: of the answer, from its beginning.
        """
        its = self._slot(slot)
        if its.sampling is not None:
            raise LocalError(f"slot {slot} is in use")
        if not 1 <= len(prompt) <= self.length:
            raise LocalError(f"a prompt of {len(prompt)} tokens, must be 1…{self.length}")
        if not all(0 <= token < self.vocabulary for token in prompt):
            raise LocalError(f"a token of the prompt is not below {self.vocabulary}")
        if not 0 <= drawn < len(prompt):
            raise LocalError(f"{drawn} tokens of an answer in a prompt of {len(prompt)}")
        kept = [] if source is None else self._slot(source).held[:shared]
        if not 0 <= shared < len(prompt) or kept != list(prompt[:shared]):
            raise LocalError(f"slot {source} does not hold the first {shared} tokens of the prompt")
        self._decoder.copy(slot if source is None else source, slot, shared)
        left, stream = list(prompt[shared:]), self._reading(prompt, drawn)
        if constraint is not None:
            for token in prompt[len(prompt) - drawn :]:
                constraint.take(token)
        self._slots[slot] = _Slot(kept, left, sampling, drawn=drawn, stream=stream, constraint=constraint)

    def step(self, prefill: int | None, count: int, decode: Sequence[int]) -> Stepped:
        """Prefill one slot by at most `count` tokens, then let others go on by one token, all at once.

        decode: ascending, slots of which a token was drawn and which have places left. A slot whose prompt is complete
        draws its first token, and decodes from the next step on.
        """
        self._check(prefill, count, decode)
        drawn: list[Drawn] = []
        left = 0
        if prefill is not None:
            its = self._slots[prefill]
            some, its.left = its.left[:count], its.left[count:]
            left = len(its.left)
            logits = self._decoder.prefill(prefill, some, last=not left)
            its.held += some
            if logits is not None:
                drawn += self._draw([prefill], logits[None])
        if decode:
            tokens = [token for slot in decode if (token := self._slots[slot].token) is not None]
            told = self._decoder.decode(decode, tokens)
            for slot, token in zip(decode, tokens, strict=True):
                self._slots[slot].held.append(token)
            drawn += self._draw(decode, told)
        return Stepped(left, tuple(drawn))

    def release(self, slot: int) -> None:
        """The sequence is over, whatever it was at. What the slot holds may be shared until it is admitted to again."""
        its = self._slot(slot)
        its.sampling, its.token, its.left, its.constraint = None, None, [], None

    def _check(self, prefill: int | None, count: int, decode: Sequence[int]) -> None:
        if prefill is not None and (count < 1 or not self._slot(prefill).left):
            raise LocalError(f"nothing is left to prefill in slot {prefill}, or nothing of it asked for")
        if any(one >= other for one, other in pairwise(decode)):
            raise LocalError("slots to decode must ascend")
        for slot in decode:
            its = self._slot(slot)
            if its.token is None or len(its.held) >= self.length:
                raise LocalError(f"slot {slot} has no token to go on with, or no place for it")

    def _draw(self, slots: Sequence[int], logits: Tensor) -> list[Drawn]:
        rows = logits[:, : self.vocabulary].cpu().numpy()
        return [self._drawn(slot, self._slots[slot], row) for slot, row in zip(slots, rows, strict=True)]

    def _drawn(self, slot: int, its: _Slot, logits: Logits) -> Drawn:
        constraint = its.constraint
        chosen = self._chosen(its, logits, None if constraint is None else constraint.allowed())
        if constraint is None or chosen is None:
            return Drawn(slot, chosen)
        constraint.take(chosen.token)
        return Drawn(slot, chosen, constraint.over)

    def _chosen(self, its: _Slot, logits: Logits, allowed: Allowed | None) -> Chosen | None:
        assert its.sampling is not None
        try:
            chosen = choose(logits, its.sampling, its.drawn, allowed)
        except UndefinedLogits:
            its.token = None
            return None
        its.token, its.drawn = chosen.token, its.drawn + 1
        if its.stream is None:
            return chosen
        top_texts = tuple(its.stream.peek(token) for token, _ in chosen.top)
        return replace(chosen, text=its.stream.feed(chosen.token), top_texts=top_texts)

    def _reading(self, prompt: Sequence[int], drawn: int) -> TextStream | None:
        if self._codec is None:
            return None
        stream = self._codec.stream()
        for token in prompt[max(0, len(prompt) - drawn - _READ_BEFORE) :]:
            stream.feed(token)
        return stream

    def _slot(self, slot: int) -> _Slot:
        if not 0 <= slot < len(self._slots):
            raise LocalError(f"there is no slot {slot}, there are {len(self._slots)}")
        return self._slots[slot]
