import io
import json
import logging

import pytest
import structlog

from celluler_node.logs import LogConfig, set_up

PEER = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"


@pytest.fixture(autouse=True)
def afterwards():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def events(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_an_event_is_one_line_of_json_with_its_fields():
    stream = io.StringIO()
    set_up(LogConfig(form="json"), stream=stream)
    structlog.get_logger("celluler.processes").info("process.ended", reason="two\nlines", pid=7)
    (event,) = events(stream.getvalue())
    assert event.pop("timestamp")
    assert event == {
        "event": "process.ended",
        "level": "info",
        "logger": "celluler.processes",
        "pid": 7,
        "reason": "two\nlines",
    }


def test_peers_are_shortened_to_eight_characters():
    stream = io.StringIO()
    set_up(LogConfig(form="json"), stream=stream)
    structlog.get_logger("celluler.host").info("peer.penalised", peer=PEER, text=PEER)
    (event,) = events(stream.getvalue())
    assert (event["peer"], event["text"]) == (PEER[-8:], PEER)


def test_the_level_is_ours_and_libraries_speak_from_warning_up():
    stream = io.StringIO()
    set_up(LogConfig(level="debug", form="json"), stream=stream)
    structlog.get_logger("celluler.x").debug("ours")
    logging.getLogger("a.library").info("chatter")
    logging.getLogger("a.library").warning("trouble %s", 1)
    assert [event["event"] for event in events(stream.getvalue())] == ["ours", "trouble 1"]
    set_up(LogConfig(level="warning", form="json"), stream=stream)
    structlog.get_logger("celluler.x").info("ours")
    assert len(events(stream.getvalue())) == 2


def test_a_logger_without_a_name_is_that_of_its_module_and_one_of_ours():
    stream = io.StringIO()
    set_up(LogConfig(form="json"), stream=stream)
    module = {"__name__": "celluler_node.training.member", "structlog": structlog}
    exec("log = structlog.get_logger()\nlog.info('run_joined')", module)
    (event,) = events(stream.getvalue())
    assert (event["event"], event["logger"]) == ("run_joined", "celluler_node.training.member")


def test_an_exception_is_a_field_of_its_event():
    stream = io.StringIO()
    set_up(LogConfig(form="json"), stream=stream)
    try:
        raise ValueError("no")
    except ValueError:
        structlog.get_logger("celluler.x").exception("task.crashed")
    (event,) = events(stream.getvalue())
    assert event["event"] == "task.crashed"
    assert "ValueError: no" in str(event["exception"])


def test_a_console_line_reads_without_colours_when_nobody_looks():
    stream = io.StringIO()
    set_up(LogConfig(), stream=stream)
    structlog.get_logger("celluler.x").info("node.ready", peers=3)
    assert "node.ready" in stream.getvalue()
    assert "peers=3" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_a_log_file_is_private(tmp_path):
    path = tmp_path / "logs" / "node.log"
    set_up(LogConfig(form="json", file=path))
    structlog.get_logger("celluler.x").info("node.ready")
    assert path.stat().st_mode & 0o777 == 0o600
    assert events(path.read_text())[0]["event"] == "node.ready"
