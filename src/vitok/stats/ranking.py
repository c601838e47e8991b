"""How well a score ranks: area under the ROC curve, average precision, precision among the top k, card precision."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.stats.arrays import Flags, Floats, labels_and_scores, positive_integer, same_length, vector
from vitok.stats.intervals import clopper_pearson, mean_interval, normal_quantile, wilson
from vitok.stats.results import Estimate


def _undefined(name: str, reason: str, n_obs: int, confidence_level: float) -> Estimate:
    return Estimate(
        name=name,
        value=math.nan,
        lower=0.0,
        upper=1.0,
        n_obs=n_obs,
        confidence_level=confidence_level,
        definition=reason,
    )


def _missing_class(y: Flags) -> str:
    if len(y) == 0:
        return "no rows"
    if not y.any():
        return "no positives"
    return "no negatives" if y.all() else ""


def _logit_interval(value: float, standard_error: float, z: float) -> tuple[float, float]:
    # On the logit scale the interval stays inside (0, 1) and covers better near the ends.
    centre = math.log(value / (1 - value))
    half = z * standard_error / (value * (1 - value))
    return 1 / (1 + math.exp(min(700.0, half - centre))), 1 / (1 + math.exp(max(-700.0, -half - centre)))


def _midranks(values: Floats) -> Floats:
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    ends = np.append(starts[1:], len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat((starts + ends + 1) / 2, ends - starts)
    return ranks


def _newcombe(value: float, n_positive: int, n_negative: int, z: float) -> tuple[float, float]:
    # DeLong's variance is 0 for a perfect ranking; this score interval is not (Newcombe 2006, method 5).
    star = (n_positive + n_negative) / 2 - 1

    def far(theta: float) -> bool:
        spread = theta * (1 - theta) * (1 + star * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
        return abs(theta - value) > z * math.sqrt(spread / (n_positive * n_negative))

    ends = []
    for outside in (0.0, 1.0):
        out, inside = outside, value
        for _ in range(60):
            middle = (out + inside) / 2
            if far(middle):
                out = middle
            else:
                inside = middle
        ends.append(inside)
    return ends[0], ends[1]


def roc_auc(y: ArrayLike, score: ArrayLike, *, confidence_level: float = 0.95) -> Estimate:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting one half.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        score: Scores of shape (n,), higher meaning more likely positive; infinities allowed, NaN not.
        confidence_level: Level, in (0, 1).

    Returns:
        The area with DeLong's interval on the logit scale; where DeLong's variance is 0 or unknown (a perfect
        ranking, a single positive) with Newcombe's. With one class only the value is NaN and the interval [0, 1].

    Raises:
        InvalidInput: If shapes differ, a score is NaN, or a label is not 0 or 1.

    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 1988, by the midranks of Sun & Xu, IEEE SPL 2014; Newcombe,
    Statistics in Medicine 2006.

    Example:
        >>> print(roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]))
        roc_auc 0.75 (95 % interval 0.06932 to 0.9918, n = 4)
    """
    flags, scores = labels_and_scores(y, score)
    z = normal_quantile(confidence_level)
    reason = _missing_class(flags)
    if reason:
        return _undefined("roc_auc", reason, len(flags), confidence_level)
    positive, negative = scores[flags], scores[~flags]
    n_positive, n_negative = len(positive), len(negative)
    everyone = _midranks(np.concatenate((positive, negative)))
    above = (everyone[:n_positive] - _midranks(positive)) / n_negative
    below = 1 - (everyone[n_positive:] - _midranks(negative)) / n_positive
    value = float(above.mean())
    variance = 0.0
    if min(n_positive, n_negative) > 1:
        variance = float(above.var(ddof=1)) / n_positive + float(below.var(ddof=1)) / n_negative
    if variance > 0 and 0 < value < 1:
        lower, upper = _logit_interval(value, math.sqrt(variance), z)
        method = "DeLong interval on the logit scale"
    else:
        lower, upper = _newcombe(value, n_positive, n_negative, z)
        method = "Newcombe score interval"
    return Estimate(
        name="roc_auc",
        value=value,
        lower=lower,
        upper=upper,
        n_obs=len(flags),
        confidence_level=confidence_level,
        definition=f"P(score of a positive > score of a negative), ties one half; {method}",
    )


