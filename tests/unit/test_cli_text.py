"""The command line of models that write: run and chat."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from celluler.errors import InvalidSpec, WorkerFailed
from celluler.inference import questions
from celluler.inference.questions import Message
from celluler.models import beside, calls
from celluler_node.cli import text_options
from celluler_node.cli.chat_lines import Command, Lines, Turn
from celluler_node.cli.chat_session import Chat
from celluler_node.cli.chat_talk import Talk
from celluler_node.cli.run_command import is_prompt
from tests.support.gateways import open_client
from tests.support.jobs import ALICE, BOB
from tests.support.serving_node import ServingNode
from tests.support.writing import TALE

Run = Callable[..., tuple[int, str, str]]


def test_a_prompt_is_answered_as_it_comes(celluler: Run, tales: ServingNode) -> None:
    code, out, err = celluler("run", "alice/tales", "Hello", "--temperature", "0", "--system", "Be kind")
    assert (code, out) == (0, f"{TALE}\n")
    assert f"{len(TALE.encode())} tokens" in err
    assert tales.writer.questions[0].prompt == (Message("system", "Be kind"), Message("user", "Hello"))
    options = ["--temperature=0.5", "--top-p=0.9", "--top-k=7", "--seed=5", "--stop=fox", "--stop=dog", "--timeout=9"]
    options += ["--max-tokens=3", "--peer=alice"]
    code, _, err = celluler("run", "alice/tales", "-", *options, "--raw", stdin="Hello\nworld\n")
    asked = tales.writer.questions[1]
    assert (asked.prompt, asked.stop, asked.max_tokens, asked.timeout_s) == ("Hello\nworld", ("fox", "dog"), 3, 9.0)
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.top_k) == (0.5, 0.9, 7)
    assert f"{ALICE.peer_id[-8:]}: 3 tokens" in err
    assert "seed 5" in err
    assert "--max-tokens" in err


def test_a_model_that_writes_may_be_split_and_no_other(celluler: Run, tales: ServingNode) -> None:
    assert celluler("run", "alice/tales", "Hello", "--stages=3")[0] == 0
    assert tales.writer.questions[-1].stages == 3
    code, _, err = celluler("run", "alice/digits", "[[1, 2]]", "--stages=3")
    assert (code, "stages" in err) == (2, True)


def test_an_answer_as_a_document_or_as_lines(celluler: Run) -> None:
    told = json.loads(celluler("run", "alice/tales", "Hello", "--temperature", "0", "--json")[1])
    assert (told["text"], told["peer"], told["answers"][0]["reason"]) == (TALE, BOB.peer_id, "stop")
    lines = celluler("run", "alice/tales", "Hello", "--temperature", "0", "--json", "--stream")[1].splitlines()
    *pieces, whole = map(json.loads, lines)
    assert "".join(piece["text"] for piece in pieces) == whole["text"] == TALE
    assert celluler("run", "alice/tales", "Hello", "--temperature", "0", "--no-stream")[1] == f"{TALE}\n"


def test_names_are_those_of_the_models() -> None:
    assert text_options.NEXT_TOKEN == calls.NEXT_TOKEN
    assert text_options.CHAT_TEMPLATE == beside.CHAT_TEMPLATE
    assert text_options.MAX_SCHEMA_BYTES == questions.MAX_SCHEMA_BYTES


def test_a_schema_goes_with_the_prompt(celluler: Run, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object"}')
    code, _, err = celluler("run", "alice/tales", "Hello", "--schema", str(file))
    assert (code, "follows no schema" in err) == (2, True)  # this model's own word: it was asked
    for wrong in ("[]", "{"):
        file.write_text(wrong)
        assert celluler("run", "alice/tales", "Hello", "--schema", str(file))[0] == 2


def test_batches_are_predicted_as_ever(celluler: Run, tmp_path: Path) -> None:
    assert json.loads(celluler("run", "alice/texts", '["ab"]', "--output", "embedding")[1])[0] == 1.0
    assert celluler("run", "alice/digits", "-", stdin="[[[0, 1], [2, 3]]]")[0] == 0
    (tmp_path / "in.json").write_text('["ab"]')
    assert not is_prompt(str(tmp_path / "in.json"))
    for text in ("Hello", "{not", '"Well," she said', "[sic] a", "a" * 5000, "a\0", ""):
        assert is_prompt(text) == (text != "{not")
    code, _, err = celluler("run", "alice/digits", "input.npy")
    assert code == 2
    assert "neither a file nor a batch" in err
    assert celluler("run", "alice/none", "Hello")[0] == 4
    assert celluler("run", "alice/tales", "")[0] == 2


def test_an_answer_that_breaks_off_is_an_error(celluler: Run, tales: ServingNode) -> None:
    tales.writer.failure = (6, WorkerFailed("it ended"))
    code, out, err = celluler("run", "alice/tales", "Hello", "--temperature", "0")
    assert (code, out) == (1, f"{TALE[:5]}\n")
    assert "it ended" in err


def test_a_chat_without_a_terminal_has_a_turn_a_line(celluler: Run, tales: ServingNode, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    typed = f"""/set temperature 0
/set max_tokens 9
/system Be kind
Hello

