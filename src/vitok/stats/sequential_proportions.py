"""Two streams of proportions, compared block by block without end: have they come apart?"""

import math
from dataclasses import dataclass
from typing import Literal

from numpy.typing import ArrayLike

from vitok.errors import InvalidInput
from vitok.stats.arrays import Floats, open_unit, same_length, vector
from vitok.stats.results import Result


@dataclass(frozen=True, kw_only=True)
class ProportionDrift(Result):
    """Evidence, block by block, that two proportions are not the same.

    Attributes:
        e_values: Gain of each block's bet: 1 on average where the proportions are the same.
        evidence: What had gathered after each block: an alarm at `bound`.
        alarms: Places of the blocks with an alarm; after each the evidence begins anew.
        directions: Of each alarm: is the current proportion `"higher"` or `"lower"` than the reference?
        bound: Where an alarm is.
        n_obs: Trials in both streams.
        definition: What is promised.
    """

    e_values: tuple[float, ...]
    evidence: tuple[float, ...]
    alarms: tuple[int, ...]
    directions: tuple[Literal["higher", "lower"], ...]
    bound: float
    n_obs: int
    definition: str

    def __str__(self) -> str:
        shown = ", ".join(f"{at} {way}" for at, way in zip(self.alarms[:8], self.directions[:8], strict=True))
        last = f"{self.evidence[-1]:.4g}" if self.evidence else "none"
        return f"evidence {last} of {self.bound:g} after {len(self.evidence)} blocks; alarms: {shown or 'none'}"


def _blocks(name: str, successes: ArrayLike, n: ArrayLike) -> tuple[Floats, Floats]:
    s, trials = vector(f"{name}successes", successes, finite=True), vector(f"{name}n", n, finite=True)
    same_length(**{f"{name}successes": s, f"{name}n": trials})
    for at in range(len(s)):
        if not 0 <= s[at] <= trials[at]:
            raise InvalidInput(f"{name}successes[{at}]", float(s[at]), f"be between 0 and the {trials[at]:g} trials")
    return s, trials


def _bet(successes: float, n: float, pooled: tuple[float, float]) -> tuple[float, float]:
    # Both shares are summed up: where nearly all succeed, one less the first would be rounded to 0.
    weight = 1 / pooled[0]
    return (successes + 1) / (n + weight), (n - successes + pooled[1] * weight) / (n + weight)


def _gain(successes: float, n: float, bet: tuple[float, float], null: tuple[float, float]) -> float:
    return successes * math.log(bet[0] / null[0]) + (n - successes) * math.log(bet[1] / null[1])


def proportion_drift(
    *,
    reference_successes: ArrayLike,
    reference_n: ArrayLike,
    successes: ArrayLike,
    n: ArrayLike,
    arl0: float | None = None,
    alpha: float | None = None,
    half_life: float = 24.0,
    worse: Literal["higher", "lower"] | None = None,
) -> ProportionDrift:
    """Tests block by block whether a proportion has come apart from a reference that runs beside it.

    Both may move together from block to block: an outage that hits both is no evidence. For a reference that is
    frozen, use `ConformalDrift` with two categories.

    Args:
        reference_successes: Successes (or errors) of the reference in each block, shape (b,). Not cumulated.
        reference_n: Trials of the reference in each block, shape (b,); 0 is allowed.
        successes: The same for the current stream.
        n: The same for the current stream.
        arl0: Promise of a run length: the expected number of blocks to a false alarm is at least this. Give either
            this or `alpha`.
        alpha: Promise of a probability, in (0, 1): the chance of a false alarm, ever, is at most this.
        half_life: Blocks after which what was seen counts half in the bets, above 0.
        worse: Where worse is: bets are only made on that side, and only it alarms. None: on both.

    Returns:
        The evidence after each block, and where it reached the bound.

    Raises:
        InvalidInput: If shapes differ, counts are impossible, or not exactly one promise is given.

    Source: the e-variables of Turner, Ly & Grünwald, Generic E-variables for exact sequential k-sample tests, 2024,
    as a Shiryaev-Roberts e-detector (Shin, Ramdas & Rinaldo 2023) with `arl0`, as a product with `alpha`.

    Example:
        >>> found = proportion_drift(
        ...     reference_successes=[20] * 60, reference_n=[1000] * 60,
        ...     successes=[20] * 30 + [45] * 30, n=[1000] * 60, arl0=1000)
        >>> 30 <= found.alarms[0] < 36, found.directions[0]
        (True, 'higher')
    """
    s_a, n_a = _blocks("reference_", reference_successes, reference_n)
    s_b, n_b = _blocks("", successes, n)
    same_length(reference_n=n_a, n=n_b)
    if (arl0 is None) == (alpha is None):
        raise InvalidInput("arl0", arl0, "be given, or alpha, and not both", "Choose one promise")
    if arl0 is not None and not 1 <= arl0 < math.inf:
        raise InvalidInput("arl0", arl0, "be finite and at least 1")
    if worse not in ("higher", "lower", None):
        raise InvalidInput("worse", worse, "be 'higher', 'lower' or None")
    if not 0 < half_life <= math.inf:
        raise InvalidInput("half_life", half_life, "be above 0")
    restarts = alpha is None
    bound = float(arl0) if arl0 is not None else 1 / open_unit("alpha", alpha or 0.0)
    keep, capital = 0.5 ** (1 / half_life), 0.0 if restarts else 1.0
    seen = [0.0, 0.0, 0.0, 0.0]
    e_values: list[float] = []
    evidence: list[float] = []
    alarms: list[int] = []
    directions: list[Literal["higher", "lower"]] = []
    for at, block in enumerate(zip(s_a.tolist(), n_a.tolist(), s_b.tolist(), n_b.tolist(), strict=True)):
        # Each bet rests on the blocks before it, and is pulled towards the pooled rate by one success's worth.
        failed = (seen[1] - seen[0]) + (seen[3] - seen[2])
        total = seen[1] + seen[3] + 1
        pooled = (seen[0] + seen[2] + 0.5) / total, (failed + 0.5) / total
        bet_a, bet_b = (_bet(seen[i], seen[i + 1], pooled) for i in (0, 2))
        above = bet_b[0] > bet_a[0] if pooled[0] < 0.5 else bet_b[1] < bet_a[1]
        gain, trials = 0.0, block[1] + block[3]
        if trials and seen[1] + seen[3] and worse in (None, "higher" if above else "lower"):
            null = (
                (block[1] * bet_a[0] + block[3] * bet_b[0]) / trials,
                (block[1] * bet_a[1] + block[3] * bet_b[1]) / trials,
            )
            gain = _gain(block[0], block[1], bet_a, null) + _gain(block[2], block[3], bet_b, null)
        value = math.exp(min(gain, 700.0))
        capital = (capital + restarts) * value
        e_values.append(value)
        evidence.append(capital)
        seen = [keep * before + now for before, now in zip(seen, block, strict=True)]
        if capital >= bound:
            alarms.append(at)
            directions.append("higher" if above else "lower")
            capital, seen = (0.0 if restarts else 1.0), [0.0] * 4
    promise = (
        f"expected blocks to a false alarm at least {bound:g}"
        if restarts
        else f"chance of a false alarm at most {1 / bound:g}"
    )
    return ProportionDrift(
        e_values=tuple(e_values),
        evidence=tuple(evidence),
        alarms=tuple(alarms),
        directions=tuple(directions),
        bound=bound,
        n_obs=int(n_a.sum() + n_b.sum()),
        definition=f"blockwise e-values for two proportions; {promise}",
    )
