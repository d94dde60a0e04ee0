"""Chart: a matplotlib figure as a part of a page, right in light, in dark and in print."""

import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from lightning_ft.extras import require
from lightning_ft.report.shown import plain

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# colours that no chart uses otherwise, and the page's variables that take their places
INK, FAINT, GRID, FIRST, SECOND, THIRD = "#010203", "#020304", "#030405", "#040506", "#050607", "#060708"
VARIABLES = {INK: "ink", FAINT: "faint", GRID: "grid", FIRST: "first", SECOND: "second", THIRD: "third"}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": GRID,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, what it shows in words, and its numbers.

    Attributes:
        svg: The picture: an ``svg`` element with a title and a description.
        title: Its title.
        description: What it shows, in a sentence or two.
        columns: Names of the columns of its numbers.
        rows: Its numbers, as text.
    """

    svg: str
    title: str
    description: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


class Canvas:
    """A figure that becomes a chart when it is drawn.

    Attributes:
        axes: Its axes, as matplotlib has them.
        figure: The figure.
    """

    numbers = itertools.count(1)

    def __init__(self, figure: Any, axes: Any) -> None:
        self.figure = figure
        self.axes = axes

    def chart(
        self,
        title: str,
        description: str,
        columns: Sequence[str] = (),
        rows: Sequence[Sequence[Any]] = (),
    ) -> Chart:
        """Draw it.

        Args:
            title: Its title.
            description: What it shows, in words.
            columns: Names of the columns of its numbers.
            rows: Its numbers.
        """
        stream = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self.figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
        svg = inline(stream.getvalue(), f"chart{next(self.numbers)}", title, description)
        table = tuple(tuple(str(cell) for cell in row) for row in rows)
        return Chart(svg, title, description, tuple(columns), table)


@contextmanager
def canvas(width: float = 4.8, height: float = 2.9) -> Iterator[Canvas]:
    """Give a figure in the page's style.

    Args:
        width: Inches; the page shows it as wide as it can.
        height: Inches.
    """
    matplotlib: Any = require("matplotlib", extra="report", needed_by="lightning-ft report")
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield Canvas(figure, figure.add_subplot())


def inline(svg: str, name: str, title: str, description: str) -> str:
    """Turn matplotlib's document into an element of a page.

    Names in it are made unlike those of other charts, colours become variables of the page, and it gets a text
    alternative.

    Args:
        svg: The document.
        name: What its names begin with.
        title: Its title.
        description: What it shows, in words.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)
    referred = {f"{{{XLINK}}}href", "clip-path"}
    for element in root.iter():
        if "id" in element.attrib:
            element.attrib["id"] = f"{name}-{element.attrib['id']}"
        for key in referred & element.attrib.keys():
            element.attrib[key] = element.attrib[key].replace("#", f"#{name}-", 1)
        if style := element.attrib.get("style"):
            for colour, variable in VARIABLES.items():
                style = style.replace(colour, f"var(--{variable})")
            element.attrib["style"] = style
    # without a size of its own it is as wide as the page lets it be
    root.attrib.pop("width", None)
    root.attrib.pop("height", None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-description"}
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        child = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{'title' if tag == 'title' else 'description'}"})
        child.text = plain(text, 600)
        root.insert(position, child)
    for style in [child for child in root.iter(f"{{{SVG}}}defs") if child.find(f"{{{SVG}}}style") is not None]:
        style.remove(style.find(f"{{{SVG}}}style"))  # pyright: ignore[reportArgumentType]
    return ElementTree.tostring(root, encoding="unicode")
