"""How often a whole release by plan, with its five steps and three judges, rolls back a version that is no worse.

`python -m bench.loop.release_errors`. Every run is a release of a version drawn from the same law as the one before:
scored beside in the shadow and in the probation, failing as often in the canary. Some runs go through `Releases.tick`
and the ledger, to see that they say the same as the judges alone.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.features._claim import tell  # noqa: E402

from vitok.loop import (  # noqa: E402
    JudgeRules,
    Look,
    PairedJudge,
    RateRule,
    Records,
    ReleasePlan,
    Releases,
    Split,
    TrafficJudge,
)
from vitok.policies import Costs, TierPolicy  # noqa: E402
from vitok.registry import Registry, at_least, evaluate  # noqa: E402
from vitok.stats import clopper_pearson  # noqa: E402

SCALE = float(os.environ.get("VITOK_BENCH_SCALE", "1"))
RUNS = max(20, round(500 * SCALE))
BAD_RUNS = max(10, round(200 * SCALE))
CHECKED = 3
ALPHA, BAR = 0.05, 0.05
# A look is an hour: a day in the shadow, 16 hours at each share, two days of probation.
HOURS = {"shadow": 24, "canary 10 %": 16, "canary 30 %": 16, "canary 50 %": 16, "full": 48}
PER_LOOK, REQUESTS = 250, 600
# Labels come so many looks later.
LATE = 6
COSTS = Costs()
POLICY = TierPolicy(costs=COSTS)
RULES = {"tuned_for": 6_000, "max_alert_rate_increase": 0.0}
FAILING, BAD = 0.02, 0.05


def paired(*, candidate: str, incumbent: str, confidence_level: float) -> PairedJudge:
    """Judges shadow and probation; no rise of the alert rate is tolerated, so that an equal version is at the bound."""
    return PairedJudge(
        candidate=candidate,
        incumbent=incumbent,
        candidate_policy=POLICY,
        incumbent_policy=POLICY,
        costs=COSTS,
        rules=JudgeRules(confidence_level=confidence_level, **RULES),  # type: ignore[arg-type]
    )


def split(*, candidate: str, incumbent: str, confidence_level: float) -> TrafficJudge:
    """Judges the canaries."""
    rates = {"failed": RateRule(margin=0.02)}
    return TrafficJudge(candidate=candidate, incumbent=incumbent, rates=rates, confidence_level=confidence_level)


PLAN = ReleasePlan.of(
    shadow=paired,
    canary=split,
    probation=paired,
    shares=(0.1, 0.3, 0.5),
    shadow_for=HOURS["shadow"],
    least=HOURS["canary 10 %"],
    probation_for=HOURS["full"],
    alpha=ALPHA,
)


@dataclass
class World:
    """One release's traffic, hour by hour."""

    seed: int
    failing: float = FAILING

    def hour(self, number: int, share: float) -> Look:
        """Returns the look of an hour at a share: pairs with the labels of an earlier hour, or split requests."""
        if 0 < share < 1:
            rng = np.random.default_rng((self.seed, number, 1))
            canary = rng.random(REQUESTS) < share
            failed = rng.random(REQUESTS) < np.where(canary, self.failing, FAILING)
            version = np.where(canary, "fraud/2", "fraud/1")
            return Look(splits=(Split(pl.DataFrame({"version": version, "failed": failed}), share),))
        late = self.pairs(number - LATE, share) if number >= LATE else None
        return Look(decisions=self.pairs(number, share).drop("label"), labelled=late)

    def pairs(self, number: int, share: float) -> pl.DataFrame:
        """Returns the decisions of an hour, scored by two models of one law; their probabilities are Bayes'."""
        rng = np.random.default_rng((self.seed, number, 2))
        fraud, amount = rng.random(PER_LOOK) < 0.05, rng.lognormal(3.5, 0.8, PER_LOOK)
        signal = 3.0 * fraud + rng.normal(size=PER_LOOK)
        first, second = (
            1 / (1 + np.exp(-(np.log(0.05 / 0.95) + 3.0 * (signal + rng.normal(size=PER_LOOK)) / 2 - 4.5 / 2)))
            for _ in range(2)
        )
        acting, beside = ("fraud/2", "fraud/1") if share else ("fraud/1", "fraud/2")
        names = [f"{number}-{row}" for row in range(PER_LOOK)]
        return pl.DataFrame(
            {
                "request_id": names,
                "amount": amount,
                "model_version": acting,
                "probability": first,
                "action": POLICY.decide(first, amount, names).actions,
                "shadow_version": beside,
                "shadow_probability": second,
                "label": fraud.astype(float),
            }
        )


def alone(world: World, levels: dict[str, float]) -> str:
    """Runs the judges of the plan over a release; returns the step that refused it, or nothing."""
    judges: dict[str, Any] = {}
    number = 0
    for step in PLAN.steps:
        name = step.judges[0]
        make = PLAN.judges[name].make
        judge = judges.setdefault(name, make(candidate="fraud/2", incumbent="fraud/1", confidence_level=levels[name]))
        for _ in range(HOURS[step.name]):
            state = judge.take(world.hour(number, step.share), now=number).state
            number += 1
            if state == "refuse":
                return step.name
    return ""


