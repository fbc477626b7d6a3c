"""Every setting of a node: its place in the file, its variable, how it is read and what it is for.

`docs/reference/configuration.md` is checked against it. Settings of one section stand together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celluler.quantities import parse_bytes
from celluler_node.setting_readers import (
    NICKNAME,
    REGION,
    ROLES,
    TRAINING_ROLES,
    address,
    between,
    bootstrap,
    bytes_or_none,
    host,
    lessee,
    list_of,
    model,
    one_of,
    path,
    share,
    switch,
    text_like,
)


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
        text_like(NICKNAME, "a nickname: a-z, 0-9 and -, at most 39"),
        "",
        "how others see this peer, and the author of its models; when empty, made from the peer id",
    ),
    Setting(
        "roles",
        "roles",
        list_of(one_of(*ROLES), 3),
        ROLES,
        "what it does for the swarm: `train` joins training runs, `serve` answers predictions, `store` keeps replicas",
    ),
    Setting(
        "network.listen",
        "listen",
        list_of(address, 8),
        ("/ip4/127.0.0.1/tcp/0",),
        "where peers reach it; the default is closed, only this machine gets in; `/ip4/0.0.0.0/tcp/4040` opens it",
    ),
    Setting(
        "network.join",
        "join",
        list_of(bootstrap, 32),
        (),
        "addresses of peers to join by, ending in `/p2p/…`; none starts a swarm, or rejoins the last one",
    ),
    Setting(
        "network.region",
        "region",
        text_like(REGION, "a region: a-z, 0-9 and -, at most 32"),
        "",
        "where this peer is (`eu-west`), so that replicas can be spread; its own word, empty for none",
    ),
    Setting(
        "api.host",
        "api_host",
        host,
        "127.0.0.1",
        "where the HTTP endpoint listens",
    ),
    Setting(
        "api.port",
        "api_port",
        between(0, 65535),
        8787,
        "its port; 0 takes any free one, told in node.json",
    ),
    Setting(
        "api.allowed_hosts",
        "api_allowed_hosts",
        list_of(host, 16),
        (),
        "names besides loopback that the Host header of a request may bear",
    ),
    Setting(
        "api.keys",
        "api_keys",
        one_of("remote", "always"),
        "remote",
        "who needs an API key for predictions and metrics: `remote` whoever does not come from this machine, `always` "
        "everybody, as behind a proxy on this machine",
    ),
    Setting(
        "api.rate",
        "api_rate",
        between(1, 1_000_000),
        600,
        "requests a minute that an API key may make when it says nothing else",
    ),
    Setting(
        "api.tls_certificate",
        "tls_certificate",
        path,
        None,
        "PEM file with the certificate chain of the HTTP endpoint; with `api.tls_key` it speaks TLS at `api.host`, and "
        "plain HTTP at a loopback port for the commands of this machine",
    ),
    Setting(
        "api.tls_key",
        "tls_key",
        path,
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
        path,
        None,
        "where content lies; by default `store` under the data folder",
    ),
    Setting(
        "store.replicas",
        "replica_bytes",
        bytes_or_none,
        "5GiB",
        "the most of the quota that models kept for the swarm alone may take; 0 keeps none",
    ),
    Setting(
        "training.roles",
        "training_roles",
        list_of(one_of(*TRAINING_ROLES), 3),
        TRAINING_ROLES,
        "what it does in a training run: `worker` trains, `aggregator` reduces parts of the updates (only who trains "
        "does), `validator` votes, checks and audits",
    ),
    Setting(
        "training.port",
        "training_port",
        between(0, 65535),
        0,
        "TCP port of the process that averages with other members; 0 takes any free one",
    ),
    Setting(
        "transfer.bulk",
        "bulk",
        switch,
        "on",
        "`on` moves large content over TLS beside libp2p, in a process of its own; `off` by libp2p alone",
    ),
    Setting(
        "transfer.port",
        "bulk_port",
        between(0, 65535),
        0,
        "TCP port of the bulk process; 0 takes any free one; it listens on the addresses of `network.listen`",
    ),
    Setting(
        "transfer.up",
        "up_bytes_s",
        bytes_or_none,
        "0",
        "the most content sent a second, as in `10MiB`; 0 sets no limit",
    ),
    Setting(
        "transfer.down",
        "down_bytes_s",
        bytes_or_none,
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
        between(1, 1024),
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
        between(0, 8),
        1,
        "workers that wait for the next model, from the first prediction on; each takes some 310 MB",
    ),
    Setting(
        "worker.sandbox",
        "sandbox",
        switch,
        "on",
        "`on` confines workers by all that the kernel offers; `off` leaves limits only, which every member is told",
        file_only=True,
    ),
    Setting(
        "worker.foreign",
        "run_foreign",
        switch,
        "off",
        "`on` runs graphs, ONNX and GGUF models of other peers also where the sandbox is off or not complete",
        file_only=True,
    ),
    Setting(
        "serve.threads",
        "serve_threads",
        between(1, 1024),
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
        between(0, 30 * 86400),
        300,
        "seconds after which a model that nobody asks for is unloaded; 0 for never",
    ),
    Setting(
        "serve.batch",
        "serve_batch",
        between(1, 1024),
        32,
        "samples of several predictions that are computed together at most; 1 to compute each prediction alone",
    ),
    Setting(
        "serve.queue",
        "serve_queue",
        between(1, 4096),
        256,
        "predictions of one model that may wait; whoever asks for another is told that this node is busy",
    ),
    Setting(
        "serve.preload",
        "serve_preload",
        list_of(model, 32),
        (),
        "models that are loaded when the node starts and stay loaded, as `author/name`, which goes on meaning the "
        "author's current version, or `author/name:1.0.0`",
    ),
    Setting(
        "serve.leases",
        "serve_leases",
        list_of(lessee, 32),
        ("members",),
        "for whose deployments this node keeps models loaded: `members` of the swarm, `none`, or ids of peers",
    ),
    Setting(
        "serve.cache",
        "serve_cache_bytes",
        bytes_or_none,
        "0",
        "the most memory for answers that are kept, to be given again to a client that asks the same; 0 keeps none",
    ),
    Setting(
        "serve.cache_private",
        "serve_cache_private",
        switch,
        "off",
        "`on` keeps answers of encrypted models, too",
    ),
    Setting(
        "checks.share",
        "checks_share",
        share,
        "5%",
        "how many of the answers that come from other peers are checked, drawn at random, after they were given: a "
        "share in 0..1 or a percentage; 0 checks none",
    ),
    Setting(
        "log.format",
        "log_format",
        one_of("text", "json"),
        "text",
        "of the log",
    ),
    Setting(
        "log.level",
        "log_level",
        one_of("debug", "info", "warning", "error"),
        "info",
        "the least that is logged",
    ),
    Setting(
        "log.file",
        "log_file",
        path,
        None,
        "file to log to, rotated at 10 MiB; by default stderr, and `node.log` in the home with `--detach`",
    ),
)
