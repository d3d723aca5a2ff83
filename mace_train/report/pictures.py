"""Figures for a page: drawn twice, for light and dark, and embedded as data URIs."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

DPI = 200
WIDTH = 4.6  # inches; on a phone 9 points of such a figure are 10 pixels


@dataclass(frozen=True)
class Theme:
    """Colours of a figure."""

    background: str
    text: str
    faint: str
    series: tuple[str, ...]
    density: tuple[str, ...]  # few to many

    @property
    def cmap(self) -> Colormap:
        """Few to many, as a colour map."""
        return LinearSegmentedColormap.from_list("density", self.density)


LIGHT = Theme(
    "#ffffff",
    "#24292f",
    "#e4e7eb",
    ("#2864dc", "#d9622b", "#1f9d73", "#8a55d7", "#c93a63", "#8a8f98", "#b58a00", "#118ab2"),
    ("#b9d0fb", "#5a8df0", "#2350b8", "#0b1f52"),
)
DARK = Theme(
    "#171b21",
    "#d8dde3",
    "#2b323b",
    ("#7aa9ff", "#ff9a62", "#4fd1a1", "#bd97ff", "#ff7d9f", "#9aa3ad", "#e3bd4a", "#56c5ea"),
    ("#2d4a80", "#4f86ee", "#a5c6ff", "#ffffff"),
)

Draw = Callable[[Axes, Theme], None]


@dataclass(frozen=True)
class Picture:
    """A figure of one panel, drawn; ``name`` is its file's, ``caption`` says what it shows."""

    name: str
    title: str
    caption: str
    light: bytes
    dark: bytes
    height: float  # over width

    @property
    def light_uri(self) -> str:
        """The figure for a light page."""
        return _uri(self.light)

    @property
    def dark_uri(self) -> str:
        """The figure for a dark page."""
        return _uri(self.dark)


def picture(name: str, title: str, caption: str, draw: Draw, height: float = 0.76) -> Picture:
    """Draw a figure in both themes."""
    light, positions = _drawn(draw, LIGHT, height)
    dark, _ = _drawn(draw, DARK, height, positions)
    return Picture(name, title, caption, light, dark, height)


def _drawn(
    draw: Draw, theme: Theme, height: float, positions: list[Bbox] | None = None
) -> tuple[bytes, list[Bbox]]:
    """The figure as PNG, and the positions of its axes (to lay them out once)."""
    with matplotlib.rc_context(_style(theme)):
        figure = Figure(figsize=(WIDTH, WIDTH * height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        draw(axes, theme)
        if positions is None:
            figure.draw_without_rendering()
            positions = [axis.get_position() for axis in figure.axes]
        figure.set_layout_engine("none")  # or savefig lays it out twice more
        for axis, position in zip(figure.axes, positions, strict=True):
            axis.set_position(position)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=DPI, format="png")
    return buffer.getvalue(), positions


def _style(theme: Theme) -> dict[str, object]:
    return {
        "figure.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "text.color": theme.text,
        "axes.labelcolor": theme.text,
        "axes.edgecolor": theme.text,
        "xtick.color": theme.text,
        "ytick.color": theme.text,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.grid": True,
        "grid.color": theme.faint,
        "grid.linewidth": 0.7,
        "font.size": 10.0,
        "axes.labelsize": 10.0,
        "xtick.labelsize": 9.0,
        "ytick.labelsize": 9.0,
        "legend.fontsize": 9.0,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "axes.formatter.limits": (-4, 5),
    }


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