\"\"\"Two
lines\"\"\"
/peer
/peer alice
/save {saved}
/clear
//etc is a folder
/exit
never read
"""
    code, out, err = celluler("chat", "alice/tales", stdin=typed)
    assert (code, out) == (0, f"{TALE[:8]}\n" * 3)
    assert BOB.peer_id in err
    first, second, third = (question.prompt for question in tales.writer.questions)
    assert first == (Message("system", "Be kind"), Message("user", "Hello"))
    assert second == (*first, Message("assistant", TALE[:8]), Message("user", "Two\nlines"))
    assert third == (Message("system", "Be kind"), Message("user", "/etc is a folder"))
    told = json.loads(saved.read_text())
    assert [one["role"] for one in told["messages"]] == ["user", "assistant"] * 2
    assert told["sampling"] == {"temperature": 0.0, "max_tokens": 9, "timeout_s": 300.0, "peer": ALICE.peer_id}
    assert celluler("chat", "alice/tales", stdin="/peer alice\nHello\n/peer any\n/peer\n")[2].count(ALICE.peer_id) == 1


def test_a_chat_that_nobody_attends_ends_with_an_error(celluler: Run, tales: ServingNode) -> None:
    wrong = (("/frobnicate", 2), ("/model alice/none", 4), ("/peer nobody", 4), ("/set temperature 9\nHello", 2))
    for typed, code in wrong:
        assert celluler("chat", "alice/tales", stdin=typed)[0] == code
    assert celluler("chat", "alice/digits")[0] == 2
    assert not tales.writer.questions
    code, out, err = celluler("chat", "alice/tales", stdin="/help\n/set\n/set temperature 0\n/set\n/model\nHello")
    assert (code, out) == (0, f"{TALE}\n")
    for told in ("/save FILE", "temperature 0.0", "alice/tales"):
        assert told in err


async def test_ctrl_c_ends_the_answer_and_not_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    node, typed = ServingNode(), iter(["Hello", "/peer", "And then?", "/model alice/none"])
    await node.publish()
    node.writer.pause_after = 5

    async def read(_prompt: str) -> str | None:
        line = next(typed, None)
        if line == "And then?":
            node.writer.pause_after = None
        return line

    async def interrupt() -> None:
        await node.writer.paused.wait()
        await trio.testing.wait_all_tasks_blocked()
        os.kill(os.getpid(), signal.SIGINT)

    with trio.fail_after(10):
        async with open_client(node) as client, trio.open_nursery() as nursery:
            nursery.start_soon(interrupt)
            chat = Chat(client, Talk("alice/tales", said={"temperature": 0}), read, attended=True)
            await chat.run()
    node.close()
    told = capsys.readouterr()
    assert node.writer.left == 1
    assert [one["content"] for one in chat.talk.turns] == ["Hello", TALE[:4], "And then?", TALE]
    assert told.out == f"{TALE[:4]}\n{TALE}\n"
    assert "(ended)" in told.err
    assert f"answered at {BOB.peer_id}" in told.err
    assert "alice/none" in told.err  # and goes on


def test_what_is_typed_becomes_turns_and_commands() -> None:
    lines = Lines()
    assert lines.feed("Hello\n") == Turn("Hello")
    assert lines.feed("  \n") is None
    assert lines.feed("/set  temperature 0.2 \n") == Command("set", "temperature 0.2")
    assert lines.feed("//a") == Turn("/a")
    assert lines.feed('"""one line"""') == Turn("one line")
    assert lines.feed('"""') is None
    assert lines.open
    assert lines.feed("/not a command") is None
    assert lines.feed("") is None
    assert lines.feed('end"""\n') == Turn("\n/not a command\n\nend")
    assert not lines.open
    assert lines.feed('"""left open') is None
    assert lines.end() == Turn("left open")
    assert lines.end() is None
    lines.feed('"""')
    with pytest.raises(InvalidSpec):
        lines.feed("a" * (1 << 20))
    assert not lines.open


def test_settings_are_numbers_or_go_back_to_what_is_usual() -> None:
    talk = Talk("m").set("temperature 0.2").set("top_k 5").set("stop END OF IT").set("top_k")
    assert talk.said == {"temperature": 0.2, "stop": ["END OF IT"]}
    for wrong in ("temperature warm", "top_k 1.5", "frobnicate 1", ""):
        with pytest.raises(InvalidSpec):
            talk.set(wrong)
