"""Configuration: flag > `CELLULER_*` > TOML file > default, checked once, then frozen.

One table, `SETTINGS`, says for every setting its place in the file, its variable, how it is read and what it is for;
`docs/reference/configuration.md` is checked against it. The environment is handed in by the command line: nothing
below it reads any.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celluler.errors import InvalidSpec, ProtocolViolation
from celluler.home import NODE_FILE, places
from celluler.identity import public_key_of
from celluler.models.names import parse_reference
from celluler.quantities import parse_bytes

NICKNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,37}[a-z0-9])?")
_ADDRESS = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/[^/\s]+/tcp/\d{1,5}(/p2p/\w+)?")
_REGION = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
ROLES = ("train", "serve", "store")
TRAINING_ROLES = ("worker", "aggregator", "validator")


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


# --- readers: what a person wrote to a value; each raises ValueError with the reason ------------------------------


def _text(pattern: re.Pattern[str], wanted: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"{value!r} is not {wanted}")
        return value

    return read


def _one_of(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
        return str(value)

    return read


def _between(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{value!r} is not a whole number in {low}..{high}")
        return value

    return read


def _list_of(read_item: Callable[[Any], str], most: int) -> Callable[[Any], tuple[str, ...]]:
    """A TOML array, or text with commas (as variables have it)."""

    def read(value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            value = [item.strip() for item in value.split(",") if item.strip()]
        if not isinstance(value, (list, tuple)) or len(value) > most:
            raise ValueError(f"{value!r} is not a list of at most {most}")
        return tuple(read_item(item) for item in value)

    return read


def _lessee(value: Any) -> str:
    """Whom a model may be kept for: `members`, `none`, or one peer."""
    if value not in ("members", "none"):
        try:
            public_key_of(value)
        except (ProtocolViolation, TypeError, AttributeError):
            raise ValueError(f"{value!r} is neither members, nor none, nor the id of a peer") from None
    return str(value)


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("on", "off", "true", "false"):
        return value.lower() in ("on", "true")
    raise ValueError(f"{value!r} is neither on nor off")


def _share(value: Any) -> float:
    """A number in 0..1, or text of one, or of a percentage."""
    if isinstance(value, str):
        value = float(value[:-1]) / 100 if value.endswith("%") else float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{value!r} is not a share in 0..1")
    return float(value)


def _bytes_or_none(value: Any) -> int:
    """A size, or 0 for none."""
    return 0 if value in (0, "0") and value is not False else parse_bytes(value)


def _address(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(
        r"/(ip4|ip6|dns|dns4|dns6)/[^/\s]+/tcp/\d{1,5}(/p2p/\w+)?", value
    ):
        raise ValueError(f"{value!r} is not an address such as /ip4/127.0.0.1/tcp/4040")
    _, family, host, _, port, *_ = value.split("/")
    if int(port) > 65535:
        raise ValueError(f"{value!r}: no such port")
    if family in ("ip4", "ip6") and f"ip{ipaddress.ip_address(host).version}" != family:
        raise ValueError(f"{value!r}: {host} is no {family} address")
    return value


def _bootstrap(value: Any) -> str:
    address = _address(value)
    if "/p2p/" not in address:
        raise ValueError(f"{value!r} lacks the peer's id: it ends in /p2p/12D3KooW…, as `celluler status` prints it")
    return address


def _model(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no name of a model")
    try:
        parse_reference(value)
    except InvalidSpec as error:
        raise ValueError(f"{value!r} is no name of a model: {error.problem}") from None
    return value


def _path(value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no path")
    return Path(value).expanduser().absolute()


_host = _text(re.compile(r"[A-Za-z0-9.:\[\]_-]{1,253}"), "a host name or address")


# --- the settings ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """path: in the TOML file. field: in NodeConfig. read: what was written to the value. about: one line.

    file_only: a decision of the operator, to be read where the node's settings are read, and not one of whoever
    starts it.
    """

    path: str
    field: str
    read: Callable[[Any], Any]
    default: Any
    about: str
    file_only: bool = False

    @property
    def variable(self) -> str:
        return "CELLULER_" + self.path.upper().replace(".", "_").replace("NETWORK_", "")


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "nickname",
        "nickname",
        _text(NICKNAME, "a nickname: a-z, 0-9 and -, at most 39"),
        "",
        "how others see this peer, and the author of its models; when empty, made from the peer id",
    ),
    Setting(
        "roles",
        "roles",
        _list_of(_one_of(*ROLES), 3),
        ROLES,
        "what it does for the swarm: `train` joins training runs, `serve` answers predictions, `store` keeps replicas",
    ),
    Setting(
        "network.listen",
        "listen",
        _list_of(_address, 8),
        ("/ip4/127.0.0.1/tcp/0",),
        "where peers reach it; the default is closed, only this machine gets in; `/ip4/0.0.0.0/tcp/4040` opens it",
    ),
    Setting(
        "network.join",
        "join",
        _list_of(_bootstrap, 32),
        (),
        "addresses of peers to join by, ending in `/p2p/…`; none starts a swarm, or rejoins the last one",
    ),
    Setting(
        "network.region",
        "region",
        _text(_REGION, "a region: a-z, 0-9 and -, at most 32"),
        "",
        "where this peer is (`eu-west`), so that replicas can be spread; its own word, empty for none",
    ),
    Setting(
        "api.host",
        "api_host",
        _host,
        "127.0.0.1",
        "where the HTTP endpoint listens",
    ),
    Setting(
        "api.port",
        "api_port",
        _between(0, 65535),
        8787,
        "its port; 0 takes any free one, told in node.json",
    ),
    Setting(
        "api.allowed_hosts",
        "api_allowed_hosts",
        _list_of(_host, 16),
        (),
        "names besides loopback that the Host header of a request may bear",
    ),
    Setting(
        "api.keys",
        "api_keys",
        _one_of("remote", "always"),
        "remote",
        "who needs an API key for predictions and metrics: `remote` whoever does not come from this machine, `always` "
        "everybody, as behind a proxy on this machine",
    ),
    Setting(
        "api.rate",
        "api_rate",
        _between(1, 1_000_000),
        600,
        "requests a minute that an API key may make when it says nothing else",
    ),
    Setting(
        "api.tls_certificate",
        "tls_certificate",
        _path,
        None,
        "PEM file with the certificate chain of the HTTP endpoint; with `api.tls_key` it speaks TLS at `api.host`, and "
        "plain HTTP at a loopback port for the commands of this machine",
    ),
    Setting(
        "api.tls_key",
        "tls_key",
        _path,
        None,
        "PEM file with the secret key of the certificate, without a password",
    ),
    Setting(
        "store.quota",
        "store_quota_bytes",
        parse_bytes,
        "10GiB",
        "the most that content may take on disk",
    ),
    Setting(
        "store.folder",
        "store_folder",
        _path,
        None,
        "where content lies; by default `store` under the data folder",
    ),
    Setting(
        "store.replicas",
        "replica_bytes",
        _bytes_or_none,
        "5GiB",
        "the most of the quota that models kept for the swarm alone may take; 0 keeps none",
    ),
    Setting(
        "training.roles",
        "training_roles",
        _list_of(_one_of(*TRAINING_ROLES), 3),
        TRAINING_ROLES,
        "what it does in a training run: `worker` trains, `aggregator` reduces parts of the updates (only who trains "
        "does), `validator` votes, checks and audits",
    ),
    Setting(
        "training.port",
        "training_port",
        _between(0, 65535),
        0,
        "TCP port of the process that averages with other members; 0 takes any free one",
    ),
    Setting(
        "transfer.bulk",
        "bulk",
        _switch,
        "on",
        "`on` moves large content over TLS beside libp2p, in a process of its own; `off` by libp2p alone",
    ),
    Setting(
        "transfer.port",
        "bulk_port",
        _between(0, 65535),
        0,
        "TCP port of the bulk process; 0 takes any free one; it listens on the addresses of `network.listen`",
    ),
    Setting(
        "transfer.up",
        "up_bytes_s",
        _bytes_or_none,
        "0",
        "the most content sent a second, as in `10MiB`; 0 sets no limit",
    ),
    Setting(
        "transfer.down",
        "down_bytes_s",
        _bytes_or_none,
        "0",
        "the most content received a second; 0 sets no limit",
    ),
    Setting(
        "worker.memory",
        "worker_memory_bytes",
        parse_bytes,
        "8GiB",
        "address space of one worker, the process that runs a model",
    ),
    Setting(
        "worker.threads",
        "worker_threads",
        _between(1, 1024),
        None,
        "threads of one worker; by default the cores this process may use",
    ),
    Setting(
        "worker.disk",
        "worker_disk_bytes",
        parse_bytes,
        "32GiB",
        "the most that one worker's working files may take",
    ),
    Setting(
        "worker.spares",
        "worker_spares",
        _between(0, 8),
        1,
        "workers that wait for the next model, from the first prediction on; each takes some 310 MB",
    ),
    Setting(
        "worker.sandbox",
        "sandbox",
        _switch,
        "on",
        "`on` confines workers by all that the kernel offers; `off` leaves limits only, which every member is told",
        file_only=True,
    ),
    Setting(
        "worker.foreign",
        "run_foreign",
        _switch,
        "off",
        "`on` runs graphs, ONNX and GGUF models of other peers also where the sandbox is off or not complete",
        file_only=True,
    ),
    Setting(
        "serve.threads",
        "serve_threads",
        _between(1, 1024),
        None,
        "threads of a worker that serves a model; by default half of `worker.threads`, so that two may be busy at once",
    ),
    Setting(
        "serve.memory",
        "serve_memory_bytes",
        parse_bytes,
        None,
        "what all models that are loaded may take together; by default three quarters of this machine's memory",
    ),
    Setting(
        "serve.idle",
        "serve_idle_s",
        _between(0, 30 * 86400),
        300,
        "seconds after which a model that nobody asks for is unloaded; 0 for never",
    ),
    Setting(
        "serve.batch",
        "serve_batch",
        _between(1, 1024),
        32,
        "samples of several predictions that are computed together at most; 1 to compute each prediction alone",
    ),
    Setting(
        "serve.queue",
        "serve_queue",
        _between(1, 4096),
        256,
        "predictions of one model that may wait; whoever asks for another is told that this node is busy",
    ),
    Setting(
        "serve.preload",
        "serve_preload",
        _list_of(_model, 32),
        (),
        "models that are loaded when the node starts and stay loaded, as `author/name`, which goes on meaning the "
        "author's current version, or `author/name:1.0.0`",
    ),
    Setting(
        "serve.leases",
        "serve_leases",
        _list_of(_lessee, 32),
        ("members",),
        "for whose deployments this node keeps models loaded: `members` of the swarm, `none`, or ids of peers",
    ),
    Setting(
        "serve.cache",
        "serve_cache_bytes",
        _bytes_or_none,
        "0",
        "the most memory for answers that are kept, to be given again to a client that asks the same; 0 keeps none",
    ),
    Setting(
        "serve.cache_private",
        "serve_cache_private",
        _switch,
        "off",
        "`on` keeps answers of encrypted models, too",
    ),
    Setting(
        "checks.share",
        "checks_share",
        _share,
        "5%",
        "how many of the answers that come from other peers are checked, drawn at random, after they were given: a "
        "share in 0..1 or a percentage; 0 checks none",
    ),
    Setting(
        "log.format",
        "log_format",
        _one_of("text", "json"),
        "text",
        "of the log",
    ),
    Setting(
        "log.level",
        "log_level",
        _one_of("debug", "info", "warning", "error"),
        "info",
        "the least that is logged",
    ),
    Setting(
        "log.file",
        "log_file",
        _path,
        None,
        "file to log to, rotated at 10 MiB; by default stderr, and `node.log` in the home with `--detach`",
    ),
)


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
