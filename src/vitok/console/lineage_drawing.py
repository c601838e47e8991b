"""The picture of a lineage, as plain numbers: layers from left to right, and arcs beside a list for narrow windows.

Layers are ordered so that edges cross little (Sugiyama, Tagawa and Toda, 1981: sweeps of barycentres, with an empty
place in each layer that an edge passes). Everything is laid out here; templates write it as SVG, no page needs a
script.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from vitok.features.lineage import Edge, Lineage, Node

ROW, HEIGHT, GAP = 32, 24, 60
_LETTER, _PAD = 8.0, 22
_PASS = 10
_SWEEPS = 6
_RAIL, _LINE = 84, 26
_NARROW = 352
_LONGEST = 38
_FIRST = {"source": 0, "column": 0, "index": 0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """A node of the picture.

    Attributes:
        x: Left edge.
        y: Upper edge.
        width: Width.
        label: What is written in it.
        tone: How it is coloured, the name of a class.
        link: Where it leads, or "".
        title: All of its name.
    """

    x: float
    y: float
    width: float
    label: str
    tone: str
    link: str
    title: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """An edge of the picture: the data of an SVG path, and the class of its colour."""

    path: str
    tone: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Telling:
    """A node in words: what it is made of and what comes of it."""

    name: str
    made_of: tuple[str, ...]
    goes_into: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A lineage drawn twice, and told once.

    Attributes:
        title: What it shows, for those who hear the page.
        width: Of the picture in layers.
        height: Of it.
        boxes: Its nodes.
        curves: Its edges.
        narrow_width: Of the picture with arcs.
        narrow_height: Of it.
        lines: Its nodes, one under another; the x of each is where its dot is.
        arcs: Its edges.
        tellings: The same in words.
    """

    title: str
    width: float
    height: float
    boxes: tuple[Box, ...]
    curves: tuple[Curve, ...]
    narrow_width: float
    narrow_height: float
    lines: tuple[Box, ...]
    arcs: tuple[Curve, ...]
    tellings: tuple[Telling, ...]


def draw(
    lineage: Lineage,
    *,
    title: str,
    link: Callable[[Node], str] = lambda _: "",
    tones: Mapping[str, str] | None = None,
) -> Picture:
    """Lays a lineage out.

    Args:
        lineage: The graph.
        title: What it shows.
        link: Address of the page about a node; "" for none.
        tones: Class of a node by its name; its kind by default.

    Example:
        >>> a, b = Node("source", "payments"), Node("view", "card")
        >>> picture = draw(Lineage(nodes=(a, b), edges=(Edge(a, b),)), title="Lineage")
        >>> [(box.label, box.x, box.y) for box in picture.boxes], len(picture.curves)
        ([('payments', 0.0, 4.0), ('card', 146.0, 4.0)], 1)
    """
    layers = _layers(lineage)
    chains = _chains(lineage, layers)
    order = _ordered(lineage, layers, chains)
    tones = tones or {}

    def box(node: Node, x: float, y: float, width: float) -> Box:
        label = node.name if len(node.name) <= _LONGEST else node.name[: _LONGEST - 1] + "…"
        tone = tones.get(node.name, node.kind)
        return Box(x=x, y=y, width=width, label=label, tone=tone, link=link(node), title=str(node))

    widths = [
        max((_PAD + _LETTER * min(len(one.name), _LONGEST) for one in layer if isinstance(one, Node)), default=_PAD)
        for layer in order
    ]
    lefts = [sum(widths[:place], 0.0) + GAP * place for place in range(len(widths))]
    tall = max((_tall(layer) for layer in order), default=0.0)
    middle: dict[Place, float] = {}
    boxes = []
    for place, layer in enumerate(order):
        y = (tall - _tall(layer)) / 2
        for one in layer:
            step = ROW if isinstance(one, Node) else _PASS
            middle[one] = y + step / 2
            if isinstance(one, Node):
                boxes.append(
                    box(one, round(lefts[place], 1), round(y + (ROW - HEIGHT) / 2, 1), round(widths[place], 1))
                )
            y += step
    curves = _segments(chains, layers, middle, lefts, widths)
    lines, arcs = _arcs(lineage, order, box)
    return Picture(
        title=title,
        width=round(lefts[-1] + widths[-1], 1) if lefts else 0.0,
        height=tall,
        boxes=tuple(boxes),
        curves=curves,
        narrow_width=_NARROW,
        narrow_height=_LINE * len(lines),
        lines=lines,
        arcs=arcs,
        tellings=_tellings(lineage),
    )


@dataclasses.dataclass(frozen=True)
class _Passing:
    # An empty place in a layer that the edges of a node pass.
    node: Node
    layer: int


Place = Node | _Passing


