"""The comparison of conditions where not every combination of the swept values was run.

There a metric against one field would be an average over whatever else was run with each value: the
conditions are set against each other one by one instead. As in `interactive`, plain plotly JSON.
"""

import math
from collections.abc import Sequence

from experiments.report import interactive, style
from experiments.report.aggregate import Group
from experiments.report.results import Results

# Past these, names narrow the panels.
MAX_LABEL = 44


def conditions(results: Results, groups: Sequence[Group]) -> interactive.Figure:
    """One panel per metric, one row per group: mean and standard error over seeds."""
    metrics = interactive.measured(results)
    columns = min(3, len(metrics))
    layout = interactive.base_layout() | interactive.panels(
        len(metrics), columns, panel_height=24 * len(groups) + 30
    )
    rows = list(range(len(groups)))
    labels = [interactive.text(style.clipped(group.label, MAX_LABEL)) for group in groups]
    data = []
    for panel, metric in enumerate(metrics):
        suffix = "" if panel == 0 else str(panel + 1)
        layout[f"xaxis{suffix}"] |= interactive.axis_layout(nticks=5)
        layout[f"yaxis{suffix}"] |= interactive.axis_layout(
            range=[len(groups) - 0.5, -0.5],
            tickvals=rows,
            ticktext=labels,
            showticklabels=panel % columns == 0,
        )
        layout["annotations"].append(
            interactive.panel_title(
                layout,
                suffix,
                f"<b>{metric.title}</b>" + (f" ({metric.unit})" if metric.unit else ""),
            )
        )
        seen = [group.estimate(metric.key) for group in groups]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": interactive.rounded([one.mean for one in seen]),
                "y": rows,
                "error_x": {
                    "type": "data",
                    "array": [one.error if math.isfinite(one.error) else 0.0 for one in seen],
                    "visible": any(math.isfinite(one.error) for one in seen),
                    "color": style.ACCENT,
                    "thickness": 1.3,
                    "width": 3,
                },
                "marker": {
                    "size": 7,
                    "color": [style.ACCENT if whole(group) else "#ffffff" for group in groups],
                    "line": {"color": style.ACCENT, "width": 1.6},
                },
                "showlegend": False,
                "hoverinfo": "text",
                "text": [
                    f"{interactive.text(group.label)}<br>{metric.axis_title}: "
                    f"{style.fixed(one.mean, 3)}"
                    + (f" ± {style.fixed(one.error, 3)}" if one.n > 1 else "")
                    + f"<br>{results.counted(one.n)}"
                    for group, one in zip(groups, seen, strict=True)
                ],
                "xaxis": f"x{suffix}",
                "yaxis": f"y{suffix}",
            }
        )
    return {"data": data, "layout": layout}


def whole(group: Group) -> bool:
    """Whether all of a group's runs came to their end."""
    return all(run.status == "ok" for run in group.runs)