@dataclass
class ByPlan:
    """The evidence of a world for `Releases`: one look a tick."""

    world: World

    def look(self, release: Any, *, now: int) -> Look:
        found = self.world.hour(now - 1, release.shares[-1][1])
        return Look(decisions=found.decisions, labelled=found.labelled, splits=found.splits, position=now)


def whole(world: World) -> str:
    """The same by `Releases` and a ledger; a canary that is not accepted in its time is sent on by hand."""
    with tempfile.TemporaryDirectory() as home:
        registry, records = Registry(home), Records(home)
        for number in (1, 2):
            registry.register("fraud", {"weights": bytes([number])}, now=0, actor="bench")
            gate = evaluate([at_least("average_precision", 0.6, 0.5)])
            registry.ledger.record_gate("fraud", number, gate, now=0, actor="bench")
        registry.ledger.promote("fraud", 1, "Production", reason="first", actor="bench", now=0)
        releases = Releases(registry, records)
        release = releases.begin("fraud", 2, PLAN, now=0, actor="bench", reason="a run")
        now, left = 0, 0
        while release.is_open:
            before = release.step_name
            if release.step >= 0 and left == 0:
                releases.advance("fraud/2", who="bench", why="its time is over", now=now)
            release = releases.tick("fraud/2", PLAN, ByPlan(world), now=now)
            left = HOURS[release.step_name] - 1 if release.step_name != before else left - 1
            now += 1
        releases.close()
        registry.close()
    return "" if release.status == "finished" else before


def z_at_each_look(world: World) -> bool:
    """Says whether the usual test at 5 % on all that came so far, at each look, would have rolled back."""
    number = 0
    for kind in ("shadow", "canary", "full"):
        counts = np.zeros(4)
        differences: list[float] = []
        for step in [step for step in PLAN.steps if step.kind == kind]:
            for _ in range(HOURS[step.name]):
                look = world.hour(number, step.share)
                number += 1
                if look.splits:
                    rows = look.splits[0].requests
                    mine = (rows["version"] == "fraud/2").to_numpy()
                    bad = rows["failed"].to_numpy()
                    counts += [(bad & ~mine).sum(), (~mine).sum(), (bad & mine).sum(), mine.sum()]
                    pooled = (counts[0] + counts[2]) / (counts[1] + counts[3])
                    spread = np.sqrt(pooled * (1 - pooled) * (1 / counts[1] + 1 / counts[3]))
                    found = counts[2] / counts[3] - counts[0] / counts[1]
                else:
                    rows = look.decisions
                    assert rows is not None
                    first = np.array(rows["action"].to_list()) != "allow"
                    names = rows["request_id"].to_list()
                    other = POLICY.decide(rows["shadow_probability"].to_numpy(), rows["amount"].to_numpy(), names)
                    second = np.array(other.actions) != "allow"
                    mine, theirs = (first, second) if step.share else (second, first)
                    differences += (mine.astype(float) - theirs).tolist()
                    found = float(np.mean(differences))
                    spread = np.std(differences) / np.sqrt(len(differences))
                if spread > 0 and found / spread > 1.645:
                    return True
    return False


def main() -> None:
    """Runs all releases, and prints the line."""
    divided = {name: PLAN.confidence_level(name) for name in PLAN.judges}
    undivided = dict.fromkeys(PLAN.judges, 1 - ALPHA)
    ended = [alone(World(seed), divided) for seed in range(RUNS)]
    naive = sum(bool(alone(World(seed), undivided)) for seed in range(max(10, RUNS // 5)))
    usual = sum(z_at_each_look(World(seed)) for seed in range(max(10, RUNS // 5)))
    bad = [alone(World(10**6 + seed, failing=BAD), divided) for seed in range(BAD_RUNS)]
    same = all(whole(World(seed)) == ended[seed] for seed in range(CHECKED))
    same &= all(whole(World(10**6 + seed, failing=BAD)) == bad[seed] for seed in range(CHECKED))
    false = clopper_pearson(sum(map(bool, ended)), RUNS)
    caught = clopper_pearson(sum(name.startswith("canary") for name in bad), BAD_RUNS)
    some = max(10, RUNS // 5)
    parts = ", ".join(f"{name} {ended.count(name)}" for name in HOURS)
    tell(
        "whole releases of five steps and three judges that rolled back a version no worse",
        value=false.value,
        unit="share of releases rolled back",
        peer="z-test at each look of each step",
        peer_value=usual / some,
        ratio=(usual / some) / max(false.value, 1 / RUNS),
        bar=f"<= {BAR} for the whole plan",
        met=false.upper <= BAR and same,
        n=RUNS,
        protocol=(
            f"24 looks in the shadow, 48 in canaries of 10, 30 and 50 %, 48 in the probation; {PER_LOOK} pairs or "
            f"{REQUESTS} requests a look, labels {LATE} looks later; alpha {ALPHA} in three equal parts. Interval "
            f"{false.lower:.4f} to {false.upper:.4f}; by step: {parts}. With 0.05 for each judge {naive / some:.3f} of "
            f"{some}. Of {BAD_RUNS} versions that fail 5 % instead of 2 %, {caught.value:.4f} (at least "
            f"{caught.lower:.4f}) ended in a canary. `Releases.tick` with ledger and book said the same in "
            f"{2 * CHECKED} runs: {same}."
        ),
    )


if __name__ == "__main__":
    main()
