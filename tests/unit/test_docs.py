"""The documentation holds together: links lead somewhere, pages can be found, commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from celluler_node.cli.root import COMMANDS, load

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted({*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "protocols").glob("*.md")})

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`(celluler [^`]+)`")


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def targets(page: Path) -> list[tuple[Path, str]]:
    """(file, fragment) of every link that stays in the repository."""
    found = []
    for link in _LINK.findall(prose(page)):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, fragment = link.partition("#")
        found.append(((page.parent / path).resolve() if path else page, fragment))
    return found


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target, fragment in targets(page):
        assert target.exists(), f"{page.relative_to(ROOT)}: no {target}"
        if fragment:
            assert fragment in anchors(target), f"{page.relative_to(ROOT)}: no #{fragment} in {target.name}"


def test_every_page_can_be_reached_from_the_first() -> None:
    reached: set[Path] = set()
    waiting = [DOCS / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            waiting += [target for target, _ in targets(page) if target.suffix == ".md"]
    assert not set(DOCS.rglob("*.md")) - reached


# --- commands --------------------------------------------------------------------------------------------------


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `celluler …` in shell blocks and code spans of a page."""
    text = page.read_text("utf-8")
    blocks = [body for language, body in _FENCE.findall(text) if language in ("", "sh", "ini")]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in [*lines, *_SPAN.findall(prose(page))]:
        called = re.search(r"(?:^|[ /])celluler( .*)", line.split("  #")[0])
        if called is None or re.match(r"^[ ├└│]*celluler +[←>(]", line):
            continue
        words = re.split(r" [|>] |…\||; ", called[1])[0]
        found.append(shlex.split(words.replace("'", ""), comments=True))
    return found


def check_command(arguments: list[str]) -> None:
    """Raises AssertionError unless the command is there and knows the options. Arguments are not looked at."""
    arguments = [each for each in arguments if each not in ("--help", "--version")]
    if not arguments or not re.fullmatch(r"[a-z]+", arguments[0]):
        return  # `celluler --version`, `celluler … --join`
    assert arguments[0] in COMMANDS, f"no command {arguments[0]}"
    command, rest = load(arguments[0]), arguments[1:]
    group = getattr(command, "commands", None)
    if group is not None and not rest:
        return
    if group is not None:
        assert rest[0] in group, f"no command {arguments[0]} {rest[0]}"
        command, rest = group[rest[0]], rest[1:]
    options = {name: each for each in command.params for name in each.opts if each.param_type_name == "option"}
    given, value_of = 0, None
    for word in rest:
        if word.startswith("-") and word != "-":
            value_of = options.get(word.partition("=")[0])
            assert value_of is not None, f"no option {word}"
            value_of = None if value_of.is_flag or "=" in word else value_of
        else:
            given, value_of = given + (value_of is None), None
    arguments_of = [each for each in command.params if each.param_type_name == "argument"]
    repeats = any(each.nargs == -1 for each in arguments_of)
    assert repeats or given <= len(arguments_of), f"takes {len(arguments_of)} arguments, not {given}"


def test_the_commands_in_the_documentation_are_those_of_the_program() -> None:
    checked = 0
    for page in PAGES:
        if page.name in ("cli.md", "architecture.md"):
            continue
        for arguments in commands(page):
            try:
                check_command(arguments)
            except AssertionError as error:
                raise AssertionError(f"{page.relative_to(ROOT)}: celluler {' '.join(arguments)}: {error}") from None
            checked += 1
    assert checked > 20


def test_a_wrong_command_would_be_found() -> None:
    for wrong in ("frobnicate", "model add a/b:1.0.0 --spec x.json", "peer list", "down now"):
        with pytest.raises(AssertionError):
            check_command(wrong.split())


def test_the_make_targets_in_the_documentation_exist() -> None:
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE)) <= {
            pair for name in there for pair in ((name, ""), ("", name))
        }, page.relative_to(ROOT)
