"""Series and version graphs as coordinates that a template draws as SVG. Pure functions, no HTML, no colours."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

Point = tuple[float, float]

PLOT_WIDTH, PLOT_HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
MAX_POINTS = 400

WHISKER_WIDTH, WHISKER_MARGIN = 220, 6

NODE_WIDTH, NODE_HEIGHT = 160, 46
COLUMN_GAP, ROW_GAP, MARGIN = 56, 26, 22


class Measured(NamedTuple):
    """A point with the interval in which its truth lies."""

    x: float
    y: float
    low: float
    high: float


Series = Mapping[str, Sequence[Point | Measured]]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its position in SVG units and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One series: SVG path data, the text of its last value, and its rank (0 = accent, 1 = dashed)."""

    name: str
    path: str
    last: str
    end: Point
    rank: int
    band: str = ""
    """SVG path data around the intervals of the points that have one; empty without any."""
    is_joined: bool = True
    """Whether the path is a line; else it is a dot for each point."""


@dataclass(frozen=True)
class Plot:
    """A line plot in SVG units, ready to draw."""

    name: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    width: int = PLOT_WIDTH
    height: int = PLOT_HEIGHT
    left: int = LEFT
    right: int = PLOT_WIDTH - RIGHT
    top: int = TOP
    bottom: int = PLOT_HEIGHT - BOTTOM


@dataclass(frozen=True)
class Whisker:
    """A value with its interval on an axis that a table's rows share, in SVG units."""

    at: float
    low: float
    high: float
    expected: float | None
    width: int = WHISKER_WIDTH


@dataclass(frozen=True)
class Node:
    """A box of a lineage drawing. `lane` 0 is drawn above lane 1; `key` is what edges name."""

    key: str
    title: str
    note: str = ""
    href: str = ""
    lane: int = 0
    is_live: bool = False
    is_here: bool = False
    x: float = 0
    y: float = 0


@dataclass(frozen=True)
class Lineage:
    """Placed nodes, and edges as SVG path data, in a drawing of `width` x `height` units."""

    nodes: list[Node]
    edges: list[str] = field(default_factory=list)
    width: int = 0
    height: int = 0
    node_width: int = NODE_WIDTH
    node_height: int = NODE_HEIGHT


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round values (1, 2, 2.5 or 5 times a power of ten) that lie within low..high."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def short_number(value: float) -> str:
    """A number in at most five or six characters: `0.613`, `12.5`, `1,200`, `3e-05`."""
    size = abs(value)
    if value == 0:
        return "0"
    if size < 1e-3 or size >= 1e6:
        return f"{value:.2g}".replace("-", "−", 1) if value < 0 else f"{value:.2g}"
    text = f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")