def average_precision(y: ArrayLike, score: ArrayLike, *, confidence_level: float = 0.95) -> Estimate:
    """Average precision: the mean, over the positives, of the precision at each positive's score.

    This is the step-wise area under the precision-recall curve (no interpolation). Its chance level is the share
    of positives.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        score: Scores of shape (n,), higher meaning more likely positive; infinities allowed, NaN not.
        confidence_level: Level, in (0, 1).

    Returns:
        The average precision. Its interval is on the logit scale, with the variance of the estimator's influence
        function (the counterpart of DeLong's); for a perfect ranking it is Clopper-Pearson over the positives. With
        fewer than two positives the interval is [0, 1]; with one class only the value is NaN.

    Raises:
        InvalidInput: If shapes differ, a score is NaN, or a label is not 0 or 1.

    Source: the logit interval is that of Boyd, Eng & Page, ECML 2013; the influence function follows from
    differentiating the mean over positives of P(y = 1, s' >= s) / P(s' >= s).

    Example:
        >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]).value, 4)
        0.8333
    """
    flags, scores = labels_and_scores(y, score)
    z = normal_quantile(confidence_level)
    reason = _missing_class(flags)
    if reason:
        return _undefined("average_precision", reason, len(flags), confidence_level)
    n = len(flags)
    order = np.argsort(-scores, kind="stable")
    hit = flags[order].astype(np.float64)
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    sizes = np.diff(np.append(starts, n))
    positives = np.add.reduceat(hit, starts)
    true_above, above = np.cumsum(positives), np.cumsum(sizes)
    precision = true_above / above
    n_positive = float(true_above[-1])
    value = float(positives @ precision / n_positive)

    # A row moves the precision of every positive that scores no higher than itself: sums from the bottom up.
    gain = np.cumsum((positives / above)[::-1])[::-1]
    loss = np.cumsum((positives * true_above / above**2)[::-1])[::-1]
    influence = hit * np.repeat(precision + gain - value, sizes) - np.repeat(loss, sizes)
    standard_error = math.sqrt(float(influence @ influence)) / n_positive

    if n_positive < 2:
        lower, upper, method = 0.0, 1.0, "one positive has no interval"
    elif value == 1.0:
        lower = clopper_pearson(int(n_positive), int(n_positive), confidence_level=confidence_level).lower
        upper, method = 1.0, "Clopper-Pearson interval over the positives"
    else:
        lower, upper = _logit_interval(value, standard_error, z)
        method = "influence-function interval on the logit scale"
    return Estimate(
        name="average_precision",
        value=value,
        lower=lower,
        upper=upper,
        n_obs=n,
        confidence_level=confidence_level,
        definition=f"mean over positives of the precision at their score, no interpolation; {method}",
    )


def precision_at_k(y: ArrayLike, score: ArrayLike, *, k: int, confidence_level: float = 0.95) -> Estimate:
    """Share of positives among the k highest scores.

    Where ties straddle the cut, the tied rows share the places left equally, so the value does not depend on order.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        score: Scores of shape (n,), without NaN.
        k: How many are looked at, at least 1; with fewer rows than k all are looked at.
        confidence_level: Level, in (0, 1).

    Returns:
        The precision with Wilson's interval over the rows looked at.

    Raises:
        InvalidInput: If shapes differ, a score is NaN, a label is not 0 or 1, or k is below 1.

    Example:
        >>> precision_at_k([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1], k=2).value
        0.5
    """
    flags, scores = labels_and_scores(y, score)
    top = min(positive_integer("k", k), len(flags))
    name = f"precision_at_{k}"
    if top == 0:
        return _undefined(name, "no rows", 0, confidence_level)
    cut = np.partition(scores, len(scores) - top)[len(scores) - top]
    over, tied = scores > cut, scores == cut
    hits = float(flags[over].sum()) + (top - int(over.sum())) * float(flags[tied].mean())
    interval = wilson(min(hits, float(top)), top, confidence_level=confidence_level)
    return Estimate(
        name=name,
        value=interval.value,
        lower=interval.lower,
        upper=interval.upper,
        n_obs=top,
        confidence_level=confidence_level,
        definition=f"share of positives among the {top} highest scores, ties shared; Wilson interval",
    )


@dataclass(frozen=True, kw_only=True)
class CardPrecision(Estimate):
    """Card precision among the top k, as a mean over days, with what happened on each day.

    Attributes:
        k: Cards looked at a day.
        days: The days, ascending.
        precision_by_day: Share of the k cards that were compromised, one value a day.
        found_by_day: Compromised cards among the k.
        compromised_by_day: Compromised cards that were still to be found that day.
    """

    k: int
    days: tuple[int, ...]
    precision_by_day: tuple[float, ...]
    found_by_day: tuple[int, ...]
    compromised_by_day: tuple[int, ...]

    @property
    def best_possible(self) -> float:
        """The mean precision of a perfect order on these days: far below 1 where few cards are compromised."""
        shares = [min(self.k, cards) / self.k for cards in self.compromised_by_day]
        return sum(shares) / len(shares) if shares else math.nan


