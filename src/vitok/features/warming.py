"""Compiling ahead of the first question: the kernels of windows are compiled once a machine, which takes seconds."""

import numpy as np

from vitok.features.definitions import FeatureSet
from vitok.features.fingerprints import fingerprint_texts
from vitok.features.hashing import KeyIndex, SeenIds
from vitok.features.state import WindowState


def warm_up(features: FeatureSet) -> None:
    """Runs every kernel that serving a feature set needs, on a state of its own.

    Args:
        features: What will be served.

    Example:
        >>> warm_up(FeatureSet(request=("amount",)))
    """
    fingerprints = fingerprint_texts(["warm"])
    index, seen = KeyIndex(), SeenIds()
    index.put(fingerprints, index.look(fingerprints)[0] + 1)
    seen.add(fingerprints, np.zeros(1, np.int32))
    seen.has(fingerprints)
    one = np.zeros(1, np.int64)
    for view in features.windowed:
        state = WindowState(view.plan, 1)
        slots = np.array([state.new_slot()])
        values, codes = np.zeros((1, len(view.plan.inputs))), np.zeros((1, len(view.plan.codes)), np.int64)
        out = np.zeros((1, len(view.feature_names)))
        state.apply(slots, one, one, one, values, codes)
        state.serve(slots, one, one, one, values, codes, out, np.zeros(1, np.uint8))
        state.read(slots, one, out)
        state.compact(0)
        state.load(state.new_slot(), state.gather(slots).blob(0))
