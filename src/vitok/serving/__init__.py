"""How a model answers: one process and one port, requests handed over by the turn of the event loop, versions routed.

Here live the hot door (a uvicorn protocol that answers POSTs to exact paths in batches, beside an ASGI application),
problem documents, models over the Open Inference Protocol, the runtime of a model version and the host of those in
use, queues for slow ones, the routes between several models with their breakers and fallbacks, the sticky split
between champion and canary, the guard before an endpoint, what of an answer leaves, the metrics that Prometheus reads,
files scored in batches, and the clients of replays and load runs. What an endpoint of a system does with a request
(features, policy, the log) is assembled in `systems`; which version is in force is for `registry` and `loop` to say;
keys, limits and what an input looks like are in `guard`; how a score is calibrated is in `models`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vitok.serving.breaker import Breaker, BreakerRules
from vitok.serving.budgets import BudgetBook, SpendingBudget
from vitok.serving.cascade import Cascade
from vitok.serving.chains import Fallback
from vitok.serving.client import Answer, ConnectionBroken, PacedReport, PipelinedClient
from vitok.serving.costs import CostMeter, Prices
from vitok.serving.disclosure import Disclosure
from vitok.serving.door import Door
from vitok.serving.guarded import Guard, Guarded
from vitok.serving.hosting import FolderCatalogue, ModelHost, RegistryCatalogue
from vitok.serving.inference import Hosted, InferEndpoint
from vitok.serving.inference_log import InferenceLog
from vitok.serving.messages import Endpoint, HotRequest, Later, Reply
from vitok.serving.metrics import Counter, Metrics
from vitok.serving.outliers import OutlierRules
from vitok.serving.pool import Pool
from vitok.serving.preemption import PreemptionWatch
from vitok.serving.problems import UNDECODABLE, from_decode_error, from_error, handlers, problem
from vitok.serving.queues import BatchQueue
from vitok.serving.remote import RemoteModel
from vitok.serving.response_cache import CacheReport, ResponseCache
from vitok.serving.retries import Budget, Hedge
from vitok.serving.routed import RoutedEndpoint, RoutedHost
from vitok.serving.routes import Assignment, Route
from vitok.serving.routing import Canary, ContentRules, Weighted
from vitok.serving.runtime import Cost, Runtime, RuntimeSet
from vitok.serving.screening import Screen
from vitok.serving.selection import CostAware, LowestLatency
from vitok.serving.server import Running, Tls, running, serve
from vitok.serving.shadow import Shadow
from vitok.serving.spending import Budgeted, BudgetGate, Spending
from vitok.serving.targets import Attempt, Batch, Choice, Constant, LocalModel, Rules, Scored, TargetFailed, TimedOut
from vitok.serving.thresholds import frontier

if TYPE_CHECKING:
    from vitok.serving.batch_inference import score_files
    from vitok.serving.load import Target, run_load, varied
    from vitok.serving.load_report import LoadReport
    from vitok.serving.load_search import highest_rate

# What a service does not need is imported when it is asked for.
_LATER = {
    "LoadReport": "load_report",
    "Target": "load",
    "highest_rate": "load_search",
    "run_load": "load",
    "score_files": "batch_inference",
    "varied": "load",
}

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
    "BudgetBook",
    "BudgetGate",
    "Budgeted",
    "CacheReport",
    "Canary",
    "Cascade",
    "Choice",
    "ConnectionBroken",
    "Constant",
    "ContentRules",
    "Cost",
    "CostAware",
    "CostMeter",
    "Counter",
    "Disclosure",
    "Door",
    "Endpoint",
    "Fallback",
    "FolderCatalogue",
    "Guard",
    "Guarded",
    "Hedge",
    "Hosted",
    "HotRequest",
    "InferEndpoint",
    "InferenceLog",
    "Later",
    "LoadReport",
    "LocalModel",
    "LowestLatency",
    "Metrics",
    "ModelHost",
    "OutlierRules",
    "PacedReport",
    "PipelinedClient",
    "Pool",
    "PreemptionWatch",
    "Prices",
    "RegistryCatalogue",
    "RemoteModel",
    "Reply",
    "ResponseCache",
    "Route",
    "RoutedEndpoint",
    "RoutedHost",
    "Rules",
    "Running",
    "Runtime",
    "RuntimeSet",
    "Scored",
    "Screen",
    "Shadow",
    "Spending",
    "SpendingBudget",
    "Target",
    "TargetFailed",
    "TimedOut",
    "Tls",
    "Weighted",
    "from_decode_error",
    "from_error",
    "frontier",
    "handlers",
    "highest_rate",
    "problem",
    "run_load",
    "running",
    "score_files",
    "serve",
    "varied",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"vitok.serving.{_LATER[name]}"), name)
    raise AttributeError(f"module 'vitok.serving' has no attribute {name!r}")
