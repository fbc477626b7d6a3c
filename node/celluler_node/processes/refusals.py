"""The answer of a worker that was started for one file: the file, or what was wished of it, is at fault.

It is told apart from a failure of the worker, and comes back as the error that it was. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celluler.errors import InvalidSpec, LocalError
from celluler.wire import Text

_MAX_BYTES = 1000


@dataclass(frozen=True, slots=True)
class Refused:
    """path, problem, hint: as of `InvalidSpec`; path may be empty."""

    path: Text
    problem: Text
    hint: Text

    def as_error(self) -> InvalidSpec:
        return InvalidSpec(self.path, self.problem, hint=self.hint or None)


def refusing(handler: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """A handler of requests without blobs, whose errors of ours are answers."""

    def handle(request: Any, _: Any) -> Any:
        try:
            return handler(request)
        except InvalidSpec as error:
            return Refused(clipped(error.path), clipped(error.problem), clipped(error.hint or ""))
        except LocalError as error:
            return Refused("", clipped(str(error)), clipped(error.hint or ""))

    return handle


def clipped(text: str) -> str:
    """As much as a record takes, and Unicode whatever a file held."""
    return text.encode("utf-8", "replace")[:_MAX_BYTES].decode("utf-8", "ignore")
