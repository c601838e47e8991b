"""Card fraud, assembled: transactions come in, verdicts go out, labels come back, and the model is kept good.

Read in this order: `features` (what is known), `training` (what learns), `service` (the request path), `observing`
(what watches), `operations` (what acts), `operating` (that beside a live service), `turn` (the whole turn over a data
set). `run_demo` is what `vitok demo fraud` runs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitok.systems.fraud.app import application
    from vitok.systems.fraud.demo import run_demo
    from vitok.systems.fraud.operating import operate
    from vitok.systems.fraud.replay import announce
    from vitok.systems.fraud.service import FraudService
    from vitok.systems.fraud.simulator import simulate
    from vitok.systems.fraud.transactions import Transactions, read
    from vitok.systems.fraud.turn import Turn

__all__ = ["FraudService", "Transactions", "Turn", "announce", "application", "operate", "read", "run_demo", "simulate"]

_MODULES = {
    "FraudService": "service",
    "Transactions": "transactions",
    "Turn": "turn",
    "announce": "replay",
    "operate": "operating",
    "application": "app",
    "run_demo": "demo",
    "read": "transactions",
    "simulate": "simulator",
}


def __getattr__(name: str) -> Any:
    # The service must start fast: what trains and what simulates is imported where it is used.
    import importlib

    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
