"""The curves of a training: which there are, and that a drawing of them is whole, closed and the same every time."""

from __future__ import annotations

import importlib.util
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celluler.errors import LocalError
from celluler.views import TrainingRound
from celluler_node import curves_png
from celluler_node.cli import plots
from celluler_node.curves import Curve, Panel, Sheet, panels_of, ticks
from celluler_node.curves_html import render
from tests.support.trainings import training

AMOUNT = st.floats(1e-9, 1e9)
ROUNDS = st.lists(
    st.builds(
        TrainingRound,
        round=st.integers(1, 1024),
        views=st.just(1),
        contributed=st.lists(st.sampled_from(("a", "b", "c")), unique=True).map(tuple),
        no_weight=st.sampled_from(((), ("a",))),
        seconds=st.none() | AMOUNT,
        norms=st.dictionaries(st.sampled_from(("a", "b")), AMOUNT),
        loss=st.none() | st.floats(-1e6, 1e6),
        metric=st.sampled_from(("accuracy", "perplexity")),
        value=st.none() | st.floats(0, 1),
    ),
    max_size=12,
    unique_by=lambda one: one.round,
).map(lambda rounds: sorted(rounds, key=lambda one: one.round))


class Reader(HTMLParser):
    """Collects every attribute, to see that nothing is fetched and nothing runs."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name: value or "" for name, value in attrs}


def test_there_is_a_panel_for_what_was_told() -> None:
    roles = [[curve.role for curve in panel.curves] for panel in panels_of(training().rounds)]
    assert roles == [["loss"], ["metric"], ["norm"], ["counted", "no-weight", "absent"], ["seconds"]]
    assert panels_of([TrainingRound(1, 1)]) == ()
    loss, _, norms, members, _ = panels_of(training().rounds)
    assert loss.log
    assert norms.band[0] == (1, 0.5, 40.0)
    assert [sum(values) for values in zip(*([v for _, v in c.points] for c in members.curves), strict=True)] == [
        4.0
    ] * 6


@given(ROUNDS, st.integers(1, 1024))
def test_any_training_gives_a_whole_document(rounds: list[TrainingRound], total: int) -> None:
    text = render(Sheet("t", "Running", total, panels_of(rounds)))
    for picture in text.split("<svg ")[1:]:
        drawing = ElementTree.fromstring("<svg " + picture.partition("</svg>")[0] + "</svg>")
        for shape in drawing.iter():
            for name in ("x", "y", "cx", "cy", "x1", "y1", "height", "width"):
                assert -1.0 <= float(shape.get(name, "0")) <= 1000.0


def test_a_document_fetches_nothing_and_runs_nothing() -> None:
    text = plots_of(6)
    reader = Reader()
    reader.feed(text)
    assert not {"script", "link", "img", "iframe", "object"} & reader.tags
    assert not {"src", "href", "onclick", "onload"} & set(reader.attributes)
    assert "http://" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert text == plots_of(6)


def plots_of(rounds: int) -> str:
    return render(plots.sheet_of(training(rounds)))


def test_words_of_others_are_no_markup() -> None:
    curve = Curve("<script>alert(1)</script>", "loss", ((1, 1.0), (2, 2.0)))
    text = render(Sheet("<b>", "&", 2, (Panel("<i>", (curve, curve)),), (("<u>", '"><s>'),), (("<h>",), ("<c>",))))
    assert not any(markup in text for markup in ("<script", "<b>", "<i>", "<u>", "<s>", "<h>", "<c>"))
    assert "&lt;script&gt;" in text


def test_a_reader_looks_again_while_the_training_goes_on() -> None:
    assert 'http-equiv="refresh"' in plots_of(3)
    assert "refresh" not in render(plots.sheet_of(training(3, "Succeeded")))


@given(st.floats(1e-6, 1e6), st.floats(1.001, 1e6), st.booleans())
def test_ticks_are_few_round_and_inside(low: float, ratio: float, log: bool) -> None:
    high = low * ratio
    found = ticks(low, high, log=log)
    assert len(found) <= 12
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in found)
    if not log:
        assert len(found) >= 2


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is an extra")
def test_a_picture_is_written_whole(tmp_path: Path) -> None:
    plots.draw(training(), tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    plots.draw(training(0), tmp_path / "t.png")
    assert [path.name for path in tmp_path.iterdir()] == ["t.png"]


async def test_it_is_drawn_when_there_is_news_but_not_all_the_time(tmp_path: Path) -> None:
    now, path = 0.0, tmp_path / "t.html"
    on_told = plots.plotter(path, clock=lambda: now)
    for seconds, rounds, drawn in ((0.0, 1, "1 of 20"), (1.0, 2, "1 of 20"), (4.0, 2, "2 of 20"), (9.0, 2, "2 of 20")):
        now = seconds
        await on_told(training(rounds))
        assert f"<dd>{drawn}</dd>" in path.read_text("utf-8")
    await on_told(training(3, "Failed", "gone"))
    assert "<dd>3 of 20</dd>" in path.read_text("utf-8")


def test_without_matplotlib_a_picture_is_refused_before_anything_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves_png.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(LocalError, match=r"matplotlib"):
        plots.plotter(Path("t.png"))
