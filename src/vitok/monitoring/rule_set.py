"""The rules that hold unless somebody says otherwise, and rules of one's own from a file."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vitok.clock import DAY, HOUR, MINUTE, duration
from vitok.errors import InvalidInput
from vitok.monitoring.conditions import WatchRules, for_length
from vitok.monitoring.label_guard import LABEL_SOURCE
from vitok.monitoring.rules import AlertRule, check_names

_TIMES = {"for": "for_us", "keep_firing_for": "keep_firing_us"}


def usual_rules(watch: WatchRules | None = None) -> tuple[AlertRule, ...]:
    """Returns the rules of the watch, of the sources of labels, and of watching itself: that it and the messages go on.

    Rules of windows that are longer or shorter than a day are there once for each of `WatchRules.lengths`.

    Args:
        watch: What the watch looks for; by default what it looks for by default.

    Example:
        >>> [rule.name for rule in usual_rules()][-3:]
        ['watch_behind', 'watch_silent', 'notices_dead']
    """
    rules = watch or WatchRules()
    found = [getattr(rules, one.name) for one in fields(rules)]
    judged = [one for one in found if isinstance(one, AlertRule)]
    drift = (rules.data_drift, rules.prediction_drift)
    longer = [for_length(one, length) for length in rules.lengths for one in drift if length != DAY]
    return (
        *judged,
        *longer,
        LABEL_SOURCE,
        AlertRule(
            name="watch_behind",
            severity="critical",
            playbook="look at the process that watches; until it goes on nobody looks at the decisions",
            metric="vitok_watch_age_seconds",
            threshold=1.5 * DAY / 1_000_000,
            for_us=10 * MINUTE,
        ),
        AlertRule(
            name="watch_silent",
            severity="critical",
            playbook="look whether the service and its page of metrics answer",
            metric="vitok_watch_age_seconds",
            absent=True,
            for_us=HOUR,
        ),
        AlertRule(
            name="notices_dead",
            severity="warning",
            playbook="mend the channel, then try the messages again with 'vitok alerts retry'",
            metric="vitok_notices",
            labels={"state": "dead"},
            threshold=0,
        ),
    )


def read_rules(path: Path) -> tuple[AlertRule, ...]:
    """Reads rules from a file: a list in YAML of the fields of `AlertRule`, lengths of time as texts such as `15m`.

    `for` and `keep_firing_for` are named as in Prometheus; `every` is a length of time too.

    Args:
        path: The file.

    Raises:
        InvalidInput: If it is no such list, two rules have one name, or a rule is outside its range; the message
            says which.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput("rules", str(path), f"be a file in YAML: {error}") from None
    if not isinstance(content, list) or not content:
        raise InvalidInput("rules", str(path), "hold a list of at least one rule")
    found = tuple(_rule(place, one) for place, one in enumerate(content, start=1))
    check_names(found)
    return found


def _rule(place: int, given: object) -> AlertRule:
    where = f"rules: {place}"
    if not isinstance(given, Mapping):
        raise InvalidInput(where, given, "be a mapping")
    named: dict[str, Any] = {_TIMES.get(str(name), str(name)): value for name, value in given.items()}
    known = {one.name for one in fields(AlertRule)}
    for name in named:
        if name not in known:
            raise InvalidInput(
                where, name, f"be one of {', '.join(sorted(known - set(_TIMES.values()) | set(_TIMES)))}"
            )
    missing = [name for name in ("name", "severity", "playbook") if name not in named]
    if missing:
        raise InvalidInput(where, dict(given), f"have {' and '.join(missing)}", "An alarm names its action")
    try:
        for name in ("for_us", "keep_firing_us", "every"):
            if name in named and named[name] != 0:
                named[name] = duration(str(named[name]))
        return AlertRule(**named)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error.field}", error.value, error.rule, error.fix) from None
    except TypeError as error:
        raise InvalidInput(where, dict(given), f"hold values of the right kinds: {error}") from None
