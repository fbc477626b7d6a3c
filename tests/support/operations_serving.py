"""The part of the node in memory about models at work."""

from __future__ import annotations

from celluler.content.digest import cid_of, digest_of
from celluler.errors import NotFound
from celluler.models.names import parse_reference
from celluler.views import LoadedModel, Serving, Tally
from tests.support.jobs import NOW_S

LIMIT_BYTES = 8 << 30


class MemoryServing:
    """`loaded`: by the name that was asked for."""

    def __init__(self) -> None:
        self.loaded: dict[str, LoadedModel] = {}

    async def serving(self) -> Serving:
        used = sum(one.memory_bytes for one in self.loaded.values())
        batches, loads = Tally((1.0, 2.0), (3, 1, 0), 5.0), Tally((1.0,), (len(self.loaded), 0), 0.5)
        return Serving(tuple(self.loaded.values()), used, LIMIT_BYTES, batches, loads, 0)

    async def load_model(self, ref: str) -> LoadedModel:
        parse_reference(ref)
        self.loaded[ref] = LoadedModel(
            model=ref,
            cid=cid_of(digest_of(ref.encode())),
            state="ready",
            progress=None,
            memory_bytes=400 << 20,
            running=1,
            waiting=2,
            batch=8.0,
            requests_s=12.5,
            tokens_s=0.0,
            requests=100,
            device="cpu",
            dtype="float32",
            loading_s=1.5,
            used_s=NOW_S,
            kept=True,
            kept_until_s=None,
            names=(ref,),
        )
        return self.loaded[ref]

    async def unload_model(self, ref: str) -> Serving:
        if self.loaded.pop(ref, None) is None:
            raise NotFound(f"{ref} among the loaded models", hint="celluler ps")
        return await self.serving()
