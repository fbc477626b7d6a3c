"""What a node shows to the person who asks: one frozen record for each answer, and its JSON form.

The node fills these, the HTTP gateway writes them, the clients read them back, so that a field exists in one place.
All of it is for people and their programs: nothing here travels between peers. Peers, jobs and contents are named by
text (peer id, job id, CID); sizes are bytes, times are Unix seconds, durations seconds. One module a subject; imports
nothing heavy: the command line loads it first.
"""

from celluler.tensors import Tensor
from celluler.views.content import Blob, Collected, DamagedContent, StoreCheck, Transfer, TransferSource
from celluler.views.datasets import Column, Dataset, NewDataset
from celluler.views.deployments import (
    AnswerCacheUsage,
    ArmReport,
    Deployment,
    DeploymentArm,
    DeploymentChange,
    NewArm,
    NewDeployment,
    Replica,
)
from celluler.views.documents import SCHEMA, from_json, to_json
from celluler.views.jobs import (
    Exclusion,
    Job,
    JobChange,
    JobCheckpoint,
    JobInvite,
    JobLine,
    JobReport,
    JobResult,
    JobSpec,
    NewJob,
    StoppedJob,
    rounds_of,
)
from celluler.views.models import (
    Ensemble,
    EnsembleMember,
    Model,
    ModelPorts,
    ModelQuery,
    NewModel,
    Port,
    Prediction,
)
from celluler.views.serving import LoadedModel, Serving, Tally
from celluler.views.swarm import (
    Check,
    Hardware,
    Peer,
    PeerTraffic,
    Ping,
    Readiness,
    Status,
    StoreUsage,
    ViolationReport,
)
from celluler.views.texts import Answer, Generation, Piece, Token
from celluler.views.training import RoundAudits, Suspected, TrainingRound
from celluler.views.transcripts import TranscriptNote
from celluler.views.versions import (
    FieldChange,
    Lineage,
    LineageNode,
    LogLine,
    ModelDiff,
    ModelLog,
    TensorChange,
    Verification,
    Version,
    Versions,
)

__all__ = [
    "SCHEMA",
    "Answer",
    "AnswerCacheUsage",
    "ArmReport",
    "Blob",
    "Check",
    "Collected",
    "Column",
    "DamagedContent",
    "Dataset",
    "Deployment",
    "DeploymentArm",
    "DeploymentChange",
    "Ensemble",
    "EnsembleMember",
    "Exclusion",
    "FieldChange",
    "Generation",
    "Hardware",
    "Job",
    "JobChange",
    "JobCheckpoint",
    "JobInvite",
    "JobLine",
    "JobReport",
    "JobResult",
    "JobSpec",
    "Lineage",
    "LineageNode",
    "LoadedModel",
    "LogLine",
    "Model",
    "ModelDiff",
    "ModelLog",
    "ModelPorts",
    "ModelQuery",
    "NewArm",
    "NewDataset",
    "NewDeployment",
    "NewJob",
    "NewModel",
    "Peer",
    "PeerTraffic",
    "Piece",
    "Ping",
    "Port",
    "Prediction",
    "Readiness",
    "Replica",
    "RoundAudits",
    "Serving",
    "Status",
    "StoppedJob",
    "StoreCheck",
    "StoreUsage",
    "Suspected",
    "Tally",
    "Tensor",
    "TensorChange",
    "Token",
    "TrainingRound",
    "TranscriptNote",
    "Transfer",
    "TransferSource",
    "Verification",
    "Version",
    "Versions",
    "ViolationReport",
    "from_json",
    "rounds_of",
    "to_json",
]
