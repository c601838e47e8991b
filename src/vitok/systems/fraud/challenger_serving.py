"""The challenger on the side of the service: it scores what the champion answers, and can harm nothing.

A learner somewhere else writes snapshots (`vitok.systems.fraud.challenger`). Here the newest is taken, beside the
requests, and asked with the rows of a turn. Whatever goes wrong with it is counted, and the decision goes on.
"""

import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vitok.decisions import Constant
from vitok.errors import Conflict, InvalidInput, ServiceError, VitokError
from vitok.features import FeatureSet
from vitok.models.online import OnlineModel
from vitok.models.online_matrix import MatrixScorer
from vitok.models.online_state import content_name, read_content
from vitok.serving import Batch, Breaker, BreakerRules, LocalModel
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.messages import CHALLENGER
from vitok.systems.fraud.model import BehindBreaker

FOLDER = "challenger"
SERVING = "serving.online"
SNAPSHOTS = "snapshots"
SLOW_SECONDS = 0.005
_NAME = re.compile(r"[0-9a-f]{12}")
_LOG = logging.getLogger("vitok.fraud")


class ChallengerShadow:
    """The newest challenger, ready to score.

    Args:
        home: The service's home folder; the learner writes below it.
        features: What the columns of the rows are.
        count: Counts `challenger_failures` and `challenger_skipped` by row, and `challenger_load_failures`.
        breaker: Keeps rows away from a challenger that fails or is slow; by default slow is longer than 5 ms.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     shadow = ChallengerShadow(Path(folder), FEATURES, count=lambda name, n: None)
        ...     shadow.refresh(), shadow.score(np.zeros((1, len(FEATURES.names))))
        (False, None)
    """

    def __init__(
        self,
        home: Path,
        features: FeatureSet,
        *,
        count: Callable[[str, int], None],
        breaker: BreakerRules | None = None,
    ) -> None:
        self._path = home / FOLDER / SERVING
        self._features = features
        self._count = count
        self._breaker = Breaker(breaker or BreakerRules(slow_after=SLOW_SECONDS))
        # Inode, time and size of the file that was looked at last.
        self._seen: tuple[int, int, int] | None = None
        self._loading = threading.Lock()
        # What it is called and who answers, put in force together.
        self._current: tuple[Constant, BehindBreaker] | None = None

    @property
    def version(self) -> str | None:
        """Name of the snapshot that scores, such as `"fraud-online/3fa90c1d22b7"`; None where there is none."""
        return None if self._current is None else str(self._current[0].value)

    def refresh(self) -> bool:
        """Takes the newest snapshot where there is another, and says whether it did. Call it beside the requests.

        One that cannot be read, or that is of columns that the service does not compute, is counted, and the one
        before goes on.
        """
        with self._loading:
            try:
                found = self._path.stat()
            except OSError:
                return False
            seen = found.st_ino, found.st_mtime_ns, found.st_size
            if seen == self._seen:
                return False
            self._seen = seen
            try:
                content = read_content(self._path)
                model = OnlineModel.from_bytes(content, where=str(self._path))
                self._current = self._opened(model, f"{CHALLENGER}/{content_name(content)}")
            except VitokError as error:
                self._count("challenger_load_failures", 1)
                _LOG.warning("the challenger's newest snapshot is not taken: %s", error)
                return False
            return True

    def score(self, values: np.ndarray) -> tuple[Constant, np.ndarray] | None:
        """Returns the version's name and the probability of each row, shape (n,); None where it gives none.

        Args:
            values: Shape (n, features), as the champion gets them.
        """
        current = self._current
        if current is None:
            return None
        version, target = current
        if not self._breaker.admits:
            self._count("challenger_skipped", len(values))
            return None
        try:
            return version, target.score(Batch(values)).values
        except ServiceError:
            self._count("challenger_failures", len(values))
            return None

    def _opened(self, model: OnlineModel, version: str) -> tuple[Constant, BehindBreaker]:
        scorer = MatrixScorer(model, self._features.names)

        def score(rows: np.ndarray) -> np.ndarray:
            found = scorer(rows)
            if not np.isfinite(found).all():
                raise ServiceError(f"{version}: a probability is no number")
            return found

        # The first call of a process compiles, and no request must wait for that.
        score(np.zeros((1, len(self._features.names))))
        return Constant(version), BehindBreaker(LocalModel(version, score), self._breaker)


def shadow_again(home: Path, version: str, values: np.ndarray, features: FeatureSet = FEATURES) -> np.ndarray | None:
    """Returns what a snapshot of the challenger says of rows, as it said it then; None where it is not kept any more.

    Args:
        home: The service's home folder.
        version: What the log calls it, such as `"fraud-online/3fa90c1d22b7"`.
        values: Shape (n, features).
        features: What the columns of the values are.

    Raises:
        StoreError: If the snapshot is there and damaged.
        Conflict: If it is of columns that the features do not have.
    """
    name = version.removeprefix(f"{CHALLENGER}/")
    path = home / FOLDER / SNAPSHOTS / f"{name}.online"
    if not (_NAME.fullmatch(name) and path.is_file()):
        return None
    try:
        return MatrixScorer(OnlineModel.load(path), features.names)(values)
    except InvalidInput as error:
        raise Conflict(f"{version} was made with other features than those declared now: {error}") from None
