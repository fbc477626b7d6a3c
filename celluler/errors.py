"""Every error celluler raises on purpose, in three families that tell the caller what to do.

`LocalError`: fix the call. `PeerViolation`: penalise the peer and disconnect.
`Unavailable`: absent, busy or timed out; try another peer, no penalty.

Data travels as fields, text comes second. `exit_code` is what the command line answers with;
`hint` is the next command to try. This module imports nothing.
"""

from __future__ import annotations

from typing import ClassVar


class CellulerError(Exception):
    """Root of all three families; never raised itself."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str = "", *, peer: str | None = None, hint: str | None = None) -> None:
        super().__init__(message or type(self).__name__)
        self.peer = peer
        self.hint = hint


class LocalError(CellulerError):
    """The call cannot work as made: fix it and call again."""

    exit_code = 2


class InvalidSpec(LocalError):
    """A document written by a person is wrong; `path` names the place (`train.rounds`)."""

    def __init__(self, path: str, problem: str, *, hint: str | None = None) -> None:
        super().__init__(f"{path}: {problem}" if path else problem, hint=hint)
        self.path = path
        self.problem = problem


class Denied(LocalError):
    """The caller has no right to this."""

    exit_code = 5


class NotSupported(LocalError):
    """A standard has this, and this node does not."""


class QuotaExceeded(LocalError):
    """No room: the store's quota or the disk is full, or credit ran out."""

    exit_code = 8


class IntegrityError(LocalError):
    """Our own copy of something does not match its digest or signature (bad disk, torn file)."""

    exit_code = 7


class PeerViolation(CellulerError):
    """A peer sent what no honest peer sends. Penalise and disconnect."""

    exit_code = 7


class ProtocolViolation(PeerViolation):
    """Bytes outside the protocol: wrong tag, arity, type, range, size or order."""


class BadSignature(PeerViolation):
    """A signature that does not verify, or that binds something else."""


class CorruptBlock(PeerViolation):
    """Bytes that do not hash to the digest asked for. `digest`: 32 bytes."""

    def __init__(self, digest: bytes, *, peer: str | None = None) -> None:
        super().__init__(f"bytes do not match digest {digest.hex()[:16]}…", peer=peer)
        self.digest = digest


class Unavailable(CellulerError):
    """Not here, not now. Another peer may serve."""

    exit_code = 6


class NodeNotRunning(Unavailable):
    """No local node answers."""

    exit_code = 3


class NotFound(Unavailable):
    """Nobody asked has it. `what` is the name asked for."""

    exit_code = 4

    def __init__(self, what: str, *, peer: str | None = None, hint: str | None = None) -> None:
        super().__init__(f"not found: {what}", peer=peer, hint=hint)
        self.what = what


class Retracted(NotFound):
    """Its author took this version back. `reason` is what the author says."""

    def __init__(self, what: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{what} was retracted by its author: {reason}", hint=hint)
        self.what = what
        self.reason = reason


class BlockAbsent(NotFound):
    """A block nobody asked holds. `digest`: 32 bytes."""

    def __init__(self, digest: bytes, *, peer: str | None = None) -> None:
        super().__init__(f"block {digest.hex()[:16]}…", peer=peer)
        self.digest = digest


class Busy(Unavailable):
    """The peer or the queue is full; come back later."""


class TimedOut(Unavailable):
    """A deadline passed."""


class NoPeers(Unavailable):
    """Nobody to ask."""


class WorkerFailed(Unavailable):
    """A process of ours ended or answered with an error. `reason` says which.

    limit: which one it ran into: `memory`, `processor`, `file`, `disk`, `threads`, `time`; else None.
    """

    exit_code = 1

    def __init__(self, reason: str, *, limit: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.limit = limit
