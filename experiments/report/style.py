"""What the interactive and the paper figures share: names of metrics with their units, and colours.

Ordered axes take colours from viridis, cut off before its pale end, which vanishes on white paper.
Categories take the ten colours of Petroff, "Accessible Color Sequences for Data Visualization"
(2021, arXiv:2107.02270), chosen to stay apart under the common colour-vision deficiencies.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from experiments.report.results import Axis

INK = "#1f2430"
MUTED = "#667085"
RULE = "#d8dce4"
ACCENT = "#3b528b"

PETROFF = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A column of results.csv and how it is written; `unit` is empty for counts."""

    key: str
    title: str
    unit: str
    direction: str = ""

    @property
    def axis_title(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


ELBO = Metric("test/elbo", "ELBO", "nats", "↑ better")
RATE = Metric("test/rate", "Rate", "nats")
DISTORTION = Metric("test/distortion", "Distortion", "nats")
NLL = Metric("test/nll", "NLL", "nats", "↓ better")
ACTIVE_UNITS = Metric("test/active_units", "Active units", "")
GAP = Metric("gap/elbo", "ELBO gap", "nats")

ABLATED = (ELBO, RATE, DISTORTION, ACTIVE_UNITS, NLL, GAP)
TABULATED = (ELBO, RATE, DISTORTION, NLL, ACTIVE_UNITS, GAP)


@functools.cache
def viridis(count: int) -> tuple[str, ...]:
    """`count` hex colours from dark to light, in order."""
    import matplotlib

    positions = np.linspace(0.0, 0.85, count) if count > 1 else np.array([0.35])
    rgb = np.rint(matplotlib.colormaps["viridis"](positions)[:, :3] * 255).astype(int)
    return tuple(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in rgb)


def axis_colors(axis: Axis | None) -> tuple[str, ...]:
    """One colour per value: sequential for numbers, categorical otherwise."""
    if axis is None:
        return (ACCENT,)
    return viridis(len(axis.values)) if axis.numeric else category_colors(len(axis.values))


def category_colors(count: int) -> tuple[str, ...]:
    """Petroff's ten colours; past ten no palette stays apart, so the order is shown instead."""
    return PETROFF[:count] if count <= len(PETROFF) else viridis(count)


def translucent(color: str, alpha: float) -> str:
    """A hex colour as the CSS rgba() of the same colour."""
    r, g, b = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{alpha})"


def decimals(errors: Sequence[float], default: int) -> int:
    """Decimals for a column, from its median standard error: two significant digits of an error
    that starts with 1, 2 or 3, one of a larger (the Particle Data Group's rule), between 1 and 4.
    """
    finite = [error for error in errors if np.isfinite(error) and error > 0]
    if not finite:
        return default
    exponent = math.floor(math.log10(np.median(finite)))
    leading = np.median(finite) / 10.0**exponent
    return int(np.clip(-exponent + (leading < 3.55), 1, 4))


def fixed(value: float, places: int) -> str:
    """A number with a true minus sign; an en dash where there is none."""
    if not np.isfinite(value):
        return "–"
    text = f"{value:.{places}f}"
    return text.replace("-", "−") if float(text) != 0 else text.lstrip("-")


def clipped(text: str, limit: int = 40) -> str:
    """A label that leaves room for the figure; the page's tables and hovers give it in full."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def samples_label(sample_counts: Sequence[float]) -> str:
    """K = 5000, the importance samples of an NLL, without which the number means nothing."""
    counts = sorted({int(count) for count in sample_counts if np.isfinite(count)})
    return f"K = {', '.join(map(str, counts))}" if counts else "K unknown"


def with_samples(metric: Metric, sample_counts: Sequence[float]) -> Metric:
    """The NLL with its K beside the unit; any other metric as it is."""
    if metric is not NLL:
        return metric
    return dataclasses.replace(metric, unit=f"{metric.unit}, {samples_label(sample_counts)}")
