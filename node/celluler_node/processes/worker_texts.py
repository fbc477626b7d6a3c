"""A worker's part of prompts: tokens of texts and of conversations, as its model is asked with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celluler.errors import InvalidSpec
from celluler.inference.questions import MAX_PROMPT_BYTES, Message
from celluler.models.transforms.decoding import TextCodec
from celluler_node.processes.words import Reply
from celluler_node.processes.worker_generate_words import Converse, Encode, Encoded, blob_of

if TYPE_CHECKING:
    from celluler.engines.generation.conversation import Conversation

Blobs = tuple[bytearray, ...]


class Texts:
    """Of the model that is loaded."""

    def __init__(self, codec: Callable[[], TextCodec | None]) -> None:
        """codec: of the model; None of one without texts."""
        self._codec = codec
        self._template: Path | None = None
        self._conversation: Conversation | None = None

    @property
    def handlers(self) -> Mapping[type, Callable[[Any, Blobs], Any]]:
        return {Encode: self.encode, Converse: self.converse}

    def use(self, template: str) -> None:
        """The file of the model's chat template; empty for none."""
        self._template, self._conversation = Path(template) if template else None, None

    def encode(self, _: Encode, blobs: Blobs) -> Reply:
        codec = self._need("prompt")
        if len(blobs) != 1 or len(blobs[0]) > MAX_PROMPT_BYTES:
            raise InvalidSpec("prompt", f"must be one text of at most {MAX_PROMPT_BYTES} bytes")
        try:
            text = blobs[0].decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidSpec("prompt", "is not UTF-8") from None
        try:
            return Reply(Encoded(), (blob_of(codec.encode(text)),))
        except InvalidSpec as error:
            raise InvalidSpec("prompt", error.problem) from error

    def converse(self, request: Converse, _: Blobs) -> Reply:
        from celluler.engines.generation.conversation import plain, read_conversation  # noqa: PLC0415  few need it

        codec = self._need("messages")
        messages = [Message(one.role, one.text) for one in request.turns]
        if self._template is not None and self._conversation is None:
            self._conversation = read_conversation(self._template, codec.marks)
        try:
            if self._conversation is None:
                return Reply(Encoded(), (blob_of(codec.encode(plain(messages))),))
            text = self._conversation.text(messages)
            return Reply(Encoded(), (blob_of(codec.encode(text, marked=True)),))
        except InvalidSpec as error:
            raise InvalidSpec("messages", error.problem) from error

    def _need(self, asked: str) -> TextCodec:
        codec = self._codec()
        if codec is None:
            raise InvalidSpec(asked, "holds a text, and this model makes no tokens of texts")
        return codec
