"""Decisions of the fraud system taken again by the versions of a home."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitok.console import stores
from vitok.decision import Decision
from vitok.decisions import Recomputed, Rescored
from vitok.decisions.schema import FEATURE_PREFIX
from vitok.errors import Conflict, InvalidInput, NotFound
from vitok.policies import Costs
from vitok.serving import Batch
from vitok.systems.fraud import rules
from vitok.systems.fraud.challenger_serving import shadow_again
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.messages import CHALLENGER, SYSTEM
from vitok.systems.fraud.model import LoadedModel
from vitok.systems.fraud.overrides import policy_as_logged

if TYPE_CHECKING:
    import polars as pl


class FraudReplay:
    """Answers decisions of the fraud system again; versions are loaded once.

    Args:
        home: The home of the system.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._loaded: dict[str, LoadedModel] = {}

    def recompute(self, decision: Decision) -> Recomputed:
        """Takes one decision again: score, probability, policy, action, propensity, and the shadow's probability.

        Raises:
            NotFound: If a version that it names is not there any more.
            Conflict: If it was made with other features than those that are declared now.
        """
        if tuple(decision.features) != FEATURES.names:
            raise Conflict(
                f"decision {decision.decision_id} was made with features of other names than those declared now; "
                "replay it with the code of then"
            )
        values = np.array([[decision.features[name] for name in FEATURES.names]])
        fields: dict[str, str | float | None] = {}
        if decision.model_version == rules.VERSION:
            score = self._by_rules(values)
            fields |= {"score": float(score[0]), "probability": float("nan"), "policy_version": rules.VERSION}
            fields |= {"action": rules.rule_actions(score)[0], "propensity": 1.0}
        else:
            model = self.model(decision.model_version)
            score, probability = model.answer(values)
            amount = np.array([float(decision.request["amount"] or 0.0)])
            policy = policy_as_logged(model.policy, decision.policy_version)
            tiers = policy.decide(probability, amount, [decision.request_id])
            fields |= {"score": float(score[0]), "probability": float(probability[0])}
            fields["policy_version"] = model.policy_version if policy is model.policy else policy.version
            fields["action"] = tiers.actions[0]
            fields["propensity"] = float(tiers.propensity[0])
        shadow, left_out = decision.shadow_version, {}
        if shadow is not None and shadow.startswith(f"{CHALLENGER}/"):
            said = shadow_again(self._home, shadow, values)
            if said is None:
                left_out["shadow_probability"] = f"the snapshot {shadow} is not kept any more"
            else:
                fields["shadow_probability"] = float(said[0])
        elif shadow is not None and shadow != rules.VERSION:
            _, beside = self.model(shadow).answer(values)
            fields["shadow_probability"] = float(beside[0])
        return Recomputed(fields=fields, left_out=left_out)

    def rescore(self, rows: "pl.DataFrame", version: str) -> Rescored:
        """Answers rows of the log with a version such as `"fraud/3"`, or with the rules.

        Raises:
            NotFound: If there is no such version.
        """
        values = rows.select(FEATURE_PREFIX + name for name in FEATURES.names).to_numpy().astype(np.float64)
        if version == rules.VERSION:
            score = self._by_rules(values)
            return Rescored(action=rules.rule_actions(score), probability=np.full(len(values), np.nan))
        model = self.model(version)
        _, probability = model.answer(values)
        policy = dataclasses.replace(model.policy, pass_through=0.0)
        tiers = policy.decide(probability, rows["amount"].to_numpy(), rows["request_id"].to_list())
        return Rescored(action=tiers.actions, probability=probability)

    def cost(self, rows: "pl.DataFrame", action: Sequence[str], label: np.ndarray) -> np.ndarray:
        """Returns what actions cost by the costs of the version in Production, in the amounts' currency."""
        in_force = stores.state(self._home).production
        costs = Costs() if in_force is None else self.model(f"{SYSTEM}/{in_force}").policy.costs
        by_action = costs.expected(label, rows["amount"].to_numpy())
        place = {"allow": 0, "review": 1, "block": 2}
        return by_action[[place[one] for one in action], np.arange(len(label))]

    def model(self, version: str) -> LoadedModel:
        """Loads a version by its name.

        Raises:
            NotFound: If there is none of that name.
        """
        if version not in self._loaded:
            known = stores.state(self._home).versions
            number = stores.number_of(version)
            found = next((one for one in known if one.version == number), None)
            if found is None:
                raise NotFound("version", version, [one.name for one in known])
            package = stores.package(self._home, found)
            self._loaded[version] = LoadedModel.load(package, version, "", FEATURES)
        return self._loaded[version]

    def named(self, text: str) -> str:
        """Reads a version as people write it: a number, `fraud/3`, `production`, `candidate`, `previous` or `rules`.

        The candidate is the version on trial, or the newest where none is.

        Raises:
            NotFound: If there is no such version.
            InvalidInput: If it is none of these.
        """
        state = stores.state(self._home)
        newest = max((one.version for one in state.versions), default=None)
        by_stage = {
            "production": state.production,
            "previous": state.previous,
            "candidate": newest if state.canary is None else state.canary,
        }
        if text == rules.VERSION:
            return text
        if text in by_stage:
            if by_stage[text] is None:
                raise NotFound("version", text, [one.name for one in state.versions])
            return f"{SYSTEM}/{by_stage[text]}"
        name = text if "/" in text else f"{SYSTEM}/{text}"
        if stores.number_of(name) is None:
            raise InvalidInput("--system", text, "be a number, production, candidate, previous or rules behind the @")
        return name

    @staticmethod
    def _by_rules(values: np.ndarray) -> np.ndarray:
        return rules.as_target(FEATURES.names).score(Batch(values)).values
