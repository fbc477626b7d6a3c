"""Configuration: flag > `CELLULER_*` > TOML file > default, checked once, then frozen.

What settings there are stands in `settings`. The environment is handed in by the command line: nothing below it reads
any.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celluler.errors import InvalidSpec
from celluler.home import NODE_FILE, places
from celluler_node.settings import SETTINGS, Setting


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """A node's whole configuration. `SETTINGS` explains each field; home and what follows from it are below.

    nickname: "" means one derived from the peer id.
    """

    home: Path
    store_folder: Path
    nickname: str
    roles: tuple[str, ...]
    listen: tuple[str, ...]
    join: tuple[str, ...]
    api_host: str
    api_port: int
    api_allowed_hosts: tuple[str, ...]
    api_keys: str
    api_rate: int
    tls_certificate: Path | None
    tls_key: Path | None
    region: str
    store_quota_bytes: int
    replica_bytes: int
    bulk: bool
    training_roles: tuple[str, ...]
    training_port: int
    bulk_port: int
    up_bytes_s: int
    down_bytes_s: int
    worker_memory_bytes: int
    worker_threads: int
    worker_disk_bytes: int
    worker_spares: int
    serve_threads: int
    serve_memory_bytes: int | None
    serve_idle_s: int
    serve_batch: int
    serve_queue: int
    serve_preload: tuple[str, ...]
    serve_leases: tuple[str, ...]
    serve_cache_bytes: int
    serve_cache_private: bool
    checks_share: float
    sandbox: bool
    run_foreign: bool
    log_format: str
    log_level: str
    log_file: Path | None

    @property
    def key_file(self) -> Path:
        return self.home / "identity.key"

    @property
    def keys_file(self) -> Path:
        """What `celluler key` writes: hashes of API keys."""
        return self.home / "keys.json"

    @property
    def state_file(self) -> Path:
        return self.home / "state.json"

    @property
    def deployments_file(self) -> Path:
        return self.home / "deployments.json"

    @property
    def node_file(self) -> Path:
        return self.home / NODE_FILE

    @property
    def vault_folder(self) -> Path:
        """Plaintext of the encrypted models that this peer may read; given to nobody."""
        return self.home / "vault"

    @property
    def jobs_folder(self) -> Path:
        """What this node knows of its jobs, one file each."""
        return self.home / "jobs"

    @property
    def detached_log_file(self) -> Path:
        """Where a node started with `--detach` logs when nothing else is said."""
        return self.home / "node.log"

    @property
    def scratch_folder(self) -> Path:
        """Working files of workers and averagers; emptied by a starting node."""
        return self.home / "scratch"


def load_config(
    environment: Mapping[str, str],
    flags: Mapping[str, Any] | None = None,
    *,
    config_file: Path | None = None,
) -> NodeConfig:
    """The configuration. flags: values by a setting's path, None meaning not given.

    config_file: must exist when named; else the one in the usual place is read if it is there.
    Raises InvalidSpec naming the flag's path, the variable, or the key in the file.
    """
    where = places(environment)
    if config_file is None and environment.get("CELLULER_CONFIG"):
        config_file = Path(environment["CELLULER_CONFIG"]).expanduser()
    written = _read_file(config_file or where.config_file, required=config_file is not None)
    given = {path: value for path, value in (flags or {}).items() if value is not None}
    if unknown := set(given) - {setting.path for setting in SETTINGS}:
        raise InvalidSpec(min(unknown), "no such setting")
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        if setting.file_only:
            _only_in_file(setting, given, environment)
        values[setting.field] = _resolve(setting, given, environment, written)
    if (values["tls_certificate"] is None) != (values["tls_key"] is None):
        missing = "api.tls_key" if values["tls_key"] is None else "api.tls_certificate"
        raise InvalidSpec(missing, "a certificate and its key are set together, or neither")
    values["store_folder"] = values["store_folder"] or where.store
    values["worker_threads"] = values["worker_threads"] or _usable_cores()
    values["serve_threads"] = values["serve_threads"] or max(1, values["worker_threads"] // 2)
    return NodeConfig(home=where.home, **values)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _resolve(
    setting: Setting, flags: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, Any]
) -> Any:
    for source, key, name in (
        (flags, setting.path, setting.path),
        (environment, setting.variable, setting.variable),
        (file, setting.path, setting.path),
    ):
        if key in source and source[key] != "":
            try:
                return setting.read(source[key])
            except ValueError as error:
                raise InvalidSpec(name, str(error)) from None
    return setting.default if setting.default in (None, "") else setting.read(setting.default)


def _only_in_file(setting: Setting, flags: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    for source, key in ((flags, setting.path), (environment, setting.variable)):
        if source.get(key):
            raise InvalidSpec(key, f"{setting.path} is set in the configuration file alone")


def _read_file(path: Path, *, required: bool) -> dict[str, Any]:
    """The file's settings by path. Raises InvalidSpec for a file that is no TOML, and for keys nobody knows."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if required:
            raise InvalidSpec("", f"no configuration file at {path}") from None
        return {}
    except (OSError, ValueError) as error:
        raise InvalidSpec("", f"cannot read {path}: {error}") from None
    known = {setting.path for setting in SETTINGS}
    flat = dict(_flatten(document, "", {path.rpartition(".")[0] for path in known}))
    for key in flat:
        if key not in known:
            raise InvalidSpec(key, f"no such setting in {path}", hint="see docs/reference/configuration.md")
    return flat


def _flatten(table: Mapping[str, Any], prefix: str, sections: set[str]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and path in sections:
            yield from _flatten(value, f"{path}.", sections)
        else:
            yield path, value
