"""What comes from what: source columns, features, model versions, and the logs and experiments they decide in."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vitok.errors import InvalidInput, NotFound
from vitok.features.described import SetVersion, Use, features_of
from vitok.features.views import Embedding

# From where facts come to where they act; an edge never leads back.
KINDS = ("source", "column", "index", "view", "feature", "model", "log", "experiment")
REQUEST = "request"


@dataclasses.dataclass(frozen=True, order=True)
class Node:
    """One thing in the graph.

    Attributes:
        kind: One of `KINDS`.
        name: What it is called, such as `"transactions.amount"`.
        version: Tells apart two definitions of one name; "" where there is one.
        group: What it belongs to: the source of a column, the view of a feature.
    """

    kind: str
    name: str
    version: str = ""
    group: str = dataclasses.field(default="", compare=False)

    @property
    def id(self) -> str:
        """Kind, name and version in one word."""
        return f"{self.kind}:{self.name}" + (f"@{self.version}" if self.version else "")

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclasses.dataclass(frozen=True, order=True)
class Edge:
    """What flows from one node to another.

    Attributes:
        start: Where it comes from.
        end: What is made of it.
        role: `"value"` where its values go in; `"row"` where it says which rows count, and when.
    """

    start: Node
    end: Node
    role: str = "value"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lineage:
    """The graph, as it was when it was made.

    Attributes:
        nodes: In the order of `KINDS`, within a kind as they were declared.
        edges: Each once.

    Example:
        >>> from vitok.features import Count, Entity, FeatureSet, Source, Sum, View
        >>> card, paid = Entity("card", "card_id"), Source("payments", "payment_id")
        >>> view = View(name="card", entity=card, source=paid, aggregations=(Count("1h"), Sum("amount", "1h")))
        >>> features = SetVersion.of(FeatureSet(request=("amount",), views=(view,)))
        >>> graph = Lineage.of(
        ...     [features], uses=[Use(model="fraud/1", features=features)], logs={"fraud decisions": ["fraud/1"]}
        ... )
        >>> graph.impact("payments", ["amount"])
        ('feature card_amount_sum_1h', 'model fraud/1', 'log fraud decisions')
        >>> [node.name for node in graph.upstream("fraud/1") if node.kind == "column"]
        ['request.amount', 'payments.card_id', 'payments.event_time', 'payments.payment_id', 'payments.amount']
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    @classmethod
    def of(
        cls,
        sets: Iterable[SetVersion],
        *,
        uses: Iterable[Use] = (),
        logs: Mapping[str, Sequence[str]] | None = None,
        experiments: Mapping[str, Sequence[str]] | None = None,
        request: str = REQUEST,
    ) -> "Lineage":
        """Draws the graph together.

        Args:
            sets: The definitions as they are now.
            uses: Model versions with the definitions they were made with.
            logs: Decision log to the model versions that decide into it.
            experiments: Experiment, such as a canary, to the model versions in it.
            request: What the source of request columns is called: the name of a source where requests are its rows.
        """
        graph = _Graph()
        for features in sets:
            graph.add_set(features, request)
        for use in uses:
            nodes = graph.add_set(use.features, request)
            model = graph.node("model", use.model, group=use.features.name)
            for name in use.features.names:
                graph.edge(nodes[name], model)
        for kind, named in (("log", logs), ("experiment", experiments)):
            for name, models in (named or {}).items():
                node = graph.node(kind, name)
                for model_name in models:
                    graph.edge(graph.node("model", model_name, group=model_name.rpartition("/")[0]), node)
        order = {kind: place for place, kind in enumerate(KINDS)}
        nodes_in_order = sorted(graph.nodes.values(), key=lambda node: order[node.kind])
        return cls(nodes=tuple(nodes_in_order), edges=tuple(graph.edges))

    def node(self, name: str) -> Node:
        """Finds a node by its id, or by its name where that is one node's alone.

        Raises:
            NotFound: If there is none.
            InvalidInput: If several have the name.
        """
        found = [node for node in self.nodes if name in (node.id, node.name)]
        if not found:
            close = [node.name for node in self.nodes if name.lower() in node.name.lower()]
            raise NotFound("node of the lineage", name, close or [node.name for node in self.nodes])
        if len(found) > 1:
            raise InvalidInput("node", name, f"name one of {', '.join(node.id for node in found)}")
        return found[0]

    def find(self, name: str) -> tuple[Node, ...]:
        """Returns every node of a name or id, else every node of the view, source or model of that name.

        Raises:
            NotFound: If there is none.
        """
        found = tuple(node for node in self.nodes if name in (node.id, node.name))
        found = found or tuple(node for node in self.nodes if node.group == name)
        return found or (self.node(name),)

    @functools.cached_property
    def _after(self) -> dict[Node, list[Node]]:
        return _neighbours((edge.start, edge.end) for edge in self.edges)

    @functools.cached_property
    def _before(self) -> dict[Node, list[Node]]:
        return _neighbours((edge.end, edge.start) for edge in self.edges)

    def downstream(self, *start: Node | str) -> tuple[Node, ...]:
        """Returns all that comes of some nodes, in the order of the graph.

        Raises:
            NotFound: If a name is unknown.
        """
        return self._reached(start, self._after)

    def upstream(self, *start: Node | str) -> tuple[Node, ...]:
        """Returns all that some nodes are made of, in the order of the graph.

        Raises:
            NotFound: If a name is unknown.
        """
        return self._reached(start, self._before)

    def _reached(self, start: Iterable[Node | str], steps: Mapping[Node, Sequence[Node]]) -> tuple[Node, ...]:
        begin = [node for item in start for node in ((item,) if isinstance(item, Node) else self.find(item))]
        seen, waiting = set(begin), list(begin)
        while waiting:
            for node in steps.get(waiting.pop(), ()):
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
        seen -= set(begin)
        return tuple(node for node in self.nodes if node in seen)

    def impact(self, source: str, columns: Iterable[str] = ()) -> tuple[str, ...]:
        """Names what stands on some columns of a source.

        Args:
            source: Name of the source.
            columns: Its columns; none for the whole source. A column that nothing reads has no impact.

        Returns:
            Features, models, logs and experiments, each as kind and name, in this order.
        """
        wanted = {f"{source}.{column}" for column in columns}
        begin = [
            node
            for node in self.nodes
            if node.kind in {"column", "index"} and (node.name in wanted or (not wanted and node.group == source))
        ]
        return tuple(dict.fromkeys(str(node) for node in self.downstream(*begin)))

    def columns(self, source: str) -> tuple[str, ...]:
        """Names the columns of a source that anything reads."""
        return tuple(
            node.name.removeprefix(f"{source}.")
            for node in self.nodes
            if node.kind == "column" and node.group == source
        )

    def around(self, *names: Node | str) -> "Lineage":
        """Returns the part of the graph that some nodes are made of and that comes of them."""
        begin = {node for item in names for node in ((item,) if isinstance(item, Node) else self.find(item))}
        kept = begin | set(self.upstream(*begin)) | set(self.downstream(*begin))
        return self._part(kept)

    def _part(self, kept: set[Node]) -> "Lineage":
        return Lineage(
            nodes=tuple(node for node in self.nodes if node in kept),
            edges=tuple(edge for edge in self.edges if edge.start in kept and edge.end in kept),
        )

    def by_view(self) -> "Lineage":
        """Returns the graph with sources in place of their columns and views in place of their features.

        Features of the request and functions go into `"request"` and `"functions"`.
        """
        stands: dict[Node, Node] = {}
        for node in self.nodes:
            if node.kind == "column":
                stands[node] = Node("source", node.group)
            elif node.kind == "feature":
                stands[node] = Node("view", node.group)
            else:
                stands[node] = node
        edges = {Edge(stands[edge.start], stands[edge.end]): None for edge in self.edges}
        kept = [edge for edge in edges if edge.start != edge.end]
        order = {kind: place for place, kind in enumerate(KINDS)}
        nodes = sorted(dict.fromkeys(stands[node] for node in self.nodes), key=lambda node: order[node.kind])
        return Lineage(nodes=tuple(nodes), edges=tuple(kept))

    def to_dict(self) -> dict[str, Any]:
        """Returns the graph as what JSON can hold."""
        return {
            "nodes": [{"id": node.id, **dataclasses.asdict(node)} for node in self.nodes],
            "edges": [{"from": edge.start.id, "to": edge.end.id, "role": edge.role} for edge in self.edges],
        }

    def __str__(self) -> str:
        if not self.nodes:
            return "no lineage: nothing is defined"
        lines = []
        for node in self.nodes:
            after = ", ".join(item.name for item in self._after.get(node, ()))
            if after or not self._before.get(node):
                lines.append(f"{node} -> {after or 'nothing'}")
        return "\n".join(lines)


