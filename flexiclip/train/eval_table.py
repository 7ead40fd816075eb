"""The evaluation inside a run as a table: one column for each length, one line for each metric.

    step 375: openmoji/retrieval
      seqhw                        3       6      15
      image retrieval recall@5  22.1%   23.7%   18.9%
      mean rank                 12.4    11.9    13.0

eval.jsonl and TensorBoard have the same values by the names that the evaluators give: DATASET/TASK/METRIC/seqhw=S.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = re.compile(r"(?P<task>.+)/(?P<metric>[^/]+)/seqhw=(?P<seqhw>[^/]+)")


def evaluation_table(step: int, values: Mapping[str, float]) -> str:
    """Return the values of an evaluation as lines. A name of another form has a line of its own."""
    tables: dict[str, dict[str, dict[str, float]]] = {}  # task -> metric -> length -> value
    others: list[str] = []
    for name, value in values.items():
        found = _NAME.fullmatch(name)
        if found is None:
            others.append(f"step {step}: {name} {value:.4f}")
        else:
            tables.setdefault(found["task"], {}).setdefault(found["metric"], {})[found["seqhw"]] = value
    lines = [line for task, metrics in tables.items() for line in [f"step {step}: {task}", *_table(metrics)]]
    return "\n".join([*others, *lines])


def _table(metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the aligned lines of one task: the lengths, then each metric."""
    lengths = sorted({seqhw for row in metrics.values() for seqhw in row}, key=_number)
    rows = [["seqhw", *lengths]]
    rows += [[metric.replace("_", " "), *(_shown(metric, row.get(s)) for s in lengths)] for metric, row in metrics.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(lengths) + 1)]
    return ["  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _number(seqhw: str) -> float:
    """Return a length as a number. A model of another library may have none, which comes last."""
    return int(seqhw) if seqhw.isdecimal() else float("inf")


def _shown(metric: str, value: float | None) -> str:
    """Return a share in percent, a rank as a number, and a dash where a length has no value."""
    if value is None:
        return "–"
    return f"{value:,.1f}" if metric.endswith("_rank") or value > 1 else f"{value:.1%}"
