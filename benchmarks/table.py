"""What was measured, and the one table that every program prints."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a figure, or its ratio to the reference, may be. `holds` is given median and ratio."""

    text: str
    holds: Callable[[float, float | None], bool]


def at_most(limit: float, unit: str) -> Budget:
    return Budget(text=f"≤ {limit:g} {unit}", holds=lambda median, _: median <= limit)


def at_least(limit: float, unit: str) -> Budget:
    return Budget(text=f"≥ {limit:g} {unit}", holds=lambda median, _: median >= limit)


def ratio_at_least(limit: float) -> Budget:
    return Budget(
        text=f"≥ {limit:.0%} of the reference",
        holds=lambda _, ratio: ratio is not None and ratio >= limit,
    )


def ratio_at_most(limit: float) -> Budget:
    return Budget(
        text=f"≤ {limit:g} × the reference",
        holds=lambda _, ratio: ratio is not None and ratio <= limit,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One thing that was measured, once in each run; the reference in the same runs."""

    name: str
    unit: str
    runs: Sequence[float]
    reference: Sequence[float] = ()
    reference_name: str = ""
    budget: Budget | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    @property
    def ratio(self) -> float | None:
        """Of the medians; run by run where both were measured in turn."""
        if not self.reference:
            return None
        if len(self.reference) == len(self.runs):
            return statistics.median(a / b for a, b in zip(self.runs, self.reference, strict=True))
        return self.median / statistics.median(self.reference)

    @property
    def is_met(self) -> bool | None:
        return None if self.budget is None else self.budget.holds(self.median, self.ratio)

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "unit": self.unit,
            "runs": list(self.runs),
            "median": self.median,
            "reference": list(self.reference),
            "reference_name": self.reference_name,
            "ratio": self.ratio,
            "budget": self.budget.text if self.budget else None,
            "met": self.is_met,
        }


def show(title: str, figures: Sequence[Figure], *, file: Path | None = None) -> bool:
    """Print the table, add it to *file* as a JSON line, and say whether all budgets are met."""
    table = Table(title=title, title_justify="left")
    for column in ("", "median", "spread", "reference", "ratio", "budget", ""):
        table.add_column(column, justify="right" if column in ("median", "ratio") else "left")
    for figure in figures:
        reference = ""
        if figure.reference:
            reference = f"{number(statistics.median(figure.reference))} {figure.unit}"
            reference += f" ({figure.reference_name})"
        table.add_row(
            figure.name,
            f"{number(figure.median)} {figure.unit}",
            f"{number(min(figure.runs))} – {number(max(figure.runs))} ({len(figure.runs)} runs)",
            reference,
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            figure.budget.text if figure.budget else "",
            {None: "", True: "met", False: "MISSED"}[figure.is_met],
        )
    Console(width=160 if not Console().is_terminal else None).print(table)
    if file is not None:
        with file.open("a") as out:
            out.write(
                json.dumps({"title": title, "figures": [f.as_json() for f in figures]}) + "\n"
            )
    return all(figure.is_met is not False for figure in figures)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
