from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from celluler.content.digest import Digest
from celluler.errors import InvalidSpec
from celluler.identity import PeerId
from celluler.jobs.states import JobLife
from celluler.models.manifest import describe_model, seal_manifest
from celluler.models.spec import format_spec, parse_spec
from celluler_node.training.material import fetch_material
from celluler_node.training.record import JobRecord
from celluler_node.training.site import Site
from celluler_protocols.jobs_orders import open_order
from tests.support.jobs import ALICE, NOW_S, sealed_order
from tests.support.specs import TINY


def test_a_job_that_would_train_narrow_weights_is_refused_before_they_are_fetched() -> None:
    document = format_spec(replace(parse_spec(TINY), dtype="int8"))
    manifest = seal_manifest(ALICE, describe_model("tiny", "1.0.0", document, b"w" * 32, created_s=0))

    class Fetcher:
        """Has the manifest, and nothing else."""

        async def block(self, _: Digest, hints: tuple[PeerId, ...]) -> bytes:
            return manifest

    record = JobRecord(open_order(sealed_order()), JobLife(NOW_S))
    site = cast(Site, SimpleNamespace(fetcher=Fetcher()))
    with pytest.raises(InvalidSpec, match="trained weights are float32"):
        trio.run(lambda: fetch_material(site, record, hints=()))
