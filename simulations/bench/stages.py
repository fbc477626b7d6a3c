"""What it costs to run a model in stages, and to replace one: 2 and 3 stages on loopback against the whole in one.

`python -m simulations.bench.stages [--tokens 48] [--replayed 200] [--json]`

A model of the shape of a Llama, fp32. Every stage has a confined worker with one thread and is asked over TCP on
loopback in the stage protocol; the whole model has such a worker of its own, asked by the same process. Answers are
greedy, and must be equal. The ways take turns. What replacing costs is the longest time between two tokens of an answer
whose middle stage is lost, less a usual one; the layers are loaded at the peer that takes over already.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import structlog
import trio

from celluler.identity import Identity, PeerId
from celluler.inference.questions import Question, Said
from celluler.inference.sampling import GREEDY
from celluler.models.manifest import OpenedManifest, describe_model, open_manifest, seal_manifest
from celluler.models.spec import format_spec
from celluler.models.weights import initial_weights
from celluler_node.processes.confinement import Confinement
from celluler_node.processes.words import Limits
from celluler_node.processes.worker_stages_words import STAGE_WORKER
from celluler_node.processes.worker_words import WORKER
from celluler_node.scratch import open_scratch
from celluler_node.serving.server import ModelServer
from celluler_node.stages.answering import StagedAnswerer
from celluler_node.stages.peers import StagePeers
from celluler_node.stages.server import StageServer
from celluler_protocols.membership import Capabilities, Member
from celluler_protocols.membership.table import Status
from celluler_protocols.stages import Widths, open_link
from celluler_protocols.stages_messages import OpenStage
from celluler_protocols.stages_serving import Stage, serve_stage
from simulations.bench.inference import body, prompt
from simulations.bench.models import figure
from simulations.bench.serving import AUTHOR, OneModel

PEERS, TOGETHER, REPEATS = 4, 4, 2
AIM_STAGES, AIM_REPLAY = 0.9, 0.06
SERVES = Capabilities(1, 1 << 16, "cpu", ("serve",))


class Parts(OneModel):
    """And of parts of it."""

    async def sound_part(self, opened: OpenedManifest, _: Any, **__: Any) -> Path:
        return await self.sound(opened)


class Swarm:
    """Peers that take stages, in this process, each reached over TCP."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.servers: dict[PeerId, StageServer] = {}
        self._ports: dict[PeerId, int] = {}
        self.scopes: dict[PeerId, trio.CancelScope] = {}
        self.asked: list[tuple[PeerId, OpenStage]] = []
        self.lost: set[PeerId] = set()

    async def add(self, server: StageServer, peer: PeerId) -> None:
        self.servers[peer] = server

        async def answer(stream: trio.SocketStream) -> None:
            with trio.CancelScope() as scope:
                self.scopes[peer] = scope
                await serve_stage(stream, server.open)

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self._ports[peer] = listener.socket.getsockname()[1]
        self._nursery.start_soon(trio.serve_listeners, answer, [listener])

    def members(self) -> tuple[Member, ...]:
        found = (peer for peer in self.servers if peer not in self.lost)
        return tuple(Member(peer, (), "", SERVES, Status.ALIVE, 0, 0.0001) for peer in found)

    @asynccontextmanager
    async def open_at(self, peer: PeerId, request: OpenStage, widths: Widths) -> AsyncIterator[Stage]:
        self.asked.append((peer, request))
        stream = await trio.open_tcp_stream("127.0.0.1", self._ports[peer])
        async with open_link(stream, request, widths) as link:
            yield link


async def tokens_of(answerer: Any, question: Question) -> tuple[list[int], list[float]]:
    """The tokens of an answer, and when each came."""
    tokens, times = [], []
    async with answerer("bench/model", question) as answering:
        async for event in answering:
            if isinstance(event, Said):
                tokens += [one.token for one in event.tokens]
                times.append(time.perf_counter())
    return tokens, times


async def rate(answerer: Any, tokens: int, stages: int, together: int) -> tuple[float, list[list[int]]]:
    """Tokens a second of so many answers side by side, from the first token of the last that began; and the tokens."""
    heard: dict[int, list[int]] = {}
    firsts: list[float] = []
    lasts: list[float] = []

    async def one(at: int) -> None:
        asked = Question(tuple(prompt(at)), tokens, GREEDY, stages=stages)
        heard[at], times = await tokens_of(answerer, asked)
        firsts.append(times[0])
        lasts.append(times[-1])

    async with trio.open_nursery() as nursery:
        for at in range(together):
            nursery.start_soon(one, at)
    return together * (tokens - 1) / (max(lasts) - min(firsts)), [heard[at] for at in range(together)]


