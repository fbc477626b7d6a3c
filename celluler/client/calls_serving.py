"""Calls about models at work. As `calls`."""

from __future__ import annotations

from celluler import views
from celluler.client.calls import MOVE_S, Call, record


def serving() -> Call[views.Serving]:
    return Call("GET", "/api/v1/serving", record(views.Serving))


def load_model(ref: str) -> Call[views.LoadedModel]:
    return Call("POST", "/api/v1/serving/load", record(views.LoadedModel), json={"model": ref}, timeout_s=MOVE_S)


def unload_model(ref: str) -> Call[views.Serving]:
    return Call("POST", "/api/v1/serving/unload", record(views.Serving), json={"model": ref}, timeout_s=MOVE_S)
