"""What the node asks of a worker, and what it answers. Imports no torch: the node reads this too.

A worker serves one loaded model, or one training run, or a run and then its result; files reach it as paths it was
allowed to read when it was started. Arrays travel as blobs, little-endian, in row-major order. What cannot be done
(a file that is no model, an input of another shape) is a failure of that call with its reason; the worker lives on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from celluler.datasets.schema import MAX_NAME_BYTES, USUAL, Selection, Summary
from celluler.jobs.limits import MAX_BATCH, MAX_INNER_STEPS
from celluler.models.body import MAX_BODY_BYTES
from celluler.models.transforms.document import MAX_TRANSFORM_BYTES
from celluler.wire import I16, U8, U16, U32, U64, Bytes32, Length, Name, Range
from celluler_node.processes.words import Answer, PathText, Program
from celluler_node.processes.worker_generate_words import GENERATE_ANSWERS, GENERATE_REPLIES, GENERATE_REQUESTS
from celluler_node.processes.worker_mix_words import MIX_ANSWERS, MIX_REPLIES, MIX_REQUESTS
from celluler_node.processes.worker_score_words import SCORE_ANSWERS, SCORE_REPLIES, SCORE_REQUESTS

MAX_PARTS = 64
MAX_CLASS_BYTES = 64
BodyBytes = Annotated[bytes, Length(2, MAX_BODY_BYTES)]
TransformBytes = Annotated[bytes, Length(0, MAX_TRANSFORM_BYTES)]
Shape = Annotated[tuple[Annotated[int, Range(0, 1 << 40)], ...], Length(1, 8)]
Exponents = Annotated[tuple[I16, ...], Length(1, MAX_PARTS)]
Word = Annotated[str, Length(1, 32)]
AuditClass = Annotated[str, Length(0, MAX_CLASS_BYTES)]
ColumnText = Annotated[str, Length(0, MAX_NAME_BYTES)]


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Check and build a model. body: the kind of what is computed, spec: its document. weights: a safetensors
    file. preprocess, postprocess: documents of what stands before and after it, empty for none. tokenizer: the model's
    own, a file, or empty. → Loaded"""

    spec: BodyBytes
    weights: PathText
    body: Word = "spec"
    preprocess: TransformBytes = b""
    postprocess: TransformBytes = b""
    tokenizer: Annotated[str, Length(0, 4096)] = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """parameters: trained ones. parameter_bytes: of all tensors. device, dtype: on what and in what it computes."""

    parameters: U64
    parameter_bytes: U64
    device: Word = "cpu"
    dtype: Word = "float32"


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Once through the model that is loaded: the first time is slow. → Warm

    trial: find out, too, whether samples of a batch have anything to do with each other.
    """

    trial: bool = False


@dataclass(frozen=True, slots=True)
class Warm:
    """apart: what the trial found; True where none was asked for."""

    apart: bool = True


@dataclass(frozen=True, slots=True)
class Predict:
    """With the input as one blob. shape: with the batch axis. output: one that the model's interface has, see
    `celluler.models.interface`. → Predicted"""

    dtype: Word
    shape: Shape
    output: Word


@dataclass(frozen=True, slots=True)
class Predicted:
    """With the answer as one blob."""

    dtype: Word
    shape: Shape


@dataclass(frozen=True, slots=True)
class StartRun:
    """Become member `index` of `members` in a run, at the public state before round 0. → RunReady

    Equal at all members but for `index`. body: the kind of what is computed, spec: its document. parts: into how many
    pieces an update is cut. partition: iid, shard, by-label or by-key. optimizer: sgd or adam. selection: of what the
    data hold. kept_states: of the last how many rounds the state before each is kept in the scratch folder. precision:
    fp32, bf16 or fp16. wire: form of an update.
    """

    run: Bytes32
    spec: BodyBytes
    weights: PathText
    data: PathText
    partition: Word
    index: U16
    members: U16
    parts: Annotated[int, Range(1, MAX_PARTS)]
    inner_steps: Annotated[int, Range(1, MAX_INNER_STEPS)]
    batch: Annotated[int, Range(1, MAX_BATCH)]
    learning_rate: float
    optimizer: Word
    outer_learning_rate: float
    outer_momentum: float
    selection: Selection = USUAL
    kept_states: U8 = 0
    precision: Word = "fp32"
    wire: Word = "q16"
    body: Word = "spec"


@dataclass(frozen=True, slots=True)
class RunReady:
    """dimension: values in an update. state_root: 32 bytes, equal at all members. micro_batch: samples that are held at
    once. audit_class: as of `Described`, for this run."""

    dimension: U64
    state_root: Bytes32
    micro_batch: U32 = 0
    audit_class: AuditClass = ""


@dataclass(frozen=True, slots=True)
class TrainRound:
    """Local steps from the public state, which does not move. Asked again, gives the same. → Trained

    fresh: carry no momentum over from our update of the round before, which was not aggregated.
    """

    round: U64
    fresh: bool


@dataclass(frozen=True, slots=True)
class Trained:
    """With the mantissas of all parts in order as one blob: (dimension,) int16. exponents: one a part. metric, value:
    what the objective is judged by, of the public state that the steps began from, on a few samples of the data."""

    loss: float
    exponents: Exponents
    metric: Annotated[str, Length(0, 32)] = ""
    value: float | None = None


@dataclass(frozen=True, slots=True)
class ApplyRound:
    """The outer step with an aggregate: its mantissas as one blob, (dimension,) int16. → Applied"""

    round: U64
    exponents: Exponents


@dataclass(frozen=True, slots=True)
class Applied:
    """state_root: of the public state as it is now."""

    state_root: Bytes32


@dataclass(frozen=True, slots=True)
class Evaluate:
    """The run's public state, or else the loaded model, on a dataset file. → Evaluated"""

    data: PathText
    selection: Selection = USUAL


