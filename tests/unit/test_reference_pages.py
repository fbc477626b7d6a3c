"""The reference pages say what the code says."""

from __future__ import annotations

from pathlib import Path

from celluler.jobs import reference as jobs
from celluler.models.transforms import reference as transforms
from celluler_node.cli import reference as node
from celluler_node.gateway.app import gateway_app
from tests.support.operations import MemoryNode

PAGES = Path(__file__).parents[2] / "docs" / "reference"


def test_the_pages_are_as_the_code_renders_them() -> None:
    assert (PAGES / "cli.md").read_text("utf-8") == node.render_cli()
    assert (PAGES / "configuration.md").read_text("utf-8") == node.render_configuration()
    assert (PAGES / "job-spec.md").read_text("utf-8") == jobs.render()
    assert (PAGES / "transforms.md").read_text("utf-8") == transforms.render()


def test_every_route_is_on_the_http_page() -> None:
    fake = MemoryNode()
    page = (PAGES / "http.md").read_text("utf-8")
    for route in gateway_app(fake, "t").routes:
        for method in sorted(route.methods - {"HEAD"}):  # type: ignore[attr-defined]
            assert f"`{method} {route.path.replace(':path', '').replace(':reference', '')}" in page, route.path  # type: ignore[attr-defined]
    fake.close()
