import numpy as np
import pytest
from tests.features.definition_cases import ACCOUNT, EVERYTHING, FEATURES, small

from vitok.errors import InvalidInput, NotFound
from vitok.features import FeatureSet
from vitok.features.described import SetVersion, Use
from vitok.features.lineage import Lineage, Node

DECLARED = SetVersion.of(FEATURES, "fraud")
OLD = SetVersion.of(FeatureSet(views=(small("1h", column="fee"),)), "fraud")
GRAPH = Lineage.of(
    [DECLARED],
    uses=[Use(model="fraud/1", features=OLD), Use(model="fraud/2", features=DECLARED)],
    logs={"fraud decisions": ["fraud/1", "fraud/2"]},
    experiments={"canary of fraud/2": ["fraud/2", "fraud/1"]},
)


def test_reachability_is_the_transitive_closure() -> None:
    # Oracle: powers of the adjacency matrix.
    at = {node: place for place, node in enumerate(GRAPH.nodes)}
    steps = np.zeros((len(at), len(at)), bool)
    for edge in GRAPH.edges:
        steps[at[edge.start], at[edge.end]] = True
    closure = steps.copy()
    for _ in range(8):
        closure |= closure @ steps
    for node, place in at.items():
        assert GRAPH.downstream(node) == tuple(other for other in GRAPH.nodes if closure[place, at[other]])
        assert GRAPH.upstream(node) == tuple(other for other in GRAPH.nodes if closure[at[other], place])
    assert not closure.diagonal().any()


def test_model_sees_the_features_of_its_own_definitions() -> None:
    above = GRAPH.upstream("fraud/1")
    assert [node.name for node in above if node.kind == "feature"] == ["card_spent_1h"]
    assert "payments.fee" in {node.name for node in above}
    assert "payments.amount" not in {node.name for node in above}
    both = GRAPH.find("card_spent_1h")
    assert len(both) == 2
    with pytest.raises(InvalidInput, match="feature:card_spent_1h@"):
        GRAPH.node("card_spent_1h")
    assert GRAPH.node(both[0].id) == both[0]


def test_impact_names_what_stands_on_a_column() -> None:
    found = GRAPH.impact("payments", ["merchant"])
    assert found == (
        "feature card_merchant_recent_1",
        "feature card_merchant_recent_2",
        "feature card_merchant_recent_3",
        "model fraud/2",
        "log fraud decisions",
        "experiment canary of fraud/2",
    )
    assert GRAPH.impact("payments", ["fee"])[:2] == ("feature card_spent_1h", "model fraud/1")
    through = GRAPH.impact("payments", ["amount"])
    assert {"feature card_amount_mean_7d", "feature ratio", "feature is_new"} <= set(through)
    assert GRAPH.impact("payments", ["nothing reads it"]) == ()
    assert set(GRAPH.impact("accounts")) >= {"feature account_credit_limit", "feature account_is_vip", "model fraud/2"}
    assert GRAPH.impact("unknown") == ()


def test_keys_and_times_count_as_impact() -> None:
    for column in ("card_id", "payment_id", "event_time", "known_at"):
        assert "feature card_spent_1h" in GRAPH.impact("payments", [column])
    roles = {edge.start.name: edge.role for edge in GRAPH.edges if edge.end.name == "card_spent_7d"}
    assert roles == {
        "payments.amount": "value",
        "payments.card_id": "row",
        "payments.event_time": "row",
        "payments.payment_id": "row",
        "payments.known_at": "row",
    }


def test_request_may_be_rows_of_a_source() -> None:
    assert "feature amount" in GRAPH.impact("request", ["amount"])
    joined = Lineage.of([DECLARED], request="payments")
    assert {"feature amount", "feature card_spent_1h"} <= set(joined.impact("payments", ["amount"]))


def test_columns_of_a_source() -> None:
    assert set(GRAPH.columns("accounts")) == {
        "credit_limit",
        "is_vip",
        "card_id",
        "event_time",
        "loaded_at",
        "is_closed",
    }


def test_index_is_a_source_too() -> None:
    assert "feature place_0" in GRAPH.impact("shops@7")


def test_around_keeps_what_is_joined() -> None:
    part = GRAPH.around(*GRAPH.find("account"))
    assert {node.kind for node in part.nodes} == {"column", "feature", "model", "log", "experiment"}
    assert {node.group for node in part.nodes if node.kind == "feature"} == {"account"}
    assert all(edge.start in part.nodes and edge.end in part.nodes for edge in part.edges)


def test_by_view_is_the_small_picture() -> None:
    small_one = GRAPH.by_view()
    named = {(edge.start.name, edge.end.name) for edge in small_one.edges}
    assert {("payments", "card"), ("accounts", "account"), ("card", "fraud/1"), ("card", "functions")} <= named
    assert ("fraud/2", "fraud decisions") in named
    assert ("shops@7", "place") in named
    assert len(small_one.nodes) < 16
    assert str(small_one).startswith("source request -> request")


def test_unknown_node_lists_close_ones() -> None:
    with pytest.raises(NotFound, match="account_is_vip"):
        GRAPH.node("is_vip")
    with pytest.raises(NotFound):
        GRAPH.downstream("nothing of the kind")


def test_empty_graph() -> None:
    empty = Lineage.of([])
    assert empty.nodes == empty.edges == ()
    assert empty.impact("payments") == ()
    assert str(empty) == "no lineage: nothing is defined"
    assert empty.by_view() == empty


def test_to_dict_names_every_end() -> None:
    told = GRAPH.to_dict()
    ids = {node["id"] for node in told["nodes"]}
    assert len(ids) == len(GRAPH.nodes)
    assert all(edge["from"] in ids and edge["to"] in ids for edge in told["edges"])


def test_nodes_compare_without_their_group() -> None:
    assert Node("column", "a.b", group="a") == Node("column", "a.b")
    features = {node.name for node in GRAPH.find("card") if node.kind == "feature"}
    assert features == set(EVERYTHING.feature_names)
    assert {node.name for node in GRAPH.find("account")} == set(ACCOUNT.feature_names)
