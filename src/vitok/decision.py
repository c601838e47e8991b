"""The two words that every room shares: a decision, and the outcome that the world answers with."""

import msgspec


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One decision with everything that made it, as it stands in the log.

    Times are microseconds since 1970-01-01 UTC. `event_time` says when the thing happened, `ingest_time` when
    vitok learned of it.

    Attributes:
        decision_id: UUID version 7, as text.
        request_id: The caller's own id; the same id always gets the same decision.
        system: Which system decided, such as `"fraud"`.
        event_time: When the request happened, in the caller's world.
        ingest_time: When vitok saw it.
        entities: Entity name to key, such as `{"customer_id": "17"}`.
        request: The request's own fields.
        features: Feature name to the value that the model saw; NaN where there was none.
        feature_status: `"fresh"`, `"stale"` or `"missing"`: the worst among the features.
        model_version: Such as `"fraud/3"`; `"rules"` where no model answered.
        stage: Stage of that version when it answered.
        route: `"champion"`, `"canary"` or `"fallback"`.
        route_reason: Why this route was taken.
        score: The model's raw output.
        probability: The calibrated probability.
        shadow_version: The version that was scored beside and did not act, or None.
        shadow_probability: Its calibrated probability, or None.
        policy_version: Which policy turned the probability into an action.
        action: What was decided, such as `"review"`.
        propensity: Probability of that action under the policy, in (0, 1].
        latency_us: Microseconds from the request's arrival to the write of this record.
        cost: Processor seconds that the decision took.
        tenant: Who asked, as the key of the request says; empty where that is not known.
        team: Who is charged for it; empty where that is not known.
        trace_id: The trace that the request belongs to, 32 hex digits; empty where there is none.
    """

    decision_id: str
    request_id: str
    system: str
    event_time: int
    ingest_time: int
    entities: dict[str, str]
    request: dict[str, str | float | int | None]
    features: dict[str, float]
    feature_status: str
    model_version: str
    stage: str
    route: str
    route_reason: str
    score: float
    probability: float
    shadow_version: str | None
    shadow_probability: float | None
    policy_version: str
    action: str
    propensity: float
    latency_us: int
    cost: float
    tenant: str = ""
    team: str = ""
    trace_id: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the world answered to one decision; append-only, may supersede an earlier answer.

    Attributes:
        request_id: Which request it answers.
        kind: What was observed, such as `"fraud"`.
        value: The observed value, 0.0 or 1.0 for a yes or no.
        event_time: When it became true in the caller's world, in microseconds.
        ingest_time: When vitok learned of it, in microseconds.
        source: Who says so, such as `"chargeback"`.
        supersedes: True where it replaces an earlier outcome of this request and kind.
    """

    request_id: str
    kind: str
    value: float
    event_time: int
    ingest_time: int = 0
    source: str = ""
    supersedes: bool = False
