"""What is asked of a worker that makes a model smaller, and what it answers. Imports no torch.

Such a worker is started for one model, by whoever wants the smaller one; it may read the files that it is given and
write its scratch folder. Every result is judged beside the model that it was made from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from celluler.datasets.schema import USUAL, Selection
from celluler.models.body import MAX_BODY_BYTES
from celluler.wire import U32, U64, Length
from celluler_node.processes.refusals import Refused
from celluler_node.processes.words import Answer, PathText, Program
from celluler_node.processes.worker_words import BodyBytes, Word

OUT = "weights.safetensors"
"""The file that it writes into its scratch folder."""
MaybePath = Annotated[str, Length(0, 4096)]


@dataclass(frozen=True, slots=True)
class Given:
    """A model. spec: its document, of the kind `body`."""

    spec: BodyBytes
    weights: PathText
    body: Word = "spec"


@dataclass(frozen=True, slots=True)
class Quantise:
    """Store the weights as `dtype`. data: what both are judged on, or empty. → Compressed, Refused

    dtype: of `celluler.models.narrow.NARROW`; or empty for the smallest of them that is hardly worse: of what the
    objective is judged by, at most `tolerance`, a share of the parent's figure (of an accuracy, a difference).
    """

    model: Given
    dtype: Annotated[str, Length(0, 16)]
    data: MaybePath = ""
    selection: Selection = USUAL
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class Prune:
    """Take out a share: single weights, or whole units. → Compressed, Refused"""

    model: Given
    share: float
    structured: bool
    data: MaybePath = ""
    selection: Selection = USUAL


@dataclass(frozen=True, slots=True)
class Distil:
    """Teach `student` what `teacher` answers, on `data`; both are judged on `test`, or on the same when it is empty.
    An empty path of its weights: initial ones. The rest: see `celluler.engines.compress.distil.Lesson`.
    → Compressed, Refused"""

    teacher: Given
    spec: BodyBytes
    weights: MaybePath
    data: PathText
    test: MaybePath
    steps: U32
    batch: U32
    learning_rate: float
    temperature: float
    hard: float
    seed: U64
    selection: Selection = USUAL


@dataclass(frozen=True, slots=True)
class Judged:
    """See `celluler.engines.compress.judge.Figures`."""

    dtype: Word
    parameters: U64
    file_bytes: U64
    zeros: float
    metric: Annotated[str, Length(0, 64)]
    value: float | None
    accuracy: float | None
    one_ms: float | None
    many_ms: float | None


@dataclass(frozen=True, slots=True)
class Compressed:
    """spec: the document of the new model, whose weights lie in the file `OUT`. before: of the model, or the teacher.
    tried: dtypes that lost too much. loss: of a student, over the last tenth of its lesson."""

    spec: Annotated[bytes, Length(2, MAX_BODY_BYTES)]
    body: Word
    before: Judged
    after: Judged
    tried: Annotated[tuple[Word, ...], Length(0, 8)] = ()
    loss: float | None = None


COMPRESS_REQUESTS = (Quantise, Prune, Distil)
COMPRESS_REPLIES = (Compressed, Refused)

COMPRESS_WORKER = Program(
    name="compress",
    module="celluler_node.processes.worker_compress",
    requests=COMPRESS_REQUESTS,
    replies=COMPRESS_REPLIES,
    confined=True,
    answers={request: Answer(COMPRESS_REPLIES) for request in COMPRESS_REQUESTS},
)
