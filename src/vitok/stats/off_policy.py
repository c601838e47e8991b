"""What another policy would have earned on decisions that were taken by this one.

A logged decision counts with a weight: how probable the other policy makes what was seen, over how probable the
logging policy made it. Where only some outcomes can be seen at all, as after a block, the same estimators answer with
one over the probability of seeing it as the weight, and 0 where it was not seen.

Source: Horvitz & Thompson, JASA 1952 (IPS); Swaminathan & Joachims, NeurIPS 2015 (SNIPS); Dudik, Langford & Li,
ICML 2011, and Robins, Rotnitzky & Zhao, JASA 1994 (doubly robust); Kish, 1965 (effective sample size).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats.intervals import normal_quantile
from vitok.stats.results import Estimate
from vitok.stats.weighted_means import effective_sample_size


@dataclass(frozen=True, kw_only=True)
class OffPolicyEstimate(Estimate):
    """An estimate from weighted decisions.

    Attributes:
        n_eff: How many decisions of equal weight would be as good (Kish).
        largest_share: The largest weight's share of their sum; where it is large the interval cannot be trusted.
    """

    n_eff: float
    largest_share: float

    def __str__(self) -> str:
        return f"{super().__str__()[:-1]}, worth {self.n_eff:,.1f})"


def importance_weights(target: ArrayLike, propensity: ArrayLike) -> NDArray[np.float64]:
    """Returns target over propensity.

    Args:
        target: Shape (n,): probability of the logged action under the other policy, in [0, 1].
        propensity: Shape (n,): probability of it under the logging policy, in (0, 1].

    Raises:
        InvalidInput: If a probability is out of its range.

    Example:
        >>> importance_weights([1.0, 0.0, 0.5], [0.5, 0.9, 0.25])
        array([2., 0., 2.])
    """
    wanted, logged = np.asarray(target, np.float64), np.asarray(propensity, np.float64)
    if wanted.shape != logged.shape or wanted.ndim != 1:
        raise InvalidInput("target", wanted.shape, f"have the shape of propensity, {logged.shape}")
    if not ((wanted >= 0) & (wanted <= 1)).all():
        raise InvalidInput("target", float(wanted[~((wanted >= 0) & (wanted <= 1))][0]), "be in [0, 1]")
    if not ((logged > 0) & (logged <= 1)).all():
        raise InvalidInput("propensity", float(logged[~((logged > 0) & (logged <= 1))][0]), "be in (0, 1]")
    return wanted / logged


def ips(reward: ArrayLike, weight: ArrayLike, *, confidence_level: float = 0.95) -> OffPolicyEstimate:
    """Estimates the mean reward of the other policy by inverse propensity: the mean of weight times reward.

    Unbiased where every action of the other policy had a chance; its variance grows with the weights.

    Args:
        reward: Shape (n,); what stands where the weight is 0 does not matter, and may be NaN.
        weight: Shape (n,), at least 0.
        confidence_level: Level of the normal interval, in (0, 1).

    Raises:
        InvalidInput: If the shapes differ, a weight is negative or not finite, or a reward that counts is not finite.

    Example:
        >>> print(ips([1.0, 0.0, 1.0, float("nan")], [2.0, 2.0, 2.0, 0.0]))
        ips 1 (95 % interval -0.1316 to 2.132, n = 4, worth 3.0)
    """
    rewards, weights = _checked(reward, weight)
    return _mean("ips", weights * rewards, weights, confidence_level, "mean of weight times reward, normal interval")


def snips(reward: ArrayLike, weight: ArrayLike, *, confidence_level: float = 0.95) -> OffPolicyEstimate:
    """Estimates the mean reward by self-normalised inverse propensity: the weighted mean.

    Biased by order 1/n, steadier than `ips`, and never out of the range of the rewards.

    Args:
        reward: As for `ips`.
        weight: As for `ips`.
        confidence_level: Level of the interval by linearisation (the delta method), in (0, 1).

    Raises:
        InvalidInput: As for `ips`.

    Example:
        >>> print(snips([1.0, 0.0, 1.0, float("nan")], [2.0, 2.0, 2.0, 0.0]))
        snips 0.6667 (95 % interval 0.05071 to 1.283, n = 4, worth 3.0)
    """
    rewards, weights = _checked(reward, weight)
    total = float(weights.sum())
    definition = "weighted mean, interval by linearisation"
    if not total:
        return _mean("snips", np.full(len(weights), math.nan), weights, confidence_level, definition)
    value = float((weights * rewards).sum()) / total
    residual = weights * (rewards - value) * len(weights) / total
    return _mean("snips", value + residual, weights, confidence_level, definition)


def doubly_robust(
    reward: ArrayLike, weight: ArrayLike, predicted: ArrayLike, direct: ArrayLike, *, confidence_level: float = 0.95
) -> OffPolicyEstimate:
    """Estimates the mean reward from a model of it, mended by the weighted errors of that model.

    Right where the weights are right or the model is; where both are nearly right, of smaller variance than `ips`.

    Args:
        reward: As for `ips`.
        weight: As for `ips`.
        predicted: Shape (n,): what the model says of the reward that was logged.
        direct: Shape (n,): what the model says of the reward under the other policy.
        confidence_level: Level of the normal interval, in (0, 1). The model is taken as given: fitted on other rows.

    Raises:
        InvalidInput: As for `ips`, or where the model says something that is not finite.

    Example:
        >>> print(doubly_robust([1.0, 0.0], [1.0, 0.0], [0.8, 0.3], [0.8, 0.4]))
        dr 0.7 (95 % interval 0.112 to 1.288, n = 2, worth 1.0)
    """
    rewards, weights = _checked(reward, weight)
    models = [np.asarray(item, np.float64) for item in (predicted, direct)]
    for name, model in zip(("predicted", "direct"), models, strict=True):
        if model.shape != rewards.shape or not np.isfinite(model).all():
            raise InvalidInput(name, model.shape, f"be finite numbers of shape {rewards.shape}")
    terms = models[1] + weights * (rewards - models[0])
    return _mean("dr", terms, weights, confidence_level, "model mended by weighted errors, normal interval")


def _checked(reward: ArrayLike, weight: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rewards, weights = np.asarray(reward, np.float64), np.asarray(weight, np.float64)
    if rewards.shape != weights.shape or rewards.ndim != 1:
        raise InvalidInput("weight", weights.shape, f"have the shape of reward, {rewards.shape}")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise InvalidInput("weight", float(weights[~(np.isfinite(weights) & (weights >= 0))][0]), "be at least 0")
    counted = weights > 0
    if not np.isfinite(rewards[counted]).all():
        raise InvalidInput("reward", "not finite", "be a finite number wherever the weight is not 0")
    return np.where(counted, rewards, 0.0), weights


def _mean(
    name: str, terms: NDArray[np.float64], weights: NDArray[np.float64], confidence_level: float, definition: str
) -> OffPolicyEstimate:
    n = len(terms)
    value = float(terms.mean()) if n else math.nan
    half = math.inf
    if n > 1 and not math.isnan(value):
        half = normal_quantile(confidence_level) * float(terms.std(ddof=1)) / math.sqrt(n)
    unknown = math.isnan(value)
    total = float(weights.sum())
    return OffPolicyEstimate(
        name=name,
        value=value,
        lower=-math.inf if unknown else value - half,
        upper=math.inf if unknown else value + half,
        n_obs=n,
        confidence_level=confidence_level,
        definition="no decision has a weight" if unknown else definition,
        n_eff=effective_sample_size(weights),
        largest_share=float(weights.max()) / total if total else math.nan,
    )
