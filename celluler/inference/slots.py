"""Which slot a prompt goes to: one that holds its beginning already, or the one whose content is oldest.

Beginnings are shared between sequences of one client alone: who may see by the time of an answer what others have
asked could guess at it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class _Held:
    client: str = ""
    tokens: list[int] = field(default_factory=list)
    used: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """source: the slot that holds the first `shared` tokens, None when there are none of use."""

    slot: int
    source: int | None
    shared: int


class SlotBook:
    """What the slots hold, as the worker knows it; a slot that is free still holds what it held."""

    def __init__(self, slots: int) -> None:
        self._held = [_Held() for _ in range(slots)]
        self._clock = 0

    def place(self, client: str, prompt: tuple[int, ...], free: list[int]) -> Place:
        """The place of a prompt in one of these slots, at least one; from now on it holds what is shared alone."""
        shared = [self._shared(held, client, prompt) for held in self._held]
        best = max(shared)
        slot = min(free, key=lambda one: (best == 0 or shared[one] < best, self._held[one].used, one))
        source = None if best == 0 else slot if shared[slot] == best else shared.index(best)
        self._clock += 1
        self._held[slot] = _Held(client, list(prompt[:best]), self._clock)
        return Place(slot, source, best)

    def extend(self, slot: int, tokens: tuple[int, ...]) -> None:
        """The worker has computed these places too."""
        self._clock += 1
        held = self._held[slot]
        held.tokens += tokens
        held.used = self._clock

    def held(self, slot: int) -> int:
        """Places."""
        return len(self._held[slot].tokens)

    def clear(self) -> None:
        """Of a new worker."""
        self._held = [_Held() for _ in self._held]

    @staticmethod
    def _shared(held: _Held, client: str, prompt: tuple[int, ...]) -> int:
        """Places that the prompt needs not have computed; never that of its last token, which tells what comes next."""
        if held.client != client:
            return 0
        most = min(len(held.tokens), len(prompt) - 1)
        return next((at for at in range(most) if held.tokens[at] != prompt[at]), most)
