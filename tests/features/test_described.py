import json

import hypothesis.strategies as st
import pytest
from hypothesis import given
from tests.features.definition_cases import ACCOUNT, EVERYTHING, FEATURES, PLACE, small

from vitok.errors import InvalidInput, NotFound
from vitok.features import Count, Distinct, Entity, FeatureSet, Mean, Recent, Source, Sum, TopK, View
from vitok.features.described import SetVersion, features_of, view_of, words_of
from vitok.features.views import AnyView


@pytest.mark.parametrize("view", [EVERYTHING, ACCOUNT, PLACE, small()])
def test_view_read_back_is_the_view(view: AnyView) -> None:
    # Oracle: the content hash and the names that the definition itself gives.
    found = view_of(json.loads(json.dumps(view.describe())), json.loads(json.dumps(words_of(view))))
    assert found.version == view.version
    assert found.feature_names == view.feature_names
    assert words_of(found) == words_of(view)
    assert [one.fingerprint for one in features_of(found)] == [one.fingerprint for one in features_of(view)]


_NAMES = st.sampled_from(["amount", "fee", "shop_id"])
_SPANS = st.lists(st.sampled_from(["1h", "6h", "1d", "7d", "30d"]), min_size=1, max_size=3, unique=True).map(tuple)
_WHERE = st.lists(st.tuples(_NAMES, st.sampled_from(["==", "!=", "<"]), st.integers(-5, 5)), max_size=2).map(tuple)
_AGGREGATION = st.one_of(
    st.builds(lambda over, where: Count(over, where=where), _SPANS, _WHERE),
    st.builds(lambda column, over, where: Sum(column, over, where=where), _NAMES, _SPANS, _WHERE),
    st.builds(lambda column, over: Mean(column, over), _NAMES, _SPANS),
    st.builds(lambda column, over: Distinct(column, over), _NAMES, _SPANS),
    st.builds(lambda column, over, k: TopK(column, over, k=k), _NAMES, _SPANS, st.integers(1, 3)),
    st.builds(lambda column, n: Recent(column, ("30d",), n=n), _NAMES, st.integers(1, 3)),
)


@given(
    st.lists(_AGGREGATION, min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from([None, "0s", "5m"]),
    st.sampled_from(["", "known_at"]),
)
def test_any_view_is_read_back(items: list[object], exact: bool, lag: str | None, ingest: str) -> None:
    source = Source("payments", "payment_id", ingest_time=ingest)
    try:
        view = View(
            name="v",
            entity=Entity("card", ("a", "b")),
            source=source,
            aggregations=tuple(items),
            exact=exact,
            lag=lag,  # type: ignore[arg-type]
        )
    except InvalidInput:
        return  # two features of one name
    found = view_of(json.loads(json.dumps(view.describe())))
    assert found.version == view.version
    assert len(features_of(view)) == len(view.feature_names)


def test_features_say_what_they_are_made_of() -> None:
    found = {one.name: one for one in features_of(EVERYTHING)}
    assert found["card_spent_1h"].columns == ("amount",)
    assert found["card_spent_1h"].meaning == "sum of amount over 1h"
    assert found["card_count_1h"].columns == ("channel", "amount")
    assert found["card_count_1h"].meaning == "number of events where channel in web, shop and amount > 5 over 1h"
    assert found["card_channel_top2_7d"].meaning == "value 2 by frequency of channel over 7d"
    assert found["card_merchant_recent_3"].columns == ("merchant",)
    assert found["card_web_share_1d"].columns == ("channel",)
    assert set(found["card_shops_1d"].context) == {"card_id", "event_time", "payment_id", "known_at"}
    assert [one.columns for one in features_of(ACCOUNT)] == [("credit_limit",), ("is_vip",)]
    assert "is_closed" in features_of(ACCOUNT)[0].context
    assert features_of(PLACE)[2].source == "shops@7"


def test_fingerprint_changes_with_the_feature_alone() -> None:
    before = {one.name: one.fingerprint for one in features_of(small("1h", "1d"))}
    after = {one.name: one.fingerprint for one in features_of(small("1h", "7d"))}
    assert before["card_spent_1h"] == after["card_spent_1h"]
    others = [
        small("1h", column="fee"),
        small("1h", source=Source("payments", "payment_id", ingest_time="known_at", event_time="paid_at")),
        small("1h", source=Source("orders", "payment_id", ingest_time="known_at")),
        small("1h", source=Source("payments", "order_id", ingest_time="known_at")),
        small("1h", source=Source("payments", "payment_id")),
    ]
    prints = {features_of(view)[0].fingerprint for view in others}
    assert len(prints) == len(others)
    assert before["card_spent_1h"] not in prints


def test_set_is_read_from_a_package() -> None:
    document = json.loads(json.dumps({"version": FEATURES.version, **FEATURES.describe()}))
    found = SetVersion.read(document, "fraud")
    assert (found.version, found.names) == (FEATURES.version, FEATURES.names)
    assert found.pins == {view.name: view.version for view in FEATURES.views}
    assert found.fingerprints == SetVersion.of(FEATURES).fingerprints
    assert SetVersion.read(FEATURES.describe()).version == FEATURES.version
    with pytest.raises(NotFound, match="card, account, place"):
        found.view("nothing")


def test_used_are_the_inputs_of_functions_too() -> None:
    chosen = FeatureSet(
        request=FEATURES.request, views=FEATURES.views, on_demand=FEATURES.on_demand, select=("is_new", "card_spent_1h")
    )
    found = SetVersion.of(chosen)
    assert found.names == ("is_new", "card_spent_1h")
    assert found.used == {"is_new", "ratio", "amount", "card_amount_mean_7d", "card_spent_1h"}
    other = SetVersion.of(FeatureSet(request=("amount",), views=(small("7d"),)))
    assert found.fingerprints["amount"] == other.fingerprints["amount"]


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"name": "v"},
        {"name": "v", "entity": "card"},
        {**small().describe(), "aggregations": [{"kind": "sum"}]},
        {**small().describe(), "aggregations": [{"kind": "median", "column": "a", "over": ["1h"], "name": "m"}]},
        {**small().describe(), "source": None},
    ],
)
def test_broken_description_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        view_of(broken)
    with pytest.raises(InvalidInput):
        SetVersion.read({"views": [broken], "request": [], "on_demand": []})


def test_later_aggregation_is_named() -> None:
    described = {**small().describe(), "aggregations": [{"kind": "median", "column": "a", "over": ["1h"], "name": "m"}]}
    with pytest.raises(InvalidInput, match="A later vitok wrote it"):
        view_of(described)
