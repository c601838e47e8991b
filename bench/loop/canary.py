"""How often a canary is rolled back: an equal one wrongly, a bad one rightly; and what the usual rules do with both.

`python -m bench.loop.canary`. The rules of other tools are written down here from their manuals: they look at the same
simulated traffic.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu, norm

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.features._claim import tell  # noqa: E402

from vitok.stats import RateComparison, clopper_pearson  # noqa: E402
from vitok.stats.confidence_sequences import log_evidence_step  # noqa: E402

Counts = np.ndarray[Any, np.dtype[np.float64]]
SCALE = float(os.environ.get("VITOK_BENCH_SCALE", "1"))
RUNS = max(500, round(20_000 * SCALE))
CHECKED = 25
# 600 requests a minute; a sixth of the hour at each share, as a canary is stepped up.
LOOKS, PER_LOOK = 60, 600
SHARES = np.repeat([0.1, 0.2, 0.3, 0.4, 0.5, 0.5], 10)
BASE = 0.02
RATES = (0.02, 0.025, 0.03, 0.05)
ALPHA = 0.05
BAR_FALSE, BAR_CAUGHT = 0.05, 0.999
# Both versions fail alike for these looks, as when a store that both use is down.
OUTAGE = range(20, 25)


def traffic(rng: np.random.Generator, rate: float, runs: int, *, outage: bool) -> tuple[Counts, Counts, Counts, Counts]:
    """Gives errors and requests of the incumbent and of the canary, each of shape (looks, runs)."""
    n_canary = rng.binomial(PER_LOOK, SHARES[:, None], (LOOKS, runs))
    n_stable = PER_LOOK - n_canary
    rates = np.tile([[BASE, rate]], (LOOKS, 1))
    if outage:
        rates[OUTAGE] = 0.3
    bad_stable, bad_canary = rng.binomial(n_stable, rates[:, :1]), rng.binomial(n_canary, rates[:, 1:])
    return tuple(part.astype(float) for part in (bad_stable, n_stable, bad_canary, n_canary))  # type: ignore[return-value]


def ours(bad_s: Counts, n_s: Counts, bad_c: Counts, n_c: Counts) -> Counts:
    """Gives the look at which each run is refused, `LOOKS` where it never is; all runs at once, one bound."""
    before = [np.zeros(bad_s.shape[1]) for _ in range(4)]
    log_e, first = np.zeros(bad_s.shape[1]), np.full(bad_s.shape[1], float(LOOKS))
    for look in range(LOOKS):
        block = (bad_s[look], n_s[look], bad_c[look], n_c[look])
        log_e += log_evidence_step(
            bounds=np.array([0.0]),
            successes_a=block[0],
            n_a=block[1],
            successes_b=block[2],
            n_b=block[3],
            before=(before[0], before[1], before[2], before[3]),
        )[0]
        before = [sums + part for sums, part in zip(before, block, strict=True)]
        first = np.where((first == LOOKS) & (log_e >= np.log(1 / ALPHA)), look, first)
    return first


def one_by_one(bad_s: Counts, n_s: Counts, bad_c: Counts, n_c: Counts, run: int) -> float:
    """Gives the same look for one run, from what the judge keeps."""
    seen = RateComparison([0.0], confidence_level=1 - 2 * ALPHA)
    for look in range(LOOKS):
        seen.add(
            control_successes=bad_s[look, run],
            control_n=n_s[look, run],
            treatment_successes=bad_c[look, run],
            treatment_n=n_c[look, run],
        )
        if seen.above(0.0):
            return look
    return LOOKS


def threshold(bad_c: Counts, n_c: Counts, least: float, limit: int) -> Counts:
    """Fixed threshold on the canary alone, rolled back at the failed check after `limit` of them."""
    failed = np.cumsum(1 - bad_c / np.maximum(n_c, 1) < least, axis=0) > limit
    return np.where(failed.any(axis=0), failed.argmax(axis=0), LOOKS).astype(float)


def z_test(bad_s: Counts, n_s: Counts, bad_c: Counts, n_c: Counts) -> Counts:
    """One-sided test of two proportions at 5 % on all that came so far, at each look."""
    b_s, m_s, b_c, m_c = (np.cumsum(part, axis=0) for part in (bad_s, n_s, bad_c, n_c))
    pooled = (b_s + b_c) / (m_s + m_c)
    spread = np.sqrt(np.maximum(pooled * (1 - pooled) * (1 / m_s + 1 / np.maximum(m_c, 1)), 1e-12))
    found = (b_c / np.maximum(m_c, 1) - b_s / m_s) / spread > norm.isf(ALPHA)
    return np.where(found.any(axis=0), found.argmax(axis=0), LOOKS).astype(float)


def at_end(bad_s: Counts, n_s: Counts, bad_c: Counts, n_c: Counts) -> Counts:
    """Mann-Whitney test of the rates of the minutes once at the end, at 98 %, as Kayenta's default judge."""
    test = mannwhitneyu(bad_c / np.maximum(n_c, 1), bad_s / n_s, axis=0, alternative="greater")
    return np.where(test.pvalue < 0.01, LOOKS - 1, LOOKS).astype(float)


