"""What a person types into a chat: turns of one line or several, and commands. Pure; reads nothing and asks nobody.

A command begins with `/`; `//` begins a turn that begins with one. A line that begins with three quotation marks opens
a turn of several lines, which ends where a line ends in three.
"""

from __future__ import annotations

from dataclasses import dataclass

from celluler.errors import InvalidSpec

FENCE = '"""'
MAX_TURN_CHARS = 1 << 19


@dataclass(frozen=True, slots=True)
class Turn:
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """name: without its slash. argument: the rest of the line."""

    name: str
    argument: str


class Lines:
    """Lines in, turns and commands out."""

    def __init__(self) -> None:
        self._block: list[str] | None = None

    @property
    def open(self) -> bool:
        """A turn of several lines is not complete."""
        return self._block is not None

    def feed(self, line: str) -> Turn | Command | None:
        """None for an empty line, and while a turn is not complete. Raises InvalidSpec for one that is too long, and
        forgets it."""
        line = line.rstrip("\r\n")
        if self._block is not None:
            return self._in_block(line)
        if line.startswith(FENCE):
            self._block = []
            return self._in_block(line[len(FENCE) :])
        if line.startswith("//"):
            return Turn(line[1:])
        if line.startswith("/"):
            name, _, argument = line[1:].strip().partition(" ")
            return Command(name, argument.strip())
        return Turn(line) if line.strip() else None

    def end(self) -> Turn | None:
        """No line follows: what is open is over."""
        if self._block is None:
            return None
        text = "\n".join(self._block)
        self._block = None
        return Turn(text) if text.strip() else None

    def drop(self) -> None:
        """Forget what is open."""
        self._block = None

    def _in_block(self, line: str) -> Turn | None:
        assert self._block is not None
        ended = line.rstrip().endswith(FENCE)
        self._block.append(line.rstrip()[: -len(FENCE)] if ended else line)
        if sum(map(len, self._block)) > MAX_TURN_CHARS:
            self._block = None
            raise InvalidSpec("turn", f"is longer than {MAX_TURN_CHARS} characters")
        return self.end() if ended else None
