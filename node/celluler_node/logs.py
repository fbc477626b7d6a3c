"""Where events go. Structured: a stable name (`process.ended`) and fields, as one line of JSON or one for a person.

`set_up` is called once, by the program's entry; modules say `structlog.get_logger()`, which names them, or name an area
of several, `structlog.get_logger("celluler.<area>")`. What libraries log through the standard library takes the same
way, from WARNING up.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import structlog

from celluler.identity import short

Level = Literal["debug", "info", "warning", "error"]
Form = Literal["json", "console"]

_OURS = ("celluler", "celluler_protocols", "celluler_node")
MAX_FILE_BYTES = 10 << 20
KEPT_FILES = 3

_PEER_FIELDS = frozenset({"peer", "signer", "author", "coordinator", "leader", "member", "provider", "by"})
_PEER_ID_CHARACTERS = 46  # the shortest


@dataclass(frozen=True, slots=True)
class LogConfig:
    """file: None for stderr. A file is private to its owner, and rotated at 10 MiB."""

    level: Level = "info"
    form: Form = "console"
    file: Path | None = None


def set_up(config: LogConfig, *, stream: TextIO | None = None) -> None:
    """Send all events of this process there from here on. stream: instead of stderr. Raises OSError for the file."""
    handler = _handler(config, stream or sys.stderr)
    handler.setFormatter(_formatter(config.form, colours=config.file is None and (stream or sys.stderr).isatty()))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for ours in _OURS:
        logging.getLogger(ours).setLevel(config.level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def shorten_peers(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor: fields that name a peer show its last eight characters."""
    for name in _PEER_FIELDS & event.keys():
        if isinstance(event[name], str) and len(event[name]) >= _PEER_ID_CHARACTERS:
            event[name] = short(event[name])
    return event


def _shared() -> list[Any]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        shorten_peers,
    ]


def _formatter(form: Form, *, colours: bool) -> logging.Formatter:
    """Exceptions are one field in JSON, and a plain traceback on a console."""
    drawing: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form == "json":
        drawing += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        plain = structlog.dev.plain_traceback
        drawing += [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain)]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_shared(), processors=drawing)


def _handler(config: LogConfig, stream: TextIO) -> logging.Handler:
    if config.file is None:
        return logging.StreamHandler(stream)
    config.file.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(config.file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600))
    return _PrivateRotation(config.file, maxBytes=MAX_FILE_BYTES, backupCount=KEPT_FILES, encoding="utf-8")


class _PrivateRotation(logging.handlers.RotatingFileHandler):
    """Its next file is as private as its first."""

    def _open(self) -> Any:
        descriptor = os.open(self.baseFilename, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        return open(descriptor, "a", encoding=self.encoding)
