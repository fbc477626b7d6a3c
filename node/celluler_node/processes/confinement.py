"""How well a stranger's model is walled in on this machine, and so which of them may run here.

Known before the first worker starts: what the kernel offers is asked of the kernel. What a worker then reports
(`Isolation`) is what holds for that one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from celluler.errors import Denied
from celluler_node.processes import landlock, seccomp
from celluler_node.processes.words import Isolation

FULL, REDUCED, OFF = "full", "reduced", "off"

DECLARATIVE = ("spec",)
"""Bodies that name layers of ours: no operation, argument or file of theirs reaches an engine unchecked."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """level: full, reduced or off. missing: what this system cannot do, in words. foreign: the operator lets bodies of
    others that are not declarative run without the full sandbox."""

    level: str
    missing: tuple[str, ...] = ()
    foreign: bool = False

    @property
    def text(self) -> str:
        """For people: `full`, `reduced: …` or `off: …`."""
        match self.level:
            case "full":
                return FULL
            case "reduced":
                return f"{REDUCED}: {'; '.join(self.missing)}"
        return f"{OFF}: worker.sandbox in the configuration file"

    def may_run(self, body_kind: str, own: bool) -> bool:
        """Whether a model of this kind of body may run here. own: its author is the operator of this node.

        A graph, an ONNX or a GGUF file of a stranger hands arguments of the stranger's choice to engines that were not
        written for that, so it needs walls around the engine.
        """
        return own or self.level == FULL or body_kind in DECLARATIVE or self.foreign

    def require(self, body_kind: str, own: bool) -> None:
        """Raises Denied, with the reason, where `may_run` is false."""
        if not self.may_run(body_kind, own):
            raise Denied(
                f"a {body_kind} model of another peer needs the full sandbox, and here it is {self.text}",
                hint="run it where `celluler status` says isolation: full, or set worker.foreign = true",
            )

    def as_found(self, isolation: Isolation) -> Confinement:
        """The same as far as a worker that has started found it so; never more than was expected."""
        if self.level != FULL or isolation.full:
            return self
        return replace(self, level=REDUCED, missing=isolation.missing)


class Walls:
    """Around the workers of a node: as its machine lets expect, then as the last one that started found them."""

    def __init__(self, expected: Confinement) -> None:
        self._expected = self.seen = expected

    def note(self, isolation: Isolation) -> None:
        self.seen = self._expected.as_found(isolation)


def confinement(*, sandbox: bool, foreign: bool) -> Confinement:
    """Of workers on this machine. sandbox, foreign: `worker.sandbox` and `worker.foreign` of the configuration."""
    if not sandbox:
        return Confinement(OFF, foreign=foreign)
    missing = lacking()
    return Confinement(REDUCED if missing else FULL, missing, foreign)


def lacking() -> tuple[str, ...]:
    """What this system cannot do for a sandbox, in words."""
    if sys.platform != "linux":
        return (f"{sys.platform} has no Landlock and no seccomp",)
    without_files = () if landlock.version() else ("this kernel has no Landlock: files are not confined",)
    without_calls = seccomp.available()
    return without_files if without_calls is None else (*without_files, without_calls)
