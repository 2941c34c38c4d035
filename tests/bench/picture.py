"""Draws bars: one panel each load, one bar each contestant. Writes SVG by itself, no library."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from figures import Figures, number

PANEL_WIDTH = 440
PANEL_GAP = 24
COLUMNS = 2
BAR_HEIGHT = 16
BAR_GAP = 5
TITLE_HEIGHT = 28
NAME_WIDTH = 150
FIGURE_WIDTH = 60
OURS, OTHERS, INK, WHISKER = "#2b6cb0", "#a0aec0", "#1a202c", "#4a5568"


def draw(
    title: str,
    figures: Figures,
    panels: Sequence[tuple[str, str]],
    contestants: Sequence[str],
    ours: Sequence[str],
) -> str:
    """The picture as text. `panels` are pairs of load and metric; a bar is the median, the line on
    it the range; bars of `ours` have another colour. Panels without a figure are left out."""
    panels = [it for it in panels if any(figures.summary(name, *it) for name in contestants)]
    panel_height = TITLE_HEIGHT + len(contestants) * (BAR_HEIGHT + BAR_GAP) + PANEL_GAP
    rows = (len(panels) + COLUMNS - 1) // COLUMNS
    width = COLUMNS * (PANEL_WIDTH + PANEL_GAP) + PANEL_GAP
    height = 2 * TITLE_HEIGHT + rows * panel_height
    svg = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
            "font-family": "sans-serif",
            "font-size": "12",
        },
    )
    _add(svg, "rect", width=width, height=height, fill="white")
    _write(svg, PANEL_GAP, TITLE_HEIGHT, title, size=16)
    for index, (load, metric) in enumerate(panels):
        x = PANEL_GAP + index % COLUMNS * (PANEL_WIDTH + PANEL_GAP)
        y = 2 * TITLE_HEIGHT + index // COLUMNS * panel_height
        _write(svg, x, y, f"{load}: {metric}", size=13)
        _draw_panel(svg, x, y + 8, figures, (load, metric), contestants, ours)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def _draw_panel(
    svg: ElementTree.Element,
    x: float,
    y: float,
    figures: Figures,
    what: tuple[str, str],
    contestants: Sequence[str],
    ours: Sequence[str],
) -> None:
    summaries = [(name, figures.summary(name, *what)) for name in contestants]
    longest = max((it.most for _, it in summaries if it), default=0) or 1
    scale = (PANEL_WIDTH - NAME_WIDTH - FIGURE_WIDTH) / longest
    left = x + NAME_WIDTH
    for name, summary in summaries:
        middle = y + BAR_HEIGHT / 2
        _write(svg, left - 6, middle + 4, name, anchor="end")
        if summary is None:
            _write(svg, left + 4, middle + 4, "–")
        else:
            length = summary.median * scale
            colour = OURS if name in ours else OTHERS
            _add(svg, "rect", x=left, y=y, width=length, height=BAR_HEIGHT, fill=colour)
            ends = {"x1": left + summary.least * scale, "x2": left + summary.most * scale}
            _add(svg, "line", **ends, y1=middle, y2=middle, stroke=WHISKER)
            _write(svg, left + summary.most * scale + 4, middle + 4, number(summary.median))
        y += BAR_HEIGHT + BAR_GAP


def _add(parent: ElementTree.Element, tag: str, **attributes: float | str) -> ElementTree.Element:
    words = {
        name: f"{value:.1f}" if isinstance(value, float) else str(value)
        for name, value in attributes.items()
    }
    return ElementTree.SubElement(parent, tag, words)


def _write(
    parent: ElementTree.Element,
    x: float,
    y: float,
    text: str,
    size: int = 12,
    anchor: str = "start",
) -> None:
    words = {"font-size": str(size), "text-anchor": anchor}
    _add(parent, "text", x=x, y=y, fill=INK, **words).text = text