async def replacing(swarm: Swarm, staged: StagedAnswerer, count: int) -> tuple[float, float]:
    """Seconds that losing a stage behind so many tokens costs, and that generating them took."""
    question = Question(tuple(prompt(0)[:8]), count + 8, GREEDY, stages=3)
    tokens, times = [], []
    async with AsyncExitStack() as held, staged("bench/model", question) as answering:
        async for event in answering:
            if not isinstance(event, Said):
                continue
            tokens.append(event.tokens[0].token)
            times.append(time.perf_counter())
            if len(tokens) == 1:  # opening it first at the peer that is to take over loads it there
                line = next(one for one in staged.lines if one.busy)
                lost = PeerId(line.parts[1].peer)
                spare = next(one for one in swarm.servers if one not in {part.peer for part in line.parts})
                request = next(asked for peer, asked in reversed(swarm.asked) if peer == lost)
                await held.enter_async_context(swarm.servers[spare].open(request))
            if len(tokens) == count:
                swarm.lost.add(lost)
                swarm.scopes[lost].cancel()
        assert line.replaced == 1, "the stage that was lost was not noticed"
    wanted, _ = await tokens_of(staged, question)
    assert tokens == wanted, "a stage was replaced, and other tokens were told"
    gaps = [after - before for before, after in pairwise(times)]
    return max(gaps[count - 4 :]) - statistics.median(gaps), times[count - 1] - times[0]


async def measure(folder: Path, tokens: int, replayed: int) -> list[dict[str, Any]]:
    weights = folder / "weights"
    initial_weights(body(), b"s" * 32, weights)
    manifest = describe_model("model", "1.0.0", format_spec(body()), b"w" * 32, created_s=1)
    repository = cast(Any, Parts(open_manifest(seal_manifest(AUTHOR, manifest)), weights))
    figures = []
    async with open_scratch(folder / "scratch") as scratch, trio.open_nursery() as nursery:
        common: dict[str, Any] = {
            "own": AUTHOR.peer_id,
            "confinement": Confinement("full"),
            "on_start": lambda *_: None,
        }
        limits = Limits(memory_bytes=4 << 30)
        whole = ModelServer(repository, WORKER, limits, scratch, nursery, spares=0, **common)
        swarm = Swarm(nursery)
        for one in range(PEERS):
            server = StageServer(
                repository, STAGE_WORKER, limits, scratch, nursery, memory_bytes=8 << 30, **common
            )  # fmt: skip
            await swarm.add(server, Identity(bytes([one + 1] * 32)).peer_id)
        known = StagePeers(AUTHOR.peer_id, Capabilities(1, 1, "cpu"), swarm.members, lambda *_: None)
        staged = StagedAnswerer(repository, swarm.open_at, known, nursery)
        ways: dict[int, Any] = {0: whole.generate, 2: staged, 3: staged}
        for stages, way in ways.items():
            await rate(way, 2, stages, 1)  # loads
        for together in (1, TOGETHER):
            best: dict[int, float] = dict.fromkeys(ways, 0.0)
            told: dict[int, list[list[int]]] = {}
            for _ in range(REPEATS):
                for stages, way in ways.items():
                    found, told[stages] = await rate(way, tokens, stages, together)
                    best[stages] = max(best[stages], found)
            assert told[2] == told[0] == told[3], "stages told other tokens than the whole model"
            figures += [_compared(stages, together, best) for stages in (2, 3)]
        lost_s, took_s = await replacing(swarm, staged, replayed)
        figures.append(
            figure(
                f"a stage of 3 replaced behind {replayed} tokens", lost_s, "s",
                against=f"generating them {took_s:.1f} s", ratio=lost_s / took_s, aim=f"≤ {AIM_REPLAY:g} ×",
                met=lost_s <= AIM_REPLAY * took_s,
            )
        )  # fmt: skip
        nursery.cancel_scope.cancel()
    return figures


def _compared(stages: int, together: int, best: dict[int, float]) -> dict[str, Any]:
    ratio = best[stages] / best[0]
    aimed = together == 1
    return figure(
        f"{together} answers in {stages} stages" if together > 1 else f"an answer in {stages} stages",
        best[stages], "tokens/s", against=f"unsplit {best[0]:.0f}", ratio=ratio,
        aim=f"≥ {AIM_STAGES:g} ×" if aimed else "", met=ratio >= AIM_STAGES if aimed else None,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulations.bench.stages", description=__doc__)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--replayed", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory(prefix="celluler-stages-") as folder:
        figures = trio.run(partial(measure, Path(folder), options.tokens, options.replayed))
    if options.json:
        print(json.dumps(figures))
    else:
        from simulations.bench.__main__ import show  # noqa: PLC0415

        show(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
