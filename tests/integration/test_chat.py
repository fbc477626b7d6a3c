"""A real node whose model writes, met as people meet it: by OpenAI's package and by the command line; and a client
that hangs up."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio

from celluler.home import NodeFile, write_node_file
from celluler.inference.questions import Message
from celluler_node.gateway.app import gateway_app
from celluler_node.gateway.server import serve_gateway
from simulations.swarm import SHIPPED, NodeProcess, environment, open_swarm
from tests.support.generating import reciting
from tests.support.jobs import ALICE
from tests.support.serving_node import ServingNode
from tests.support.terminal import CTRL_C, CTRL_D, open_terminal
from tests.support.waiting import eventually
from tests.support.writing import TALE

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MODEL = "alice/smollm2"


def after(letter: str, count: int) -> str:
    """The next letters, over and over."""
    first = LETTERS.index(letter) + 1
    return "".join(itertools.islice(itertools.cycle(LETTERS), first, first + count))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """It writes the alphabet, from behind the last letter of the last message."""
    folder = tmp_path_factory.mktemp("model")
    model = reciting(f"{LETTERS}a".encode(), folder, length=384)
    (folder / "model.json").write_bytes(model.spec)
    (folder / "preprocess.json").write_bytes(model.preprocess)
    (folder / "chat_template.jinja").write_text("{% for one in messages %}{{ one.content }}{% endfor %}")
    with open_swarm(tmp_path_factory.mktemp("swarm")) as swarm:
        node = swarm.start("alice")
        node.call("model", "add", f"{MODEL}:1.0.0", str(folder))
        yield node


@pytest.fixture(scope="module")
def url(node: NodeProcess) -> str:
    return str(json.loads((node.home / "node.json").read_text())["api"])


def test_openais_package_over_a_socket(url: str) -> None:
    openai = pytest.importorskip("openai")
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "say abc"}], "temperature": 0, "max_tokens": 30}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=60, max_retries=0) as client:
        told = client.chat.completions.create(**asked)
        assert told.choices[0].message.content == after("c", 30)
        assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (7, 30)
        pieces = list(client.chat.completions.create(**asked, stream=True))
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == after("c", 30)
        again = client.completions.create(model=MODEL, prompt=["abc", "x"], temperature=0, stop="g", max_tokens=50)
        assert [choice.text for choice in again.choices] == ["def", "yzabcdef"]
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**asked | {"model": "alice/none"})
        with pytest.raises(openai.BadRequestError, match="tools"):
            client.chat.completions.create(**asked, tools=[{"type": "function", "function": {"name": "f"}}])


def test_a_person_runs_chats_and_measures(node: NodeProcess) -> None:
    told = node.call("run", MODEL, "say abc", "--max-tokens", "5", "--temperature", "0")
    assert (told["text"], told["peer"]) == ("defgh", node.peer_id)
    typed = "/set temperature 0\n/set max_tokens 5\nx\n/system a\n/peer\nb\n"
    talked = subprocess.run(
        [sys.executable, *SHIPPED, "chat", MODEL],
        env=environment(node.home),
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert talked.stdout == f"{after('x', 5)}\n{after('b', 5)}\n"
    assert node.peer_id in talked.stderr
    card = node.call("bench", MODEL, "--requests", "4", "--concurrency", "2", "--max-tokens", "8")
    assert (card["answered"], card["peers"]) == (4, {node.peer_id: 4})
    assert card["tokens_per_s"] > 0
    assert card["memory_bytes"]


def test_who_hangs_up_is_written_for_no_more(node: NodeProcess, url: str) -> None:
    def cancelled() -> bool:
        figures = httpx.get(f"{url}/metrics", trust_env=False).text
        return (
            'celluler_generations_failed_total{kind="Cancelled"} 1.0' in figures
            and "celluler_generations_under_way 0.0" in figures
        )

    asked = {"model": MODEL, "prompt": "abc", "max_tokens": None, "n": 8, "stream": True}
    with httpx.Client(timeout=60, trust_env=False) as client:
        with client.stream("POST", f"{url}/v1/completions", json=asked) as answer:
            assert next(answer.iter_lines()).startswith("data: ")
        eventually(cancelled, within_s=10)
    assert eventually(lambda: [one["running"] for one in node.call("ps")["models"]] == [0], within_s=10)


async def test_at_a_terminal_ctrl_c_ends_the_answer_and_not_the_chat(nursery: trio.Nursery, tmp_path: Path) -> None:
    node = ServingNode()
    await node.publish()
    node.writer.pause_after = 10
    port = await nursery.start(serve_gateway, gateway_app(node, "t"), "127.0.0.1", 0)
    write_node_file(tmp_path, NodeFile(os.getpid(), f"http://127.0.0.1:{port}", "t", ALICE.peer_id, (), 0.0))

    def talk() -> None:
        command = [sys.executable, *SHIPPED, "chat", "alice/tales", "--temperature", "0"]
        with open_terminal(command, environment(tmp_path)) as terminal:
            terminal.until(">>> ")
            terminal.type("Hello\n")
            terminal.until(TALE[:9])
            terminal.type(CTRL_C)
            terminal.until("(ended)")
            terminal.until(">>> ")
            terminal.type("half a li")
            terminal.until("half a li")
            terminal.type(CTRL_C)
            terminal.until("/exit or Ctrl-D leaves")
            terminal.until(">>> half a li")
            terminal.type('\x15"""two\n')  # Ctrl-U: not that
            terminal.until("… ")
            trio.from_thread.run_sync(node.writer.gate.set)
            terminal.type('lines"""\n')
            terminal.until(TALE)
            terminal.until("tokens/s")
            terminal.until(">>> ")
            terminal.type(CTRL_D)
            assert terminal.end() == 0

    with trio.fail_after(60):
        await trio.to_thread.run_sync(talk)
    node.close()
    said = Message("user", "Hello"), Message("assistant", TALE[:9]), Message("user", "two\nlines")
    assert node.writer.questions[-1].prompt == said
