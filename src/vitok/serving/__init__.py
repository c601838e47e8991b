"""How a model answers: one process and one port, requests handed over by the turn of the event loop, versions routed.

Here live the hot door (a uvicorn protocol that answers POSTs to exact paths in batches, beside an ASGI application),
problem documents, models over the Open Inference Protocol, the runtime of a model version and the host of those in
use, queues for slow ones, the routes between several models with their breakers and fallbacks, the sticky split
between champion and canary, the guard before an endpoint, the metrics that Prometheus reads, and the clients of
replays and load runs. What an endpoint of a system does with a request (features, policy, the log) is assembled in
`systems`; which version is in force is for `registry` and `loop` to say; keys, limits and what an input looks like
are in `guard`; how a score is calibrated is in `models`.
"""

from vitok.serving.breaker import Breaker, BreakerRules
from vitok.serving.cascade import Cascade
from vitok.serving.chains import Fallback
from vitok.serving.client import Answer, ConnectionBroken, PacedReport, PipelinedClient
from vitok.serving.door import Door
from vitok.serving.guarded import Guarded
from vitok.serving.hosting import FolderCatalogue, ModelHost, RegistryCatalogue
from vitok.serving.inference import Hosted, InferEndpoint
from vitok.serving.inference_log import InferenceLog
from vitok.serving.messages import Endpoint, HotRequest, Later, Reply
from vitok.serving.metrics import Counter, Metrics
from vitok.serving.outliers import OutlierRules
from vitok.serving.pool import Pool
from vitok.serving.problems import UNDECODABLE, from_decode_error, from_error, handlers, problem
from vitok.serving.queues import BatchQueue
from vitok.serving.remote import RemoteModel
from vitok.serving.retries import Budget, Hedge
from vitok.serving.routes import Assignment, Route
from vitok.serving.routing import Canary, ContentRules, Weighted
from vitok.serving.runtime import Cost, Runtime, RuntimeSet
from vitok.serving.selection import CostAware, LowestLatency
from vitok.serving.server import Running, running, serve
from vitok.serving.shadow import Shadow
from vitok.serving.targets import Attempt, Batch, Choice, Constant, LocalModel, Rules, Scored, TargetFailed, TimedOut
from vitok.serving.thresholds import frontier

__all__ = [
    "UNDECODABLE",
    "Answer",
    "Assignment",
    "Attempt",
    "Batch",
    "BatchQueue",
    "Breaker",
    "BreakerRules",
    "Budget",
    "Canary",
    "Cascade",
    "Choice",
    "ConnectionBroken",
    "Constant",
    "ContentRules",
    "Cost",
    "CostAware",
    "Counter",
    "Door",
    "Endpoint",
    "Fallback",
    "FolderCatalogue",
    "Guarded",
    "Hedge",
    "Hosted",
    "HotRequest",
    "InferEndpoint",
    "InferenceLog",
    "Later",
    "LocalModel",
    "LowestLatency",
    "Metrics",
    "ModelHost",
    "OutlierRules",
    "PacedReport",
    "PipelinedClient",
    "Pool",
    "RegistryCatalogue",
    "RemoteModel",
    "Reply",
    "Route",
    "Rules",
    "Running",
    "Runtime",
    "RuntimeSet",
    "Scored",
    "Shadow",
    "TargetFailed",
    "TimedOut",
    "Weighted",
    "from_decode_error",
    "from_error",
    "frontier",
    "handlers",
    "problem",
    "running",
    "serve",
]
