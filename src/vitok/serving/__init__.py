"""How a model answers: one process and one port, requests handed over by the turn of the event loop, versions routed.

Here live the hot door (a uvicorn protocol that answers POSTs to exact paths in batches, beside an ASGI application),
problem documents, the runtime of a model version and the set of those in use, the sticky split between champion and
canary, the metrics that Prometheus reads, and the pipelined client of replays and load runs. What an endpoint does
with a request (features, policy, the log) is assembled in `systems`; which version is in force is for `registry` and
`loop` to say; how a score is calibrated is in `models`.
"""

from vitok.serving.client import Answer, ConnectionBroken, PacedReport, PipelinedClient
from vitok.serving.door import Door
from vitok.serving.messages import Endpoint, HotRequest, Later, Reply
from vitok.serving.metrics import Counter, Metrics
from vitok.serving.problems import UNDECODABLE, from_decode_error, from_error, handlers, problem
from vitok.serving.routes import Assignment, Route
from vitok.serving.runtime import Cost, Runtime, RuntimeSet
from vitok.serving.server import Running, running, serve

__all__ = [
    "UNDECODABLE",
    "Answer",
    "Assignment",
    "ConnectionBroken",
    "Cost",
    "Counter",
    "Door",
    "Endpoint",
    "HotRequest",
    "Later",
    "Metrics",
    "PacedReport",
    "PipelinedClient",
    "Reply",
    "Route",
    "Running",
    "Runtime",
    "RuntimeSet",
    "from_decode_error",
    "from_error",
    "handlers",
    "problem",
    "running",
    "serve",
]