def _codes(cards: NDArray[Any]) -> NDArray[np.int64]:
    try:
        return np.unique(cards, return_inverse=True)[1].astype(np.int64, copy=False).ravel()
    except TypeError:
        # Cards of mixed types have no order; the order of first appearance stands in for it.
        known = {card: code for code, card in enumerate(dict.fromkeys(cards.tolist()))}
        return np.fromiter((known[card] for card in cards.tolist()), dtype=np.int64, count=len(cards))


def card_precision_at_k(
    *,
    day: ArrayLike,
    card: ArrayLike,
    is_fraud: ArrayLike,
    score: ArrayLike,
    k: int = 100,
    remove_found: bool = True,
    confidence_level: float = 0.95,
) -> CardPrecision:
    """Card precision among the top k of the Fraud Detection Handbook.

    For each day, a card's score is the maximum over its transactions that day, and it is compromised where any of
    them is fraud. The k highest cards are looked at; the share of k that is compromised is the day's precision; the
    compromised cards found are left out of later days. The value is the mean over days. Equal scores are taken in
    ascending order of the card.

    Args:
        day: Day number of each transaction, shape (n,), whole numbers.
        card: Card or customer of each transaction, shape (n,), any hashable.
        is_fraud: Labels, shape (n,), bool or 0 and 1.
        score: Scores, shape (n,), without NaN.
        k: Cards looked at a day, at least 1; the share is of k even where a day has fewer cards.
        remove_found: Whether found cards are left out of later days.
        confidence_level: Level, in (0, 1).

    Returns:
        The mean over days with a t interval over days (which takes days as independent; from one day, Wilson's over
        the k cards), and the values of each day. `n_obs` is the number of days. Without rows the value is NaN.

    Raises:
        InvalidInput: If shapes differ, a score is NaN, a label is not 0 or 1, or k is below 1.

    Source: Le Borgne et al., Reproducible Machine Learning for Credit Card Fraud Detection, 2022.

    Example:
        >>> found = card_precision_at_k(
        ...     day=[1, 1, 1, 2, 2], card=["a", "a", "b", "a", "b"], is_fraud=[0, 1, 0, 1, 1],
        ...     score=[0.1, 0.9, 0.5, 0.9, 0.2], k=1)
        >>> found.precision_by_day, found.value
        ((1.0, 1.0), 1.0)
    """
    flags, scores = labels_and_scores(is_fraud, score)
    days, cards = vector("day", day, finite=True).astype(np.int64), np.asarray(card)
    same_length(day=days, card=cards, score=scores)
    positive_integer("k", k)
    definition = (
        f"mean over days of the share of compromised cards among the {k} cards of highest daily maximum score"
        + (", found cards removed from later days" if remove_found else "")
    )
    which_day, day_code = np.unique(days, return_inverse=True)
    precision, found_counts, compromised_counts = [], [], []
    if len(scores):
        codes = _codes(cards)
        n_cards = int(codes.max()) + 1
        key = day_code.astype(np.int64) * n_cards + codes
        order = np.argsort(key, kind="stable")
        key = key[order]
        starts = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
        best = np.maximum.reduceat(scores[order], starts)
        compromised = np.maximum.reduceat(flags[order], starts)
        card_of = key[starts] % n_cards
        bounds = np.searchsorted(key[starts] // n_cards, np.arange(len(which_day) + 1))
        found = np.zeros(n_cards, dtype=np.bool_)
        for first, last in itertools.pairwise(bounds):
            waiting = first + np.flatnonzero(~found[card_of[first:last]])
            top = waiting[np.argsort(-best[waiting], kind="stable")[:k]]
            caught = top[compromised[top]]
            precision.append(len(caught) / k)
            found_counts.append(len(caught))
            compromised_counts.append(int(compromised[waiting].sum()))
            if remove_found:
                found[card_of[caught]] = True
    if len(precision) == 1:
        interval = wilson(found_counts[0], k, confidence_level=confidence_level)
        definition += "; Wilson interval over the cards of the only day"
    else:
        interval = mean_interval(precision, confidence_level=confidence_level)
        definition = definition + "; t interval over days" if precision else "no rows"
    return CardPrecision(
        name=f"card_precision_at_{k}",
        value=interval.value,
        lower=max(0.0, interval.lower),
        upper=min(1.0, interval.upper),
        n_obs=len(precision),
        confidence_level=confidence_level,
        definition=definition,
        k=k,
        days=tuple(which_day.tolist()),
        precision_by_day=tuple(precision),
        found_by_day=tuple(found_counts),
        compromised_by_day=tuple(compromised_counts),
    )
