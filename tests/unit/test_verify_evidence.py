"""Evidence against a member, judged anew by the command: without a worker, which the audits need."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celluler.content.manifest import describe
from celluler.learning.audit_messages import Judgement
from celluler.learning.evidence_file import MARK
from celluler_node.cli import verify_commands
from celluler_node.cli.root import run
from tests.support import cases
from tests.support.transcripts import Played, play
from tests.support.verifying import KnowingNode

pytestmark = pytest.mark.thorough

SIZE = 4
Told = dict[str, Any]
Verify = Callable[..., tuple[int, Told]]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return play(tmp_path_factory.mktemp("honest"), size=SIZE, rounds=1)


@pytest.fixture(scope="module")
def bent(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Whoever reduces part 0 lies."""
    return play(tmp_path_factory.mktemp("bent"), size=SIZE, rounds=2, bent=True)


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Honest, on a wire of four bits."""
    return play(tmp_path_factory.mktemp("coarse"), size=SIZE, rounds=1, wire="q4")


@pytest.fixture
def node(honest: Played, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KnowingNode]:
    node = KnowingNode(honest)
    monkeypatch.setattr(verify_commands, "open_session", node.session)
    monkeypatch.setenv("CELLULER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CELLULER_CONFIG", raising=False)
    yield node
    node.close()


@pytest.fixture
def verify(node: KnowingNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Verify:
    def call(evidence: bytes, *arguments: str) -> tuple[int, Told]:
        (tmp_path / "evidence").write_bytes(evidence)
        code = run(["verify", str(tmp_path / "evidence"), *arguments, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out or err)

    return call


def files(played: Played) -> list[str]:
    return [part for path in played.transcripts for part in ("--transcript", str(path))]


def finding(told: Told, check: str) -> Told:
    return next(one for one in told["findings"] if one["check"] == check)


def test_a_result_that_the_rule_does_not_give_convicts_its_reducer(bent: Played, verify: Verify) -> None:
    code, told = verify(cases.fraud(bent), *files(bent))
    assert (code, told["verdict"], told["ok"]) == (0, "holds", True)
    assert told["kind"] == "fraud"
    assert told["accused"] in [member.peer for member in bent.roster.members]
    assert "the rule gives something else" in finding(told, "results")["detail"]


def test_an_honest_reducer_is_cleared_with_the_inputs_that_members_announced(
    honest: Played, node: KnowingNode, verify: Verify
) -> None:
    for member, path in zip(honest.roster.members, honest.transcripts, strict=True):
        node.announce(member.peer, path)
    code, told = verify(cases.fraud(honest))
    assert (code, told["verdict"], told["ok"]) == (7, "does not hold", False)
    assert [set(asked) for asked in node.asked] == [{member.peer for member in honest.roster.members}]
    assert len(told["transcripts"]) == SIZE


def test_an_honest_reducer_rounds_as_the_job_says(coarse: Played, verify: Verify) -> None:
    assert verify(cases.fraud(coarse), *files(coarse))[1]["verdict"] == "does not hold"
    assert verify(cases.false_accusations(coarse, 2), *files(coarse))[1]["verdict"] == "holds"


def test_without_the_inputs_nothing_is_decided(bent: Played, verify: Verify) -> None:
    code, told = verify(cases.fraud(bent), "--transcript", str(bent.transcripts[0]))
    assert (code, told["verdict"]) == (6, "not decided")
    assert "3 of 4 updates are not here" in finding(told, "results")["detail"]


def test_an_accuser_of_honest_reducers_is_convicted_and_one_of_a_liar_is_not(
    honest: Played, bent: Played, verify: Verify
) -> None:
    assert verify(cases.false_accusations(honest, 2), *files(honest))[0] == 0
    assert verify(cases.false_accusations(bent, 2), *files(bent))[0] == 7
    assert verify(cases.false_accusations(honest, 2), "--transcript", str(honest.transcripts[0]))[0] == 6


def test_who_signed_two_updates_is_convicted_by_these_alone(honest: Played, node: KnowingNode, verify: Verify) -> None:
    code, told = verify(cases.equivocation(honest, 1))
    assert (code, told["accused"]) == (0, honest.roster.members[1].peer)
    assert told["what"] == "signed two updates in one round"
    assert node.asked == []


def test_transcripts_of_another_run_decide_nothing(honest: Played, bent: Played, verify: Verify) -> None:
    code, told = verify(cases.fraud(bent), *files(honest))
    assert code == 6
    assert {one["problem"] for one in told["transcripts"]} == {"of another job's run"}


def test_the_word_of_a_quorum_is_not_enough_for_a_stranger(honest: Played, verify: Verify) -> None:
    code, told = verify(cases.audit(honest, 0, 1))
    assert (code, told["verdict"]) == (6, "not decided")
    assert finding(told, "verdicts")["detail"] == "3 members say guilty"
    code, told = verify(cases.audit(honest, 0, 1, Judgement.UNSERVED, served=False), *files(honest))
    assert code == 6
    assert "kept back" in finding(told, "training")["detail"]


def test_evidence_is_found_by_its_cid_and_told_to_people(
    bent: Played, node: KnowingNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evidence").write_bytes(cases.fraud(bent))
    assert describe(tmp_path / "evidence", "blob").root
    assert run(["verify", node.hold(tmp_path / "evidence"), *files(bent)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("ok\tsignatures\t1 of 1\troster of 4 members; fraud\n")
    assert err.endswith("the evidence holds\n")


def test_evidence_goes_with_no_model_and_with_no_other_evidence(bent: Played, tmp_path: Path, verify: Verify) -> None:
    (tmp_path / "other").write_bytes(cases.fraud(bent))
    assert verify(cases.fraud(bent), str(tmp_path / "other"))[0] == 2
    assert verify(cases.fraud(bent), "--model", "alice/digits:1.0.0")[0] == 2


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_garbage_is_refused_and_says_so(bent: Played, verify: Verify, data: st.DataObject) -> None:
    whole = cases.fraud(bent)
    place = data.draw(st.integers(len(MARK), len(whole) - 1))
    changed = data.draw(st.one_of(st.just(whole[:place]), st.just(whole[:place] + bytes((whole[place] ^ 1,)) + whole[place + 1 :])))  # fmt: skip  # noqa: E501
    code, told = verify(changed)
    assert (code, told["error"]["exit_code"]) == (7, 7)