def _neighbours(pairs: Iterable[tuple[Node, Node]]) -> dict[Node, list[Node]]:
    out: dict[Node, list[Node]] = {}
    for start, end in pairs:
        out.setdefault(start, []).append(end)
    return out


class _Graph:
    def __init__(self) -> None:
        self.nodes: dict[Node, Node] = {}
        self.edges: dict[Edge, None] = {}

    def node(self, kind: str, name: str, version: str = "", group: str = "") -> Node:
        node = Node(kind, name, version, group)
        return self.nodes.setdefault(node, node)

    def edge(self, start: Node, end: Node, role: str = "value") -> None:
        # A column whose values go in need not be told again as one that says which rows count.
        if role == "value" or Edge(start, end) not in self.edges:
            self.edges[Edge(start, end, role)] = None

    def add_set(self, features: SetVersion, request: str) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for name in features.request:
            found[name] = self.node("feature", name, group="request")
            self.edge(self.node("column", f"{request}.{name}", group=request), found[name])
        for view in features.views:
            kind = "index" if isinstance(view, Embedding) else "column"
            for one in features_of(view):
                node = found[one.name] = self.node("feature", one.name, one.fingerprint, view.name)
                if kind == "index":
                    self.edge(self.node("index", one.source, group=one.source), node)
                    continue
                for column in one.columns:
                    self.edge(self.node("column", f"{one.source}.{column}", group=one.source), node)
                for column in one.context:
                    self.edge(self.node("column", f"{one.source}.{column}", group=one.source), node, "row")
        for item in features.on_demand:
            node = self.node("feature", item.name, features.fingerprints[item.name], "functions")
            for name in item.inputs:
                start = found.get(name) or self.node("column", f"{request}.{name}", group=request)
                self.edge(start, node)
            found[item.name] = node
        return found