def main() -> None:
    """Simulates, asks each rule, and prints the line."""
    rng = np.random.default_rng(20)
    table: dict[str, list[float]] = {}
    looks: dict[float, Counts] = {}
    for rate in RATES:
        runs = traffic(rng, rate, RUNS, outage=False)
        found = {
            "vitok": ours(*runs),
            "threshold 95 %, limit 3 (Argo's manual)": threshold(runs[2], runs[3], 0.95, 3),
            "threshold 97.5 %, limit 3": threshold(runs[2], runs[3], 0.975, 3),
            "threshold 99 %, limit 5 (Flagger's manual)": threshold(runs[2], runs[3], 0.99, 5),
            "z-test at each look": z_test(*runs),
            "Mann-Whitney once at the end (Kayenta)": at_end(*runs),
        }
        looks[rate] = found["vitok"]
        for name, first in found.items():
            table.setdefault(name, []).append(float((first < LOOKS).mean()))
    both = ours(*traffic(rng, BASE, RUNS, outage=True))
    checked = traffic(rng, 0.05, CHECKED, outage=False)
    same = all(one_by_one(*checked, run) == first for run, first in enumerate(ours(*checked)))

    false = clopper_pearson(int((looks[BASE] < LOOKS).sum()), RUNS)
    failing = clopper_pearson(int((both < LOOKS).sum()), RUNS)
    caught = clopper_pearson(int((looks[0.05] < LOOKS).sum()), RUNS)
    hit = looks[0.05][looks[0.05] < LOOKS] + 1
    exposed = np.cumsum(SHARES * PER_LOOK)[hit.astype(int) - 1]
    met = false.upper <= BAR_FALSE and failing.upper <= BAR_FALSE and caught.lower >= BAR_CAUGHT and same
    columns = ", ".join(f"{100 * rate:g} %" for rate in RATES)
    rows = "; ".join(f"{name} {' / '.join(f'{share:.4g}' for share in shares)}" for name, shares in table.items())
    tell(
        claim="equal canaries rolled back over 60 looks, and canaries of 5 % errors beside 2 % caught",
        value=false.value,
        unit="share of equal ones rolled back",
        peer="z-test at each look",
        peer_value=table["z-test at each look"][0],
        ratio=table["z-test at each look"][0] / max(false.value, 1 / RUNS),
        bar=f"<= {BAR_FALSE} at any look; 5 % caught >= {BAR_CAUGHT}",
        met=met,
        n=RUNS,
        protocol=(
            f"{LOOKS} looks of {PER_LOOK} requests, share of the canary 10 to 50 %, incumbent 2 % errors. Rolled back "
            f"at true rates {columns}: {rows}. Interval of the first {false.lower:.4f} to {false.upper:.4f}, where "
            f"both versions fail alike for {len(OUTAGE)} minutes {failing.value:.4f} (to {failing.upper:.4f}); 5 % "
            f"caught {caught.value:.5f} (at least {caught.lower:.5f}), after {np.median(hit):g} minutes and "
            f"{np.median(exposed):,.0f} requests in the median, {np.quantile(hit, 0.99):g} minutes at P99. What the "
            f"judge keeps says the same as the sums of all runs in {CHECKED} of them: {same}."
        ),
    )


if __name__ == "__main__":
    main()
