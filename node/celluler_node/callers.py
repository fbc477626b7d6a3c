"""For whom a request is answered, as far as that decides which arm of a deployment or whose kept answer it gets.

Carried beside the call, in the context of the task that answers it, and of those that it starts: what lies between the
surface and the deployment needs to know nothing of it. Where nobody set one, every call is a session of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from celluler.identity import PeerId
from celluler.inference.deployments import MAX_SESSION_BYTES


class Caller:
    """client: who asks, as told apart by a key; empty for our own user. session: stays with one arm. fresh: no kept
    answer, and keep none. seeded: draws are from a seed that the client chose. preferred: peers that are to be asked
    before others. told: what whoever answered says of how it did, by name."""

    def __init__(self, *, client: str = "", session: str = "", fresh: bool = False) -> None:
        """session: empty where nothing was said; then it is the client's, or drawn."""
        self.client, self.fresh, self.seeded = client, fresh, False
        self.preferred: tuple[PeerId, ...] = ()
        self.told: dict[str, str] = {}
        self._said = bool(session)
        self._session = session or client or secrets.token_hex(16)

    @property
    def session(self) -> str:
        return self._session

    def name_session(self, user: object) -> None:
        """What a body says of who asks, where nothing else did. Anything but a short text says nothing."""
        if not self._said and isinstance(user, str) and 1 <= len(user.encode("utf-8", "replace")) <= MAX_SESSION_BYTES:
            self._session, self._said = f"user:{user}", True


_caller: ContextVar[Caller | None] = ContextVar("celluler_caller", default=None)


def caller() -> Caller:
    """Of the request that this task answers; one of its own where there is none."""
    return _caller.get() or Caller()


@contextmanager
def called_by(one: Caller) -> Iterator[Caller]:
    token = _caller.set(one)
    try:
        yield one
    finally:
        _caller.reset(token)
