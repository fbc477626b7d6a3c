"""Files over HTTP: nginx with TLS 1.3 and curl, and huggingface_hub from a plain server that answers as its hub does.

curl verifies nothing and neither does huggingface_hub. nginx and curl are the system's, if it has them.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

from simulations.bench.content_raw import make_certificate
from simulations.bench.content_ways import Child, Content, Missing, Way, make_durable, orders, say

_MODULE = "simulations.bench.content_http"
_REPOSITORY, _COMMIT = "bench/content", "0" * 40
_START_S = 10.0
_CONFIGURATION = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log crit; {user}
events {{ worker_connections 64; }}
http {{
  access_log off; sendfile on;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port} ssl; root {root};
    ssl_certificate {certificate}; ssl_certificate_key {certificate}; ssl_protocols TLSv1.3;
  }}
}}
"""


# --- nginx and curl ------------------------------------------------------------------------------------------------


@contextmanager
def open_curl(content: Content) -> Iterator[Mapping[str, Way]]:
    absent = [tool for tool in ("nginx", "curl") if shutil.which(tool) is None]
    if absent:
        raise Missing(f"{' and '.join(absent)} not installed")
    folder = content.scratch / "nginx"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = folder / "nginx.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            folder=folder,
            port=port,
            root=content.path.parent,
            certificate=make_certificate(folder),
            user="user root;" if os.geteuid() == 0 else "",
        )
    )
    command = ["nginx", "-c", str(configuration), "-p", str(folder), "-e", str(folder / "error.log")]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, server)
        yield {"curl": lambda into: _curl(f"https://127.0.0.1:{port}/{content.path.name}", into / "data")}
    finally:
        server.terminate()
        server.wait(10)


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise Missing("nginx does not start")


def _curl(url: str, into: Path) -> float:
    command = ["curl", "--silent", "--fail", "--insecure", "--tlsv1.3", "--noproxy", "*", "-o", str(into), url]
    began = time.perf_counter()
    if (status := subprocess.run(command, check=False).returncode) != 0:
        raise Missing(f"curl ended with status {status}")
    make_durable(into)
    return time.perf_counter() - began


# --- huggingface_hub -----------------------------------------------------------------------------------------------


@contextmanager
def open_hub(content: Content) -> Iterator[Mapping[str, Way]]:
    if find_spec("huggingface_hub") is None:
        raise Missing("huggingface_hub not installed")
    with Child(_MODULE, "provide", str(content.path)) as provider:
        endpoint = f"http://127.0.0.1:{provider.about['port']}"
        with Child(_MODULE, "fetch", endpoint, content.path.name) as client:
            yield {"hub": lambda folder: client.seconds(into=str(folder))}


def _provide(path: Path) -> None:
    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._head()

        def do_GET(self) -> None:
            self._head()
            self.wfile.flush()
            with path.open("rb") as file:
                self.connection.sendfile(file)

        def _head(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.send_header("ETag", f'"{time.time_ns():x}"')  # another each time: nothing is taken from a cache
            self.send_header("X-Repo-Commit", _COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(port=server.server_port)
    sys.stdin.read()


def _fetch(endpoint: str, name: str) -> None:
    os.environ.update(HF_ENDPOINT=endpoint, HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    os.environ.update(HF_HUB_DISABLE_XET="1", NO_PROXY="*", HF_HUB_DISABLE_IMPLICIT_TOKEN="1")
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - reads its settings at import

    say()
    for order in orders():
        folder = Path(order["into"])
        began = time.perf_counter()
        path = hf_hub_download(_REPOSITORY, name, cache_dir=folder)
        make_durable(Path(path))
        say(seconds=time.perf_counter() - began)


if __name__ == "__main__":
    _provide(Path(sys.argv[2])) if sys.argv[1] == "provide" else _fetch(*sys.argv[2:])
