"""`celluler bench MODEL`: how fast a model answers, as a card."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from celluler.client import AsyncClient
from celluler.errors import CellulerError, InvalidSpec, WorkerFailed
from celluler.views import Model, to_json
from celluler_node.cli.bench_figures import Card, Load, Spread, card_of
from celluler_node.cli.bench_load import PROMPT, asking, run_load
from celluler_node.cli.output import Output, ending, say
from celluler_node.cli.run_command import read_batch
from celluler_node.cli.session import NOBODY, Join, Json, open_session, run
from celluler_node.cli.text_options import writes

EMBEDDING = "embedding"
MAX_AT_ONCE = 64
DEPLOYMENT = "deploy:"
"""How a deployment is asked: by its name, since which version answers is its own affair."""


def bench(
    model: Annotated[str, typer.Argument(help="author/name:1.0.0, author/name or a CID.")],
    requests: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many.")] = 100,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600.0, help="Begin no request after so long.")] = 30.0,
    concurrency: Annotated[int, typer.Option(min=1, max=MAX_AT_ONCE, help="Requests at once.")] = 1,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Samples of a request, of a model that predicts.")] = 1,
    output: Annotated[str, typer.Option(help="What of it; by default text, or the usual one.")] = "",
    input: Annotated[str, typer.Option(help="A batch as `celluler run` takes it; by default one is made up.")] = "",
    prompt: Annotated[str, typer.Option(help="For a model that writes, a number before it.")] = PROMPT,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of each answer of a model that writes.")] = 64,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Ask a model again and again, here or at peers, and tell latency, throughput and who answered."""
    given = read_batch(input) if input else None

    async def main() -> None:
        async with open_session(join) as client:
            found = await client.models.show(model)
            kind, wanted = _kind_of(found, output, given=given is not None)
            size = batch if given is None else _samples(given)
            load = Load(kind, wanted, requests, concurrency, 1 if kind == "text" else size, max_tokens)
            ref = model if model.startswith(DEPLOYMENT) else found.cid
            card = await measure(client, ref, found, load, given, prompt, limit_s=seconds)
            _show(Output(as_json=json), card)
            if not card.answered:
                raise WorkerFailed("no request was answered: " + ", ".join(card.failures))

    run(main)


async def measure(
    client: AsyncClient, ref: str, model: Model, load: Load, given: Any, prompt: str, *, limit_s: float
) -> Card:
    """ref: by which it is asked. After one request that warms up. Raises what that one fails with."""
    ask = asking(client, ref, model, load, given, prompt)
    first = await ask(0)
    samples, seconds = await run_load(ask, load, limit_s=limit_s)
    status = await client.status()
    node: dict[str, str | int] = {"version": status.version, "isolation": status.isolation}
    node |= {key: value for key, value in to_json(status.hardware).items() if isinstance(value, str | int)}
    return card_of(
        model.reference,
        model.cid,
        load,
        samples,
        seconds,
        warm_up_s=first.latency_s,
        weights_bytes=model.weights_bytes,
        memory_bytes=await _memory_of(client, model),
        node=node,
    )


async def _memory_of(client: AsyncClient, model: Model) -> int | None:
    """Of its worker, where that is here and the node says so."""
    try:
        serving = await client.serving()
    except CellulerError:  # a figure more, no more
        return None
    return next((one.memory_bytes for one in serving.models if one.cid == model.cid), None)


def _kind_of(model: Model, output: str, *, given: bool) -> tuple[str, str]:
    """(kind, output). Raises InvalidSpec for one that is not among those that it gives."""
    names = [port.name for port in model.gives]
    if not output and not given and writes(model):
        return "text", ""
    wanted = output or (names[0] if names else "")
    if wanted not in names:
        raise InvalidSpec("--output", f"is {wanted[:32]!r}; {model.reference} gives {', '.join(names)}")
    return ("embed" if wanted == EMBEDDING else "predict"), wanted


def _samples(given: Any) -> int:
    try:
        return len(given)
    except TypeError:
        raise InvalidSpec("--input", "is no batch") from None


def _show(output: Output, card: Card) -> None:
    if output.as_json:
        output.document(card)
        return
    load = card.load
    what = f"{load.max_tokens} tokens at most" if load.kind == "text" else f"{load.output}, {load.batch} a request"
    rates = {"requests/s": card.requests_per_s, "samples/s": card.samples_per_s if load.batch > 1 else None}
    output.facts(
        card,
        {
            "model": card.model,
            "asked": f"{load.kind}: {what}, {load.concurrency} at once",
            "answered": f"{card.answered} in {card.seconds:.2f} s",
            "failed": ", ".join(f"{count} {kind}" for kind, count in card.failures.items()),
            "latency": _line(card.latency_ms),
            "first token": _line(card.first_token_ms),
            **{name: f"{rate:.1f}" for name, rate in rates.items() if rate},
            "tokens/s": f"{card.tokens_per_s:.1f}" if card.tokens_per_s else None,
            "answered by": ", ".join(f"{ending(peer)} ({count})" for peer, count in card.peers.items()),
            "weights": f"{card.weights_bytes / 1e6:.1f} MB",
            "memory": None if card.memory_bytes is None else f"{card.memory_bytes / 1e6:.0f} MB",
        },
    )
    say(f"after a first request of {card.warm_up_s:.2f} s")


def _line(spread: Spread | None) -> str | None:
    if spread is None:
        return None
    return f"p50 {spread.p50:.1f} ms, p95 {spread.p95:.1f}, p99 {spread.p99:.1f}, most {spread.max:.1f}"


_app = typer.Typer(add_completion=False, rich_markup_mode=None)
_app.command(name="bench")(bench)
APPS = {"bench": _app}
