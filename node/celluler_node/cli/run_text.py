"""`celluler run MODEL "prompt"`: a model that writes goes on with a text, or answers it."""

from __future__ import annotations

from celluler.client import AsyncClient
from celluler.client.calls_text import Prompt, SamplingFields
from celluler.errors import InvalidSpec, LocalError
from celluler.views import Model, to_json
from celluler_node.cli.output import Output, printable
from celluler_node.cli.text_options import converses, say_figures, stream, writes


async def write(
    client: AsyncClient,
    name: str,
    text: str,
    said: SamplingFields,
    output: Output,
    *,
    system: str = "",
    raw: bool = False,
    as_it_comes: bool | None = None,
) -> None:
    """raw: go on with the text itself, also where the model has a template for conversations. as_it_comes: None for
    as it comes, unless a document is asked for. Raises LocalError for a model that does not write."""
    model = await client.models.show(name)
    if not writes(model):
        raise LocalError(
            f"{text[:80]!r} is neither a file nor a batch in JSON, and {model.reference} does not write text",
            hint=f"celluler model show {model.reference}",
        )
    prompt = prompt_of(model, text, system=system, raw=raw)
    if output.as_json and as_it_comes:
        async with await client.generate(name, prompt, stream=True, **said) as pieces:
            async for piece in pieces:
                output.document(piece)
            output.document({**to_json(pieces.generation), "text": pieces.generation.text})
    elif output.as_json:
        told = await client.generate(name, prompt, **said)
        output.document({**to_json(told), "text": told.text})
    elif as_it_comes is False:
        told = await client.generate(name, prompt, **said)
        print(printable(told.text, keep="\n\t"))
        say_figures(told)
    else:
        say_figures(await stream(client, name, prompt, said))


def prompt_of(model: Model, text: str, *, system: str, raw: bool) -> Prompt:
    """Raises InvalidSpec."""
    if not text:
        raise InvalidSpec("input", "is empty")
    if raw or not converses(model):
        if system:
            raise InvalidSpec("--system", "needs a model with a chat template, and no --raw")
        return text
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": text}]