def line_plot(name: str, series: Series) -> Plot | None:
    """A plot of one or more series of points on common axes; None when no series has a finite point.

    Points are joined where x rises from one to the next. Where it goes back, as the KL of noisy batches does, a line
    would be a scribble: each point is a dot. The last one is where a series ends.
    """
    finite = {key: _finite(points) for key, points in series.items()}
    finite = {key: points for key, points in finite.items() if points}
    if not finite:
        return None
    everything = [point for points in finite.values() for point in points]
    x_low, x_high = _span([point[0] for point in everything])
    y_low, y_high = _span([value for point in everything for value in point[1:]], margin=0.06)
    # Between two steps there is none; the root of a KL may lie anywhere.
    is_split = not all(point[0].is_integer() for point in everything)

    def place(x: float, y: float) -> Point:
        across = LEFT + (x - x_low) / (x_high - x_low) * (PLOT_WIDTH - LEFT - RIGHT)
        up = PLOT_HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (PLOT_HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(up, 1)

    return Plot(
        name=name,
        lines=[line(key, thin(points), rank, place) for rank, (key, points) in enumerate(finite.items())],
        x_ticks=[Tick(place(x, y_low)[0], short_number(x)) for x in ticks(x_low, x_high) if is_split or x.is_integer()],
        y_ticks=[Tick(place(x_low, y)[1], short_number(y)) for y in ticks(y_low, y_high)],
    )


def line(name: str, points: Sequence[Point | Measured], rank: int, place: Callable[[float, float], Point]) -> Line:
    """One series, placed."""
    placed = [place(point[0], point[1]) for point in points]
    known = [point for point in points if isinstance(point, Measured)]
    band = [place(point.x, point.low) for point in known] + [place(point.x, point.high) for point in reversed(known)]
    is_joined = all(before[0] <= after[0] for before, after in pairwise(points))
    drawn = path(placed) if is_joined else "".join(path([point]) for point in placed)
    return Line(
        name, drawn, value_text(points[-1]), placed[-1], rank, path(band) + "Z" if band else "", is_joined=is_joined
    )


def value_text(point: Point | Measured) -> str:
    """The value of a point, and its interval where it has one: `0.7 (0.65–0.75)`."""
    text = short_number(point[1])
    return f"{text} ({short_number(point.low)}–{short_number(point.high)})" if isinstance(point, Measured) else text


def metric_plots(metrics: Mapping[str, Sequence[Point | Measured]]) -> list[Plot]:
    """One plot a metric name, `train` and `validation` of the same quantity together; by family, in the order given."""
    groups: dict[str, dict[str, Sequence[Point | Measured]]] = {}
    for name, points in metrics.items():
        stem, _, leaf = name.rpartition("/")
        groups.setdefault(stem if leaf in ("train", "validation") else name, {})[name] = points
    plots = [line_plot(name, series) for name, series in groups.items()]
    return [plot for plot in plots if plot is not None]


def whiskers(rows: Sequence[tuple[float, float, float, float | None]]) -> list[Whisker]:
    """Rows of (value, low, high, expected or None) on one axis that just holds them all."""
    known = [value for row in rows for value in row if value is not None]
    if not known:
        return []
    low, high = _span(known, margin=0.04)

    def place(value: float) -> float:
        return round(WHISKER_MARGIN + (value - low) / (high - low) * (WHISKER_WIDTH - 2 * WHISKER_MARGIN), 1)

    return [
        Whisker(place(value), place(least), place(most), None if expected is None else place(expected))
        for value, least, most, expected in rows
    ]


def path(points: Sequence[Point]) -> str:
    """SVG path data through `points`; a single point becomes a dot (a line of no length with round ends)."""
    if len(points) == 1:
        points = [points[0], points[0]]
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def thin(points: Sequence[Point | Measured], limit: int = MAX_POINTS) -> list[Point | Measured]:
    """At most `limit` of the points, evenly taken, the last one always among them."""
    if len(points) <= limit:
        return list(points)
    step = (len(points) - 1) / (limit - 1)
    return [points[round(index * step)] for index in range(limit)]


def _finite(points: Iterable[Point | Measured]) -> list[Point | Measured]:
    known = [point for point in points if all(math.isfinite(value) for value in point)]
    return [
        Measured(*map(float, point)) if isinstance(point, Measured) else (float(point[0]), float(point[1]))
        for point in known
    ]


def _span(values: Sequence[float], margin: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    return low - (high - low) * margin, high + (high - low) * margin


def lineage_layout(nodes: Sequence[Node], edges: Iterable[tuple[str, str]]) -> Lineage:
    """Places versions from left to right: a column right of all its parents', a band of rows a lane.

    `edges` are (parent key, child key); those that name an unknown node are left out. Cycles cannot happen in a
    lineage and raise ValueError.
    """
    known = {node.key for node in nodes}
    pairs = [(parent, child) for parent, child in edges if parent in known and child in known]
    columns = _columns([node.key for node in nodes], pairs)
    rows = _rows(nodes, columns)
    placed = [
        Node(
            **{
                **node.__dict__,
                "x": MARGIN + columns[node.key] * (NODE_WIDTH + COLUMN_GAP),
                "y": MARGIN + rows[node.key] * (NODE_HEIGHT + ROW_GAP),
            }
        )
        for node in nodes
    ]
    at = {node.key: node for node in placed}
    return Lineage(
        nodes=placed,
        edges=[_edge(at[parent], at[child]) for parent, child in pairs],
        width=round(max((node.x for node in placed), default=0) + NODE_WIDTH + MARGIN),
        height=round(max((node.y for node in placed), default=0) + NODE_HEIGHT + MARGIN),
    )


def _columns(keys: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The length of the longest way from a root to each node."""
    columns = dict.fromkeys(keys, 0)
    for _round in range(len(keys) + 1):
        changed = False
        for parent, child in pairs:
            if columns[child] < columns[parent] + 1:
                columns[child] = columns[parent] + 1
                changed = True
        if not changed:
            return columns
    raise ValueError("A version can't be its own ancestor.")


def _rows(nodes: Sequence[Node], columns: Mapping[str, int]) -> dict[str, int]:
    """The first free row of each node's column within its lane; a lane starts below the one above."""
    rows: dict[str, int] = {}
    first_row = 0
    for lane in sorted({node.lane for node in nodes}):
        taken: dict[int, int] = {}
        for node in nodes:
            if node.lane == lane:
                rows[node.key] = first_row + taken.get(columns[node.key], 0)
                taken[columns[node.key]] = taken.get(columns[node.key], 0) + 1
        first_row += max(taken.values())
    return rows


def _edge(parent: Node, child: Node) -> str:
    """A curve to the next column; a longer way runs between two rows, so that it never passes behind another box."""
    x1, y1 = parent.x + NODE_WIDTH, parent.y + NODE_HEIGHT / 2
    x2, y2 = child.x, child.y + NODE_HEIGHT / 2
    if x2 - x1 <= COLUMN_GAP:
        return f"M{x1:g} {y1:g}{_curve(x1, y1, x2, y2)}"
    below = child.y > parent.y
    channel = parent.y + NODE_HEIGHT + ROW_GAP / 2 if below else parent.y - ROW_GAP / 2
    first, last = x1 + COLUMN_GAP, x2 - COLUMN_GAP
    return f"M{x1:g} {y1:g}{_curve(x1, y1, first, channel)}H{last:g}{_curve(last, channel, x2, y2)}"


def _curve(x1: float, y1: float, x2: float, y2: float) -> str:
    middle = (x1 + x2) / 2
    return f"C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}"
