"""Which models of others may run here, and who decides that."""

from __future__ import annotations

from pathlib import Path

import pytest

from celluler.errors import Denied, InvalidSpec
from celluler_node.config import load_config
from celluler_node.processes import landlock, seccomp
from celluler_node.processes.confinement import FULL, OFF, REDUCED, Confinement, Walls, confinement
from celluler_node.processes.words import Isolation

FOREIGN = ("graph", "onnx", "gguf", "of a kind not known yet")


@pytest.mark.parametrize("level", [REDUCED, OFF])
def test_without_the_full_sandbox_a_stranger_may_only_name_our_layers(level: str) -> None:
    here = Confinement(level, ("this kernel has no Landlock",))
    assert [kind for kind in ("spec", *FOREIGN) if here.may_run(kind, own=False)] == ["spec"]
    assert all(here.may_run(kind, own=True) for kind in FOREIGN)
    for kind in FOREIGN:
        with pytest.raises(Denied, match=level) as refused:
            here.require(kind, own=False)
        assert refused.value.hint
    assert all(Confinement(level, (), foreign=True).may_run(kind, own=False) for kind in FOREIGN)


def test_within_the_full_sandbox_everything_may_run() -> None:
    for kind in ("spec", *FOREIGN):
        Confinement(FULL).require(kind, own=False)


def test_what_the_kernel_lacks_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert confinement(sandbox=False, foreign=False).text.startswith("off: worker.sandbox")
    monkeypatch.setattr(seccomp, "available", lambda: None)
    monkeypatch.setattr(landlock, "version", lambda: 3)
    assert confinement(sandbox=True, foreign=False).text == "full"
    monkeypatch.setattr(landlock, "version", lambda: 0)
    monkeypatch.setattr(seccomp, "available", lambda: "no seccomp filter is written for riscv64")
    found = confinement(sandbox=True, foreign=False)
    assert found.level == REDUCED
    assert found.text == "reduced: this kernel has no Landlock: files are not confined; " + found.missing[1]
    monkeypatch.setattr("sys.platform", "darwin")
    assert confinement(sandbox=True, foreign=False).text == "reduced: darwin has no Landlock and no seccomp"


@pytest.mark.parametrize("path", ["worker.sandbox", "worker.foreign"])
def test_only_the_configuration_file_may_loosen_the_walls(path: str, tmp_path: Path) -> None:
    home, variable = {"CELLULER_HOME": str(tmp_path)}, "CELLULER_" + path.upper().replace(".", "_")
    with pytest.raises(InvalidSpec, match="configuration file alone"):
        load_config(home, {path: "off"})
    with pytest.raises(InvalidSpec, match="configuration file alone") as raised:
        load_config(home | {variable: "on"})
    assert raised.value.path == variable
    assert (load_config(home).sandbox, load_config(home).run_foreign) == (True, False)
    (tmp_path / "config.toml").write_text('[worker]\nsandbox = "off"\nforeign = true\n')
    assert (load_config(home).sandbox, load_config(home).run_foreign) == (False, True)


def test_what_a_worker_finds_is_less_than_expected_at_most() -> None:
    whole, torn = Isolation(True, True, True, 7, True, ()), Isolation(True, True, True, 0, True, ("no Landlock",))
    walls = Walls(Confinement(FULL))
    walls.note(whole)
    assert walls.seen.text == "full"
    walls.note(torn)
    assert walls.seen.text == "reduced: no Landlock"
    assert not walls.seen.may_run("graph", own=False)
    walls.note(whole)
    assert walls.seen.text == "full"
    off = Walls(Confinement(OFF))
    off.note(Isolation(True, True, False, 0, False, ("not confined: this program is our own",)))
    assert off.seen.text.startswith("off")
