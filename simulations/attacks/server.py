"""A real node that serves another model than the one it is asked for, and says and signs that it is the one.

`python -m simulations.attacks.server --instead alice/digits=alice/small up --join ADDR …`
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

from celluler.errors import CellulerError
from celluler.identity import PeerId
from celluler.inference.questions import Answering, Begun, Event, Question
from celluler.models.manifest import OpenedManifest
from celluler_node.app import Parts
from celluler_node.serving.server import ModelServer
from celluler_protocols.inference import Predict, Predicted
from simulations.node import add_options, up


class Substituting(ModelServer):
    """INSTEAD: by the name of what is asked for, the name of what answers."""

    INSTEAD: ClassVar[Mapping[str, str]] = {}

    async def predict(
        self, request: Predict, *, asker: PeerId | None = None, hints: tuple[PeerId, ...] = ()
    ) -> Predicted:
        asked = await self._resolved(request.model, hints)
        other = await self._other(asked, hints) or request.model
        answer = await super().predict(replace(request, model=other), asker=asker, hints=hints)
        return replace(answer, model=asked.digest)

    @asynccontextmanager
    async def generate(
        self, model: str, question: Question, *, asker: PeerId | None = None, hints: tuple[PeerId, ...] = ()
    ) -> AsyncIterator[Answering]:
        asked = await self._resolved(model, hints)
        other = await self._other(asked, hints) or model
        async with super().generate(other, question, asker=asker, hints=hints) as answering:
            yield _Renamed(answering, replace(answering.begun, model=asked.digest))

    async def _other(self, asked: OpenedManifest, hints: tuple[PeerId, ...]) -> str | None:
        for name, other in self.INSTEAD.items():
            try:
                if (await self._resolved(name, hints)).digest == asked.digest:
                    return other
            except CellulerError:  # not published yet
                continue
        return None


@dataclass
class _Renamed:
    answering: Answering
    begun: Begun

    def __aiter__(self) -> AsyncIterator[Event]:
        return aiter(self.answering)

    def stop(self, choice: int) -> None:
        self.answering.stop(choice)


def substituting(instead: Mapping[str, str]) -> type[ModelServer]:
    return type("Substituting", (Substituting,), {"INSTEAD": dict(instead)})


def main() -> None:
    parser = argparse.ArgumentParser(prog="simulations.attacks.server", description=__doc__)
    parser.add_argument("--instead", action="append", required=True, type=_pair, help="asked=answers, names of models")
    add_options(parser)
    given = parser.parse_args()
    up(given, Parts(model_server=substituting(dict(given.instead))))


def _pair(text: str) -> tuple[str, str]:
    asked, found, other = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError("must be asked=answers")
    return asked, other


if __name__ == "__main__":
    main()
