"""What a chart is made of: places in a box of 100 by 100, which is stretched to where it is drawn."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """A rectangle of a chart.

    Attributes:
        x: Left edge, in [0, 100].
        y: Upper edge, in [0, 100].
        width: Width.
        height: Height.
        tone: How it is coloured, the name of a class.
        title: What it stands for, in words.
    """

    x: float
    y: float
    width: float
    height: float
    tone: str
    title: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart: pieces of points `x,y`, as SVG takes them; a gap in the values ends a piece."""

    pieces: tuple[str, ...]
    tone: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
    """An area of a chart: its corners `x,y`, as SVG takes them."""

    points: str
    tone: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dot:
    """A point of a chart, as large on every screen."""

    x: float
    y: float
    tone: str
    title: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """What is drawn.

    Attributes:
        title: What the chart shows, for those who hear the page.
        bands: Areas, which lie below all else.
        marks: Rectangles.
        lines: Lines.
        dots: Points, which lie above all else.
        y_labels: Labels of the vertical axis, from top to bottom, evenly spaced.
        x_labels: Labels of the horizontal axis, from left to right, evenly spaced.
    """

    title: str
    bands: tuple[Band, ...] = ()
    marks: tuple[Mark, ...] = ()
    lines: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()
    y_labels: tuple[str, ...] = ()
    x_labels: tuple[str, ...] = ()