def _segments(
    chains: Mapping[Edge, tuple["_Passing", ...]],
    layers: Mapping[Node, int],
    middle: Mapping["Place", float],
    lefts: Sequence[float],
    widths: Sequence[float],
) -> tuple[Curve, ...]:
    # Edges of a node share their way through the layers that they pass, and it is drawn once.
    drawn: dict[str, str] = {}
    for edge, chain in chains.items():
        stops: list[Place] = [edge.start, *chain, edge.end]
        for step, (one, other) in enumerate(itertools.pairwise(stops), start=layers[edge.start]):
            x0, x1 = lefts[step] + widths[step], lefts[step + 1]
            y0, y1, bend = middle[one], middle[other], (x1 - x0) / 2
            path = f"M{x0:.1f} {y0:.1f}C{x0 + bend:.1f} {y0:.1f} {x1 - bend:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
            if isinstance(other, _Passing):
                path += f"H{x1 + widths[step + 1]:.1f}"
            drawn[path] = edge.role if drawn.get(path, "row") == "row" else "value"
    return tuple(Curve(path=path, tone=tone) for path, tone in drawn.items())


def _tall(layer: Sequence[Place]) -> float:
    return float(sum(ROW if isinstance(one, Node) else _PASS for one in layer))


def _layers(lineage: Lineage) -> dict[Node, int]:
    found: dict[Node, int] = {}
    before: dict[Node, list[Node]] = {}
    for edge in lineage.edges:
        before.setdefault(edge.end, []).append(edge.start)

    def depth(node: Node) -> int:
        if node not in found:
            found[node] = 0 if node.kind in _FIRST else 1
            found[node] = max([found[node], *(depth(one) + 1 for one in before.get(node, ()))])
        return found[node]

    made = [node for node in lineage.nodes if node.kind not in {"model", "log", "experiment"}]
    models = 1 + max((depth(node) for node in made), default=-1)
    for node in lineage.nodes:
        if node.kind == "model":
            found[node] = models
        elif node.kind in {"log", "experiment"}:
            found[node] = models + 1
    used = {layer: place for place, layer in enumerate(sorted(set(found.values())))}
    return {node: used[layer] for node, layer in found.items()}


def _chains(lineage: Lineage, layers: Mapping[Node, int]) -> dict[Edge, tuple[_Passing, ...]]:
    return {
        edge: tuple(_Passing(edge.start, layer) for layer in range(layers[edge.start] + 1, layers[edge.end]))
        for edge in lineage.edges
        if layers[edge.start] < layers[edge.end]
    }


def _ordered(
    lineage: Lineage, layers: Mapping[Node, int], chains: Mapping[Edge, tuple[_Passing, ...]]
) -> list[list[Place]]:
    order: list[dict[Place, None]] = [{} for _ in range(max(layers.values(), default=-1) + 1)]
    for node in lineage.nodes:
        order[layers[node]][node] = None
    left: dict[Place, set[Place]] = {}
    right: dict[Place, set[Place]] = {}
    for edge, chain in chains.items():
        stops: list[Place] = [edge.start, *chain, edge.end]
        for passing in chain:
            order[passing.layer][passing] = None
        for one, other in itertools.pairwise(stops):
            right.setdefault(one, set()).add(other)
            left.setdefault(other, set()).add(one)
    rows = [list(layer) for layer in order]
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        near = left if forward else right
        span = range(1, len(rows)) if forward else range(len(rows) - 2, -1, -1)
        for place in span:
            fixed = rows[place - 1 if forward else place + 1]
            at = {one: index / max(1, len(fixed) - 1) for index, one in enumerate(fixed)}
            here = {one: index / max(1, len(rows[place]) - 1) for index, one in enumerate(rows[place])}

            def weight(one: Place, at: Mapping[Place, float] = at, here: Mapping[Place, float] = here) -> float:
                beside = [at[other] for other in near.get(one, ()) if other in at]  # noqa: B023
                return sum(beside) / len(beside) if beside else here[one]

            rows[place].sort(key=weight)
    return rows


def _arcs(
    lineage: Lineage, order: Sequence[Sequence[Place]], box: Callable[[Node, float, float, float], Box]
) -> tuple[tuple[Box, ...], tuple[Curve, ...]]:
    nodes = [one for layer in order for one in layer if isinstance(one, Node)]
    at = {node: index for index, node in enumerate(nodes)}
    longest = max((abs(at[edge.end] - at[edge.start]) for edge in lineage.edges), default=1)
    lines = tuple(box(node, _RAIL, index * _LINE, _NARROW - _RAIL) for index, node in enumerate(nodes))
    arcs = []
    for edge in lineage.edges:
        y0, y1 = ((at[node] + 0.5) * _LINE for node in (edge.start, edge.end))
        # The further apart, the further out; a Bezier curve reaches three quarters of the way to its handles.
        out = _RAIL - (14 + (_RAIL - 20) * 4 / 3 * abs(at[edge.end] - at[edge.start]) / longest)
        path = f"M{_RAIL} {y0:.1f}C{out:.1f} {y0:.1f} {out:.1f} {y1:.1f} {_RAIL} {y1:.1f}"
        arcs.append(Curve(path=path, tone=edge.role))
    return lines, tuple(arcs)


def _tellings(lineage: Lineage) -> tuple[Telling, ...]:
    def named(nodes: Iterable[Node]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(node.name for node in nodes))

    return tuple(
        Telling(
            name=str(node),
            made_of=named(edge.start for edge in lineage.edges if edge.end == node),
            goes_into=named(edge.end for edge in lineage.edges if edge.start == node),
        )
        for node in lineage.nodes
    )
