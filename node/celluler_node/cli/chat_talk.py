"""A conversation with a model, and how it is to answer. Pure; asks nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from celluler.client.calls_text import SamplingFields
from celluler.errors import InvalidSpec
from celluler.views import Generation

Message = dict[str, str]
NEXT_TURN = "\nuser:"
"""How the user's next turn begins in a prompt without a template."""


def _whole(text: str) -> int:
    return int(text)


SETTINGS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": _whole,
    "seed": _whole,
    "max_tokens": _whole,
    "stop": lambda text: [text],
    "timeout_s": float,
}
"""What `/set` knows, and how it is read. What a value may be, the node says."""


@dataclass(frozen=True, slots=True)
class Talk:
    """model: that is asked. system: what it is told first, empty for nothing. turns: of user and assistant in turn.
    said: how to answer. last: what it answered last. plain: it has no chat template, and would go on
    with what the user might say next."""

    model: str
    system: str = ""
    turns: tuple[Message, ...] = ()
    said: SamplingFields = field(default_factory=SamplingFields)
    last: Generation | None = None
    plain: bool = False

    @property
    def how(self) -> SamplingFields:
        """What is asked with."""
        if not self.plain or self.said.get("stop"):
            return self.said
        return {**self.said, "stop": [NEXT_TURN]}

    def asked(self, text: str) -> list[Message]:
        """What to send for the next turn."""
        before = [{"role": "system", "content": self.system}] if self.system else []
        return [*before, *self.turns, {"role": "user", "content": text}]

    def answered(self, text: str, told: Generation) -> Talk:
        """With that turn and what was written to it, whole or as far as it came."""
        turns = (*self.turns, {"role": "user", "content": text}, {"role": "assistant", "content": told.text})
        return replace(self, turns=turns, last=told)

    def cleared(self) -> Talk:
        """The same from the beginning on."""
        return replace(self, turns=())

    def set(self, text: str) -> Talk:
        """text: `temperature 0.2`; without a value what was usual before. Raises InvalidSpec."""
        name, _, value = text.partition(" ")
        if name not in SETTINGS:
            raise InvalidSpec(name or "set", "is not known", hint=f"one of {', '.join(SETTINGS)}")
        said = cast(dict[str, Any], dict(self.said))
        said.pop(name, None)
        if value.strip():
            try:
                said[name] = SETTINGS[name](value.strip())
            except ValueError:
                raise InvalidSpec(name, f"is no number: {value.strip()[:32]!r}") from None
        return replace(self, said=cast(SamplingFields, said))

    def document(self) -> dict[str, Any]:
        """What is saved."""
        told = {key: value for key, value in self.said.items() if value not in (None, [])}
        return {"model": self.model, "system": self.system, "messages": list(self.turns), "sampling": told}
