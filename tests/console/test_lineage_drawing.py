import itertools
import re

import pytest

from vitok.console.lineage_drawing import Picture, draw
from vitok.features.described import SetVersion, Use
from vitok.features.lineage import Edge, Lineage, Node
from vitok.systems.fraud.features import FEATURES

DECLARED = SetVersion.of(FEATURES, "fraud")
WHOLE = Lineage.of(
    [DECLARED],
    uses=[Use(model=f"fraud/{n}", features=DECLARED) for n in (1, 2)],
    logs={"fraud decisions": ["fraud/1", "fraud/2"]},
    experiments={"canary fraud/2 beside fraud/1": ["fraud/2", "fraud/1"]},
)
GRAPHS = (WHOLE, WHOLE.by_view(), WHOLE.around(*WHOLE.find("customer")), WHOLE.around("fraud/1"))


def numbers(path: str) -> list[float]:
    return [float(one) for one in re.findall(r"-?\d+(?:\.\d+)?", path)]


@pytest.mark.parametrize("graph", GRAPHS)
def test_nodes_do_not_overlap_and_lie_within(graph: Lineage) -> None:
    picture = draw(graph, title="Lineage")
    assert {box.title for box in picture.boxes} == {str(node) for node in graph.nodes}
    assert len(picture.boxes) == len(graph.nodes)
    for box in picture.boxes:
        assert 0 <= box.x <= box.x + box.width <= picture.width + 0.1
        assert 0 <= box.y <= box.y + 24 <= picture.height
    for one, other in itertools.combinations(picture.boxes, 2):
        apart = one.x + one.width <= other.x or other.x + other.width <= one.x
        assert apart or abs(one.y - other.y) >= 24


@pytest.mark.parametrize("graph", GRAPHS)
def test_edges_lead_from_left_to_right(graph: Lineage) -> None:
    picture = draw(graph, title="Lineage")
    for curve in picture.curves:
        assert re.fullmatch(r"M[\d. ]+C[-\d. ]+(H[\d.]+)?", curve.path)
        x = numbers(curve.path)
        assert x[0] < x[6]
        assert min(x) >= 0
    rights = {round(box.x + box.width, 1) for box in picture.boxes}
    lefts = {box.x for box in picture.boxes}
    starts = {numbers(curve.path)[0] for curve in picture.curves}
    assert all(any(abs(start - right) < 0.11 for right in rights) for start in starts)
    ends = {numbers(curve.path)[6] for curve in picture.curves}
    assert all(any(abs(end - left) < 0.11 for left in lefts) for end in ends)


def test_layers_follow_the_flow() -> None:
    picture = draw(WHOLE.by_view(), title="Lineage")
    at = {box.label: box.x for box in picture.boxes}
    assert at["transactions"] < at["customer"] < at["functions"] < at["fraud/1"] < at["fraud decisions"]
    assert at["fraud/1"] == at["fraud/2"]


def test_order_lowers_crossings() -> None:
    # Two pairs that cross in the order in which they are given.
    a, b = Node("source", "a"), Node("source", "b")
    c, d = Node("view", "c"), Node("view", "d")
    picture = draw(Lineage(nodes=(a, b, c, d), edges=(Edge(a, d), Edge(b, c))), title="Lineage")
    y = {box.label: box.y for box in picture.boxes}
    assert (y["a"] < y["b"]) == (y["d"] < y["c"])


def test_narrow_picture_lists_every_node_once() -> None:
    picture = draw(WHOLE, title="Lineage")
    assert len(picture.lines) == len(WHOLE.nodes)
    assert sorted({box.y for box in picture.lines}) == [26 * place for place in range(len(WHOLE.nodes))]
    assert picture.narrow_height == 26 * len(WHOLE.nodes)
    assert len(picture.arcs) == len(WHOLE.edges)
    for arc in picture.arcs:
        x0, _, handle = numbers(arc.path)[:3]
        # A Bezier curve of these handles reaches three quarters of the way to them.
        assert 0 <= x0 - 0.75 * (x0 - handle) < x0


def test_words_tell_the_same() -> None:
    picture = draw(WHOLE.by_view(), title="Lineage")
    told = {one.name: one for one in picture.tellings}
    assert told["view terminal_labels"].made_of == ("labels",)
    assert set(told["model fraud/1"].goes_into) == {"fraud decisions", "canary fraud/2 beside fraud/1"}


def test_long_names_are_cut_and_told_in_full() -> None:
    name = "a_very_long_name_of_a_feature_that_no_box_would_hold_30d"
    picture = draw(Lineage(nodes=(Node("view", name),), edges=()), title="Lineage")
    (box,) = picture.boxes
    assert box.label.endswith("…")
    assert box.title == f"view {name}"


def test_links_and_tones() -> None:
    picture = draw(
        WHOLE.by_view(), title="Lineage", link=lambda node: f"/{node.name}", tones={"fraud/1": "model production"}
    )
    box = next(one for one in picture.boxes if one.label == "fraud/1")
    assert (box.link, box.tone) == ("/fraud/1", "model production")


def test_nothing_is_drawn_of_nothing() -> None:
    picture = draw(Lineage(nodes=(), edges=()), title="Lineage")
    assert isinstance(picture, Picture)
    assert picture.boxes == picture.curves == picture.lines == picture.arcs == ()
    assert (picture.width, picture.height) == (0.0, 0.0)
