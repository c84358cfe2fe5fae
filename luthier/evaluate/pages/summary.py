"""The verdict for the terminal: a table, and a line for each finding. In: the verdict. Out: text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.page.words import show_difference, show_p, show_value
from luthier.text_table import columns


def table(verdict: Mapping[str, Any]) -> str:
    """Systems down, the main metric with its interval and the difference to tuned across."""
    name = verdict["main_metric"]
    metric = verdict["metrics"][name]
    sign = 1 if metric["higher_is_better"] else -1
    against = {row["baseline"]: row for row in verdict["comparisons"] if row["metric"] == name}
    lines = [("", metric["title"], "95% interval", "tuned is better by", "p")]
    for system in verdict["systems"]:
        figure = system["metrics"][name]
        row = against.get(system["name"])
        lines.append(
            (
                system["title"],
                show_value(figure["value"], metric["percent"]),
                f"{show_value(figure['low'], metric['percent'])} to {show_value(figure['high'], metric['percent'])}",
                show_difference(sign * row["difference"], metric["percent"]) if row else "",
                show_p(row["p"]) if row else "",
            )
        )
    return columns(lines)


def findings(verdict: Mapping[str, Any]) -> list[str]:
    """One line for each examination."""
    return [f"{finding['title']}: {finding['sentence']}" for finding in verdict.get("findings", {}).values()]


def gate_lines(gate: Mapping[str, Any]) -> str:
    """Whether the model may ship, and each condition with its reason."""
    head = "It ships: every condition of ship_if is met." if gate["ships"] else "It does not ship:"
    return "\n".join(
        [
            head,
            *(
                f"  {'met' if row['met'] else 'NOT MET'}  {row['condition']}: {row['reason']}"
                for row in gate["conditions"]
            ),
        ]
    )
