import dataclasses

from tests.features.definition_cases import ACCOUNT, CARD, EVERYTHING, FEATURES, PAYMENTS, PLACE, ratio, small

from vitok.features import Buckets, Categories, Count, Entity, FeatureSet, Mean, OnDemand, Sum, View
from vitok.features.described import SetVersion
from vitok.features.differences import DefinitionDiff, diff_sets, diff_views


def fields(found: DefinitionDiff) -> dict[str, tuple[str, str, bool]]:
    return {item.field: (item.old, item.new, item.changes_values) for item in found.fields}


def test_same_is_said() -> None:
    found = diff_views(EVERYTHING, EVERYTHING)
    assert found.same
    assert str(found) == f"card {EVERYTHING.version}: nothing differs"


def test_words_change_no_value() -> None:
    new = dataclasses.replace(EVERYTHING, owner="ann", tags=("velocity",), fresh_within="")
    found = diff_views(EVERYTHING, new)
    assert found.old == found.new
    assert not found.same
    assert not found.values_change
    assert fields(found) == {
        "owner": ("risk team", "ann", False),
        "tags": ("velocity, pii", "velocity", False),
        "fresh_within": ("15m", "", False),
    }
    assert "no served value changes" in str(found)


def test_windows_come_and_go() -> None:
    found = diff_views(small("1h", "1d"), small("1h", "7d"))
    assert (found.added, found.removed, found.changed) == (("card_spent_7d",), ("card_spent_1d",), ())
    assert found.values_change
    assert fields(found) == {"spent.over": ("1h, 1d", "1h, 7d", False)}
    assert not diff_views(small("1h"), small("1h", "7d")).values_change


def test_column_change_touches_its_features_alone() -> None:
    def view(column: str) -> View:
        items = (Sum(column, ("1h",), name="spent"), Count(("1h",)))
        return View(name="card", entity=CARD, source=PAYMENTS, aggregations=items)

    found = diff_views(view("amount"), view("fee"))
    assert found.changed == ("card_spent_1h",)
    (item,) = found.fields
    assert (item.field, item.old, item.new, item.features) == ("spent.column", "amount", "fee", ("card_spent_1h",))


def test_source_and_lag_touch_all() -> None:
    source = dataclasses.replace(PAYMENTS, event_time="paid_at", owner="others")
    found = diff_views(EVERYTHING, dataclasses.replace(EVERYTHING, source=source, lag="1h"))
    assert found.changed == EVERYTHING.feature_names
    told = {item.field: item for item in found.fields}
    assert set(told) == {"source.owner", "source.event_time", "lag"}
    assert told["source.event_time"].features == told["lag"].features == EVERYTHING.feature_names
    assert told["source.owner"].features == ()
    assert (told["lag"].old, told["lag"].new) == ("600000000", "3600000000")


def test_encoding_touches_those_that_read_the_column() -> None:
    codes = {"channel": Categories(("web", "shop", "phone")), "merchant": Buckets(100)}
    found = diff_views(EVERYTHING, dataclasses.replace(EVERYTHING, source=dataclasses.replace(PAYMENTS, encode=codes)))
    assert found.changed == tuple(
        name for name in EVERYTHING.feature_names if "top" in name or "card_count" in name or "web" in name
    )
    (item,) = found.fields
    assert item.field == "source.encode.channel.categories"
    assert item.features == found.changed


def test_exact_tails_change_values() -> None:
    found = diff_views(small(), dataclasses.replace(small(), exact=True))
    assert fields(found) == {"exact": ("no", "yes", True)}


def test_name_of_the_entity_is_a_new_version_of_the_same_values() -> None:
    found = diff_views(small(), dataclasses.replace(small(), entity=Entity("payment card", "card_id")))
    assert found.old != found.new
    assert not found.values_change
    assert fields(found) == {"entity.name": ("card", "payment card", False)}
    moved = diff_views(small(), dataclasses.replace(small(), entity=Entity("card", ("card_id", "shop_id"))))
    assert moved.changed == ("card_spent_1h",)


def test_renamed_feature_keeps_its_values() -> None:
    new = View(name="card", entity=CARD, source=PAYMENTS, aggregations=(Sum("amount", ("1h",), name="total"),))
    found = diff_views(small(), new)
    assert found.renamed == (("card_spent_1h", "card_total_1h"),)
    assert (found.added, found.removed) == ((), ())
    assert "renamed  card_spent_1h -> card_total_1h, its values stay" in str(found)


def test_columns_of_latest() -> None:
    new = dataclasses.replace(ACCOUNT, columns={"credit_limit": "float64", "is_vip": "bool"}, ttl="30d")
    found = diff_views(ACCOUNT, new)
    told = {item.field: item.features for item in found.fields}
    assert told["latest.credit_limit"] == ("account_credit_limit",)
    assert told["ttl"] == ("account_credit_limit", "account_is_vip")


def test_another_index_is_another_vector() -> None:
    found = diff_views(PLACE, dataclasses.replace(PLACE, index_version="8"))
    assert found.changed == PLACE.feature_names
    assert fields(found) == {"index": ("shops@7", "shops@8", True)}


def test_sets_compare_views_functions_and_order() -> None:
    def double(amount: object) -> object:
        return amount

    old = FeatureSet(request=("amount",), views=(small("1h"),), on_demand=(OnDemand("twice", double),))
    new = FeatureSet(
        request=("amount", "fee"),
        views=(small("1h", column="fee"), ACCOUNT),
        on_demand=(OnDemand("twice", lambda fee: fee * 2),),
    )
    found = diff_sets(SetVersion.of(old), SetVersion.of(new))
    assert found.added == ("fee", "account_credit_limit", "account_is_vip")
    assert found.changed == ("card_spent_1h", "twice")
    told = {item.field: item for item in found.fields}
    assert set(told) == {"view card", "view account", "function twice", "inputs of twice"}
    assert told["view card"].features == ("card_spent_1h",)
    assert not told["view account"].changes_values
    assert found.to_dict()["values_change"] is True


def test_change_of_an_input_changes_the_function() -> None:
    def with_mean(column: str) -> SetVersion:
        mean = View(
            name="card", entity=CARD, source=PAYMENTS, aggregations=(Mean(column, ("7d",), name="amount_mean"),)
        )
        chosen = FeatureSet(
            request=("amount",), views=(mean,), on_demand=(OnDemand("ratio", ratio),), select=("ratio",)
        )
        return SetVersion.of(chosen)

    assert diff_sets(with_mean("amount"), with_mean("fee")).changed == ("ratio",)


def test_order_is_told() -> None:
    one = SetVersion.of(FEATURES)
    other = dataclasses.replace(one, version="0" * 12, select=tuple(reversed(one.names)))
    found = diff_sets(one, other)
    assert found.reordered
    assert "another order" in str(found)
