"""What was measured, and the arithmetic on it: medians, spread, ratios; as CSV, JSON and Markdown.

Knows nothing of servers and loads: a figure is a number with the names of who, what and which.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """One number: `contestant` showed it in `load`; `metric` names it with its unit."""

    contestant: str
    load: str
    metric: str
    turn: int
    value: float


@dataclass(frozen=True)
class Summary:
    """All turns of one figure."""

    median: float
    least: float
    most: float
    turns: int


@dataclass
class Figures:
    """Everything that one run has measured, in the order of measuring."""

    taken: list[Figure] = field(default_factory=list)

    def add(self, contestant: str, load: str, metric: str, turn: int, value: float) -> None:
        self.taken.append(Figure(contestant, load, metric, turn, value))

    def values(self, contestant: str, load: str, metric: str) -> list[float]:
        wanted = (contestant, load, metric)
        return [it.value for it in self.taken if (it.contestant, it.load, it.metric) == wanted]

    def summary(self, contestant: str, load: str, metric: str) -> Summary | None:
        """None when there is no such figure."""
        values = self.values(contestant, load, metric)
        if not values:
            return None
        return Summary(statistics.median(values), min(values), max(values), len(values))

    def ratio(self, contestant: str, reference: str, load: str, metric: str) -> float | None:
        """Median over median of the reference; None when either is missing or nothing."""
        mine = self.summary(contestant, load, metric)
        other = self.summary(reference, load, metric)
        return mine.median / other.median if mine and other and other.median else None

    def contestants(self) -> list[str]:
        return list(dict.fromkeys(it.contestant for it in self.taken))

    def rows(self, metric: str) -> list[str]:
        """The loads that have this metric."""
        return list(dict.fromkeys(it.load for it in self.taken if it.metric == metric))

    def as_csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("contestant", "load", "metric", "turn", "value"))
        for it in self.taken:
            writer.writerow((it.contestant, it.load, it.metric, it.turn, f"{it.value:.6g}"))
        return text.getvalue()

    def as_json(self, about: dict[str, object]) -> str:
        """`about` says what was measured on; each figure comes with all its turns."""
        keys = dict.fromkeys((it.contestant, it.load, it.metric) for it in self.taken)
        figures = []
        for contestant, load, metric in keys:
            summary = self.summary(contestant, load, metric)
            assert summary is not None
            figures.append(
                {
                    "contestant": contestant,
                    "load": load,
                    "metric": metric,
                    "median": summary.median,
                    "least": summary.least,
                    "most": summary.most,
                    "values": self.values(contestant, load, metric),
                }
            )
        return json.dumps({"about": about, "figures": figures}, indent=1) + "\n"

    def as_table(self, metric: str, contestants: Sequence[str], reference: str) -> str:
        """One row each load; the cells say median, range and the ratio to the reference."""
        lines = [
            f"| {metric} | " + " | ".join(contestants) + " |",
            "|---|" + "---:|" * len(contestants),
        ]
        for load in self.rows(metric):
            cells = [self._cell(name, reference, load, metric) for name in contestants]
            lines.append(f"| {load} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def _cell(self, contestant: str, reference: str, load: str, metric: str) -> str:
        summary = self.summary(contestant, load, metric)
        if summary is None:
            return "–"
        cell = number(summary.median)
        if summary.turns > 1:
            cell += f" [{number(summary.least)}–{number(summary.most)}]"
        ratio = self.ratio(contestant, reference, load, metric)
        if contestant != reference and ratio is not None:
            cell += f" ×{number(ratio)}"
        return cell


def number(value: float) -> str:
    """Three digits that count, no exponents: 12345, 123, 12.3, 1.23, 0.0123."""
    size = abs(value)
    if size == 0:
        return "0"
    places = 0
    while size < 100 and places < 6:
        size *= 10
        places += 1
    return f"{value:.{places}f}"
