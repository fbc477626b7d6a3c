"""An error as JSON and back, so that a client raises what the node raised."""

from __future__ import annotations

from typing import Any

from celluler import errors
from celluler.errors import CellulerError

_EXTRAS = ("path", "problem", "what", "reason", "limit")
_KNOWN = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, CellulerError)}


def describe_error(error: CellulerError) -> dict[str, Any]:
    """`{type, message, hint, exit_code}` and what else the error says in fields.

    type: the nearest of `celluler.errors`; what is finer than that concerns nobody else.
    """
    document: dict[str, Any] = {
        "type": next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _KNOWN),
        "message": str(error),
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    extras = {name: getattr(error, name) for name in (*_EXTRAS, "peer") if getattr(error, name, None)}
    return document | extras


def rebuild_error(document: Any) -> CellulerError:
    """The inverse. A type this version does not know becomes Unavailable, with the message kept."""
    told = document if isinstance(document, dict) else {}
    cls = _KNOWN.get(str(told.get("type")), errors.Unavailable)
    error = cls.__new__(cls)  # the constructors differ; what they would compose is here already
    CellulerError.__init__(
        error, str(told.get("message") or "unknown error"), peer=_text(told.get("peer")), hint=_text(told.get("hint"))
    )
    for name in _EXTRAS:
        setattr(error, name, str(told.get(name) or ""))
    if issubclass(cls, errors.BlockAbsent | errors.CorruptBlock):
        error.digest = b""  # type: ignore[attr-defined]  # not told: the text names it
    return error


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
