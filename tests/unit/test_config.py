"""Configuration: which source wins, and how a wrong value is named."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from celluler.errors import InvalidSpec
from celluler.home import places
from celluler_node.cli.node_commands import _template
from celluler_node.config import load_config
from celluler_node.settings import SETTINGS

PEER = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"


def write(home: Path, text: str) -> dict[str, str]:
    (home / "config.toml").write_text(text)
    return {"CELLULER_HOME": str(home)}


def test_without_anything_the_node_is_closed(tmp_path: Path) -> None:
    config = load_config({"CELLULER_HOME": str(tmp_path)})
    assert config.listen == ("/ip4/127.0.0.1/tcp/0",)
    assert (config.api_host, config.api_port, config.sandbox) == ("127.0.0.1", 8787, True)
    assert config.worker_threads >= 1
    assert config.store_folder == tmp_path / "store"
    assert config.key_file.parent == config.node_file.parent == config.home == tmp_path


def test_a_flag_goes_before_a_variable_before_the_file_before_the_default(tmp_path: Path) -> None:
    environment = write(tmp_path, '[api]\nport = 1\n[store]\nquota = "1MiB"\n')
    assert load_config(environment).api_port == 1
    environment["CELLULER_API_PORT"] = "2"
    assert load_config(environment).api_port == 2
    assert load_config(environment, {"api.port": 0}).api_port == 0
    assert load_config(environment, {"api.port": None}).api_port == 2
    assert load_config(environment).store_quota_bytes == 1 << 20
    environment["CELLULER_API_PORT"] = ""
    assert load_config(environment).api_port == 1


def test_lists_come_from_arrays_and_from_commas(tmp_path: Path) -> None:
    environment = write(tmp_path, '[network]\nlisten = ["/ip4/0.0.0.0/tcp/4040", "/ip6/::1/tcp/0"]\n')
    assert len(load_config(environment).listen) == 2
    environment["CELLULER_JOIN"] = f"/ip4/192.0.2.7/tcp/1/p2p/{PEER}, /dns4/box.lan/tcp/2/p2p/{PEER}"
    assert load_config(environment).join[1].startswith("/dns4/")


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("nickname = 3", "nickname", "not a nickname"),
        ('nickname = "Alice!"', "nickname", "not a nickname"),
        ("nicknam = 1", "nicknam", "no such setting"),
        ("[network]\nlisten = 4040", "network.listen", "not a list"),
        ('[network]\nlisten = ["/ip4/1.2.3/tcp/4"]', "network.listen", "1.2.3"),
        ('[network]\nlisten = ["/ip4/::1/tcp/4"]', "network.listen", "no ip4"),
        ('[network]\nlisten = ["/ip4/0.0.0.0/tcp/70000"]', "network.listen", "no such port"),
        ('[network]\njoin = ["/ip4/192.0.2.7/tcp/1"]', "network.join", "/p2p/"),
        ("[network.listen]\na = 1", "network.listen", "not a list"),
        ("[api]\nport = 65536", "api.port", "0..65535"),
        ("[api]\nport = true", "api.port", "whole number"),
        ("[api]\ntls = true", "api.tls", "no such setting"),
        ('[store]\nquota = "much"', "store.quota", "no size"),
        ("[store]\nquota = 0", "store.quota", "no size"),
        ('[worker]\nsandbox = "maybe"', "worker.sandbox", "neither on nor off"),
        ('[log]\nformat = "xml"', "log.format", "text, json"),
        ('roles = ["mine"]', "roles", "train, serve"),
        ("[api", "", "cannot read"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, path: str, words: str) -> None:
    with pytest.raises(InvalidSpec) as raised:
        load_config(write(tmp_path, text))
    assert raised.value.path == path
    assert words in str(raised.value)


def test_a_wrong_variable_is_named_as_a_variable(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec) as raised:
        load_config({"CELLULER_HOME": str(tmp_path), "CELLULER_STORE_QUOTA": "-1"})
    assert raised.value.path == "CELLULER_STORE_QUOTA"


def test_a_file_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="no configuration file"):
        load_config({"CELLULER_HOME": str(tmp_path), "CELLULER_CONFIG": str(tmp_path / "absent.toml")})


def test_the_xdg_folders_are_used_without_a_home_of_ours(tmp_path: Path) -> None:
    where = places({"HOME": "/home/a", "XDG_DATA_HOME": "/data", "XDG_STATE_HOME": "relative"})
    assert (str(where.home), str(where.store)) == ("/home/a/.local/state/celluler", "/data/celluler/store")
    assert str(where.config_file) == "/home/a/.config/celluler/config.toml"


@pytest.mark.parametrize("nickname", ["", "alice"])
def test_the_file_that_init_writes_is_right_as_it_is_and_with_every_line_set(tmp_path: Path, nickname: str) -> None:
    template = _template(nickname)
    plain = load_config({"CELLULER_HOME": str(tmp_path)}, {"nickname": nickname or None})
    assert load_config(write(tmp_path, template)) == plain
    settings = {key for setting in SETTINGS for key in [setting.path.rpartition(".")[2]]}
    lines = [line[2:] if line[2:].partition(" =")[0] in settings else line for line in template.splitlines()]
    everything: dict[str, Any] = tomllib.loads("\n".join(lines))
    assert set(everything) >= {"network", "api", "store", "worker", "log"}
    for table, values in everything.items():
        for key in values if isinstance(values, dict) else [table]:
            assert key in settings
