"""A chat: reads turns, shows answers as they come, does what commands say. With a terminal or without one.

Ctrl-C ends the answer that is being written; what came of it stays in the conversation.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import trio

from celluler.client import AsyncClient
from celluler.errors import CellulerError, InvalidSpec, LocalError
from celluler.views import SCHEMA, Generation
from celluler_node.cli.chat_lines import Command, Lines, Turn
from celluler_node.cli.chat_talk import SETTINGS, Talk
from celluler_node.cli.output import printable, say
from celluler_node.cli.text_options import converses, say_figures, show_piece, writes
from celluler_protocols.nursery import own_nursery

HELP = """\
/model NAME        talk with another model, which reads all that was said
/peer              who answered last, and who serves models
/peer NAME         be answered by this one alone; any: by whoever does it best
/system TEXT       what the model is told first; without TEXT, nothing
/set NAME VALUE    how to answer: {settings}; without VALUE, as usual
/set               what is set
/clear             forget what was said
/save FILE         what was said, as JSON
/exit              leave, as Ctrl-D does
A line that begins with \"\"\" opens a turn of several lines, up to a line that ends in \"\"\". // begins a turn with /.
Ctrl-C ends an answer."""

Read = Callable[[str], Awaitable[str | None]]
"""The next line, asked for with that prompt; None when there is none."""


class Chat:
    """read: lines. attended: a person sits before it, who is told of errors and goes on."""

    def __init__(self, client: AsyncClient, talk: Talk, read: Read, *, attended: bool) -> None:
        self._client, self.talk = client, talk
        self._read, self._attended = read, attended
        self._lines = Lines()

    async def run(self) -> None:
        """Until the lines end, or `/exit`. Raises what a turn failed with, where nobody attends."""
        await self._take_model(self.talk.model)
        while True:
            line = await self._read("… " if self._lines.open else ">>> ")
            try:
                told = self._lines.end() if line is None else self._lines.feed(line)
                if isinstance(told, Turn):
                    await self._turn(told.text)
                elif isinstance(told, Command) and not await self._command(told):
                    return
            except CellulerError as error:
                if not self._attended:
                    raise
                say(f"{error}" + (f" ({error.hint})" if error.hint else ""))
            if line is None:
                return

    async def _turn(self, text: str) -> None:
        told = await self._answer(self.talk.asked(text))
        if told is None or not told.answers or not (told.text or told.answers[0].reason):
            return  # nothing came of it
        self.talk = self.talk.answered(text, told)
        if told.answers[0].reason and self._attended:
            say_figures(told)

    async def _answer(self, messages: list[dict[str, str]]) -> Generation | None:
        """What was written, as far as it came."""
        told: Generation | None = None
        async with interruptible() as scope:
            with scope:
                stream = await self._client.generate(self.talk.model, messages, stream=True, **self.talk.how)
                async with stream:
                    try:
                        async for piece in stream:
                            show_piece(piece)
                    finally:
                        told = stream.generation
        if told is not None and told.answers and told.text:
            print(flush=True)
        if scope.cancelled_caught:
            say("(ended)")
        return told

    async def _command(self, told: Command) -> bool:
        """False to leave. Raises InvalidSpec for one that there is not."""
        match told.name:
            case "exit" | "quit" | "bye":
                return False
            case "help" | "?":
                say(HELP.format(settings=", ".join(SETTINGS)))
            case "model":
                await self._take_model(told.argument)
            case "peer" if not told.argument:
                await self._tell_peers()
            case "peer":
                await self._take_peer(told.argument)
            case "system":
                self.talk = replace(self.talk, system=told.argument)
            case "set" if not told.argument:
                say("\n".join(f"{name} {value}" for name, value in self.talk.said.items()) or "nothing")
            case "set":
                self.talk = self.talk.set(told.argument)
            case "clear":
                self.talk = self.talk.cleared()
            case "save":
                await self._save(told.argument)
            case _:
                raise InvalidSpec("", f"no command /{told.name[:32]}", hint="/help")
        return True

    async def _take_model(self, name: str) -> None:
        """Raises InvalidSpec for one that does not write."""
        if not name:
            say(self.talk.model)
            return
        model = await self._client.models.show(name)
        if not writes(model):
            raise InvalidSpec("model", f"{model.reference} does not write text")
        if not converses(model):
            say(f"{model.reference} was not made for conversations: it goes on with a line for each turn")
        self.talk = replace(self.talk, model=name, plain=not converses(model))
        if self._attended:
            say(f"{model.reference}: /help for what can be done here")

    async def _take_peer(self, name: str) -> None:
        """Raises NotFound."""
        peer = "" if name == "any" else (await self._client.peers.show(name)).peer_id
        self.talk = replace(self.talk, said={**self.talk.said, "peer": peer})
        if self._attended:
            say(f"answers come from {peer or 'whoever does it best'}")

    async def _tell_peers(self) -> None:
        last = self.talk.last
        say("nobody has answered yet" if last is None else f"{last.model} ({last.cid}) answered at {last.peer}")
        for peer in await self._client.peers.ls():
            if "serve" in peer.roles:
                trip = "this node" if peer.status == "self" else f"{1000 * (peer.round_trip_s or 0):.0f} ms away"
                say(f"  {peer.nickname or ''} {peer.peer_id[-8:]} serves models, {trip}")

    async def _save(self, name: str) -> None:
        if not name:
            raise InvalidSpec("/save", "needs a file")
        text = json.dumps({"schema": SCHEMA, **self.talk.document()}, ensure_ascii=False, indent=2)
        try:
            await (await trio.Path(name).expanduser()).write_text(f"{text}\n", encoding="utf-8")
        except (OSError, RuntimeError) as error:
            raise LocalError(f"cannot write {name}: {error}") from None
        say(f"saved to {name}")


@asynccontextmanager
async def interruptible() -> AsyncIterator[trio.CancelScope]:
    """A scope that Ctrl-C cancels, in place of the program."""
    scope = trio.CancelScope()

    async def watch(signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            scope.cancel()

    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async with own_nursery() as nursery:
            nursery.start_soon(watch, signals)
            yield scope


@asynccontextmanager
async def open_lines() -> AsyncIterator[Read]:
    """Lines of stdin. On a terminal with a prompt, and Ctrl-C says there how to leave; else it ends the program."""
    # A read cannot be ended: whoever waits for it goes. The installed stubs know another name for that.
    in_thread = partial(trio.to_thread.run_sync, abandon_on_cancel=True)  # type: ignore[call-arg]
    if not sys.stdin.isatty():

        async def plain(_prompt: str) -> str | None:
            return await in_thread(sys.stdin.readline) or None

        yield plain
        return
    import readline  # noqa: PLC0415  # input() then has history and arrow keys

    shown = ""

    async def prompted(prompt: str) -> str | None:
        nonlocal shown
        shown = prompt
        try:
            return await in_thread(partial(input, printable(prompt)))
        except EOFError:
            print(flush=True)
            return None

    async def hint(signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            say("\n/exit or Ctrl-D leaves")
            print(f"{shown}{readline.get_line_buffer()}", end="", flush=True)  # what was typed is still there

    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async with own_nursery() as nursery:
            nursery.start_soon(hint, signals)
            yield prompted
