"""What is asked of a worker that brings models in and out of other formats, and what it answers. Imports no torch.

Such a worker is started for one file, by whoever owns the file; it may read that file and write its scratch folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from celluler.wire import U32, U64, Length, Name, Text
from celluler_node.processes.refusals import Refused
from celluler_node.processes.words import Answer, PathText, Program

_Notes = Annotated[tuple[Text, ...], Length(0, 16)]


@dataclass(frozen=True, slots=True)
class Convert:
    """Read a model and write it into `out`, a folder in the scratch folder. → Converted or Refused

    weights: a second file, or empty. to: see `celluler.engines.formats.convert`. context: places of a sample; 0 for as
    many as model and budget allow. by_order: see `celluler.formats.importing.Wishes`. objective: of a graph.
    """

    source: PathText
    weights: Annotated[str, Length(0, 4096)]
    to: Annotated[str, Length(1, 32)]
    out: Name
    context: U32 = 0
    by_order: bool = False
    objective: Annotated[str, Length(0, 32)] = ""


@dataclass(frozen=True, slots=True)
class Converted:
    """form: what the source was. body: kind of the body between, empty of weights alone. files: names in `out`.
    compared: whether deviation, the largest difference between answers of the two, was measured."""

    form: Name
    body: Annotated[str, Length(0, 32)]
    files: Annotated[tuple[Name, ...], Length(1, 16)]
    parameters: U64
    weights_bytes: U64
    notes: _Notes
    compared: bool
    deviation: float


FORMATS_REQUESTS = (Convert,)
FORMATS_REPLIES = (Converted, Refused)

FORMATS_WORKER = Program(
    name="formats",
    module="celluler_node.processes.worker_formats",
    requests=FORMATS_REQUESTS,
    replies=FORMATS_REPLIES,
    confined=True,
    answers={Convert: Answer((Converted, Refused))},
)
