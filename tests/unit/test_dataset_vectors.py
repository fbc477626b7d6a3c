"""Golden bytes of what an author signs about a dataset."""

from __future__ import annotations

from celluler.datasets.manifest import open_dataset
from celluler.identity import seal
from tests.unit.test_dataset_manifest import ALICE, SUMMARY, manifest
from tests.unit.test_record_vectors import check_records


def test_datasets_are_sealed_as_documented() -> None:
    records = [manifest(), manifest(version="2.0.0-rc.1", label="", balance=(), card=None, parents=(), regions=())]
    check_records("datasets", "", ALICE, records)
    assert [open_dataset(seal(ALICE, record)).record for record in records] == records
    assert records[0].summary == SUMMARY
