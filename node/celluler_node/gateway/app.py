"""The ASGI application: routes of the other files, behind the guard."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from celluler.errors import CellulerError
from celluler_node.gateway.asking import Asking
from celluler_node.gateway.asking_text import AskingText
from celluler_node.gateway.callers import Callers
from celluler_node.gateway.counted import Counted, Measure
from celluler_node.gateway.failures import on_celluler_error, on_fault, on_http_error
from celluler_node.gateway.guard import Guard
from celluler_node.gateway.keys import KeyRing
from celluler_node.gateway.metrics import metrics_route
from celluler_node.gateway.openapi import openapi_route
from celluler_node.gateway.routes_content import content_routes
from celluler_node.gateway.routes_datasets import dataset_routes
from celluler_node.gateway.routes_deployments import deployment_routes
from celluler_node.gateway.routes_jobs import job_routes
from celluler_node.gateway.routes_kserve import kserve_routes
from celluler_node.gateway.routes_models import model_routes
from celluler_node.gateway.routes_node import health_routes, node_routes
from celluler_node.gateway.routes_openai import openai_routes
from celluler_node.gateway.routes_openai_text import openai_text_routes
from celluler_node.gateway.routes_serving import serving_routes
from celluler_node.gateway.routes_transcripts import transcript_routes
from celluler_node.gateway.routes_versions import version_routes
from celluler_node.operations import Operations

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

MAX_UPLOAD_BYTES = 1 << 40


def gateway_app(
    operations: Operations,
    token: str,
    metrics: CollectorRegistry | None = None,
    *,
    allowed_hosts: Iterable[str] = (),
    spool: Path | None = None,
    max_upload_bytes: int = MAX_UPLOAD_BYTES,
    keys: KeyRing | None = None,
    keys_always: bool = False,
) -> Starlette:
    """The endpoint over a node's operations.

    token: what a caller of /api/v1 must bear. metrics: the node's own counters. allowed_hosts: names besides loopback
    that the Host header may bear. spool: folder for uploads on their way into the store. keys: what others than this
    machine may bear instead; keys_always: this machine, too, where no token is needed.
    """
    counted = Counted()
    asking, texts = Asking(operations, counted), AskingText(operations, counted)
    routes = [
        *health_routes(operations),
        metrics_route(operations, asking, texts, metrics),
        *node_routes(operations),
        *content_routes(operations, spool=spool, max_upload_bytes=max_upload_bytes),
        *version_routes(operations),  # before the models, whose last route takes any text
        *model_routes(operations, asking),
        *serving_routes(operations),
        *dataset_routes(operations),
        *deployment_routes(operations),
        *job_routes(operations),
        *transcript_routes(operations),
        *openai_routes(operations, asking),
        *openai_text_routes(texts),
        *kserve_routes(operations, asking),
        openapi_route(lambda: routes),
    ]
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(Measure, counted),
            Middleware(Guard, token, [host.lower() for host in allowed_hosts], keys, keys_always),
            Middleware(Callers),
        ],
        exception_handlers={CellulerError: on_celluler_error, HTTPException: on_http_error, Exception: on_fault},
    )