@dataclass(frozen=True, slots=True)
class Evaluated:
    """accuracy: None for regression. loss: mean over `count` samples. metric, value: what the model's objective is
    judged by, such as `perplexity`, and how much it is."""

    accuracy: float | None
    loss: float
    count: U64
    metric: Word
    value: float


@dataclass(frozen=True, slots=True)
class Export:
    """Write the run's public weights into the scratch folder under this file name. → Exported"""

    name: Name


@dataclass(frozen=True, slots=True)
class Exported:
    """next_round: the first one not applied to these weights."""

    path: PathText
    file_bytes: U64
    next_round: U64


@dataclass(frozen=True, slots=True)
class GetState:
    """The whole public state, for a member that was left behind. → State

    round: the state before it, as it is now or one of those kept; None: as it is now.
    """

    round: U64 | None = None


@dataclass(frozen=True, slots=True)
class State:
    """With weights and velocity as one blob: (2·dimension,) float32. next_round: the first one not applied to it."""

    next_round: U64


@dataclass(frozen=True, slots=True)
class SetState:
    """Take over a state, which comes as one blob; those kept are forgotten. → Applied"""

    next_round: U64


@dataclass(frozen=True, slots=True)
class Replay:
    """Do a member's round again, from the public state before it, and compare with what the member sent.

    Of the round that comes next, or of one whose state is kept. parts: ascending, those to compare; exponents: of the
    wire of each. before: exponents of its wire of the round before, or none when it carried no momentum. With one
    blob, or two: the int16 mantissas of those parts, one after another, of this round; then of the round before.
    within_ms: after so long, and one step at least, the answer is that more is to be done; 0: never. One replay is
    under way at a time: another request for one puts an end to it. → Replayed, Replaying
    """

    round: U64
    index: U16
    parts: Annotated[tuple[U8, ...], Length(1, MAX_PARTS)]
    exponents: Exponents
    before: Annotated[tuple[I16, ...], Length(0, MAX_PARTS)]
    within_ms: U32 = 0


@dataclass(frozen=True, slots=True)
class GoOn:
    """Go on with the replay that is under way, whatever was asked in between. → Replayed, Replaying"""

    within_ms: U32


@dataclass(frozen=True, slots=True)
class Replaying:
    """steps_left: of the member's local steps, not done again yet."""

    steps_left: U32


@dataclass(frozen=True, slots=True)
class Replayed:
    """same: every bit, in all those parts. deviations: of each part, as `celluler.engines.replay` measures."""

    same: bool
    deviations: Annotated[tuple[float, ...], Length(1, MAX_PARTS)]


@dataclass(frozen=True, slots=True)
class Describe:
    """How this worker computes. Needs neither a model nor a run. precision: of the local steps. → Described"""

    precision: Word = "fp32"


@dataclass(frozen=True, slots=True)
class Described:
    """audit_class: two workers that name the same one get the same bits out of the same work. version: of torch."""

    audit_class: AuditClass
    version: Word


@dataclass(frozen=True, slots=True)
class Summarise:
    """What a dataset's manifest says of its file: schema, rows, quality. Needs neither a model nor a run. → Summarised

    format: what the file must be, or empty. label: the column to predict, or empty for the usual one.
    """

    data: PathText
    format: Annotated[str, Length(0, 16)] = ""
    label: ColumnText = ""


@dataclass(frozen=True, slots=True)
class Summarised:
    summary: Summary


@dataclass(frozen=True, slots=True)
class Prepare:
    """Load and compute what the first model would wait for, with nothing of anybody's. → Prepared"""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The first model waits for nothing but itself."""


REQUESTS = (
    *(LoadModel, Predict, StartRun, TrainRound, ApplyRound, Evaluate, Export, GetState, SetState),
    *(Summarise, Replay, GoOn, Describe, Prepare, WarmUp),
    *MIX_REQUESTS,
    *GENERATE_REQUESTS,
    *SCORE_REQUESTS,
)
REPLIES = (
    *(Loaded, Predicted, RunReady, Trained, Applied, Evaluated, Exported, State, Summarised, Replayed),
    *(Replaying, Described, Prepared, Warm),
    *MIX_REPLIES,
    *GENERATE_REPLIES,
    *SCORE_REPLIES,
)

ANSWERS: dict[type, Answer] = {
    LoadModel: Answer((Loaded,)),
    WarmUp: Answer((Warm,)),
    Predict: Answer((Predicted,), blobs=1),
    StartRun: Answer((RunReady,)),
    TrainRound: Answer((Trained,), blobs=1),
    ApplyRound: Answer((Applied,)),
    Evaluate: Answer((Evaluated,)),
    Export: Answer((Exported,)),
    GetState: Answer((State,), blobs=1),
    SetState: Answer((Applied,)),
    Summarise: Answer((Summarised,)),
    Replay: Answer((Replaying, Replayed)),
    GoOn: Answer((Replaying, Replayed)),
    Describe: Answer((Described,)),
    Prepare: Answer((Prepared,)),
    **MIX_ANSWERS,
    **GENERATE_ANSWERS,
    **SCORE_ANSWERS,
}

WORKER = Program(
    name="worker",
    module="celluler_node.processes.worker",
    requests=REQUESTS,
    replies=REPLIES,
    confined=True,
    answers=ANSWERS,
)
