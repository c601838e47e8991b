"""The guard at the edge: who may ask, how often, from where, with which inputs, and what the answers give away.

Here live API keys, rate limits, address lists, the anomaly score of an input, confidence floors, output noise, the
watch for model extraction and a watermark. Each is off until it is switched on, and each page says what it costs a
request. What a request must look like is a matter of contracts; how it is answered, of serving; who pays, of budgets.
"""

from vitok.guard.addresses import AddressList, AddressVerdict, Networks, network_of
from vitok.guard.anomaly import Anomaly, AnomalyScorer, FeatureSurprise, Scores
from vitok.guard.confidence import ConfidenceFloor, confidence_of, fit_floor
from vitok.guard.extraction import ExtractionReport, ExtractionWatch, Finding
from vitok.guard.key_store import Issued, KeyEvent, KeyStore
from vitok.guard.keys import Key, KeyRing, Refusal, looks_whole
from vitok.guard.limits import Allowance, Limit, Limiter
from vitok.guard.noise import KeyedNoise, rounded, scale_for
from vitok.guard.shared_limits import SharedLimiter
from vitok.guard.watermark import Watermark

__all__ = [
    "AddressList",
    "AddressVerdict",
    "Allowance",
    "Anomaly",
    "AnomalyScorer",
    "ConfidenceFloor",
    "ExtractionReport",
    "ExtractionWatch",
    "FeatureSurprise",
    "Finding",
    "Issued",
    "Key",
    "KeyEvent",
    "KeyRing",
    "KeyStore",
    "KeyedNoise",
    "Limit",
    "Limiter",
    "Networks",
    "Refusal",
    "Scores",
    "SharedLimiter",
    "Watermark",
    "confidence_of",
    "fit_floor",
    "looks_whole",
    "network_of",
    "rounded",
    "scale_for",
]
