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

from experiments.report.axes import Axis

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
    """A number that runs have, and how it is written.

    Attributes:
      key: its column in results.csv, or its key in metrics.jsonl.
      unit: empty for counts and shares. direction: which way is better, where one is.
      places: decimals where no standard error sets them.
      meaning: its definition, for the report's readers.
    """

    key: str
    title: str
    unit: str
    direction: str = ""
    places: int = 2
    meaning: str = ""

    @property
    def axis_title(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


ELBO = Metric(
    "test/elbo",
    "ELBO",
    "nats",
    "↑ better",
    meaning="−(rate + distortion), a lower bound on log p(x), whatever the objective and its β. "
    "An autoencoder has none.",
)
RATE = Metric(
    "test/rate",
    "Rate",
    "nats",
    meaning="KL(q(z|x) ‖ p(z)), what the code costs; sampled where it has no closed form. An "
    "autoencoder has none.",
)
DISTORTION = Metric(
    "test/distortion",
    "Distortion",
    "nats",
    meaning="−E log p(x|z) over z ~ q(z|x), what the code misses, with the likelihood's constants.",
)
NLL = Metric(
    "test/nll",
    "NLL",
    "nats",
    "↓ better",
    meaning="−log 1/K Σ p(x|z) p(z) / q(z|x) over K samples of z: an upper bound on −log p(x), "
    "the tighter the larger K is.",
)
BPD = Metric(
    "test/bpd",
    "Bits/dim",
    "bits",
    "↓ better",
    places=3,
    meaning="−ELBO / (D ln 2), D the number of values of an example; for discrete data only.",
)
ACTIVE_UNITS = Metric(
    "test/active_units",
    "Active units",
    "",
    places=1,
    meaning="latent dimensions (variables, where they are discrete) in which the mean of q(z|x) "
    "varies over the examples by a variance above 0.01.",
)
GAP = Metric(
    "gap/elbo",
    "ELBO gap",
    "nats",
    meaning="ELBO on training examples less that on test examples.",
)
CLIPPED = Metric(
    "steps_clipped",
    "Clipped",
    "steps",
    places=1,
    meaning="updates made with a gradient that was scaled down to optimizer.clip_norm.",
)
SKIPPED = Metric(
    "steps_skipped",
    "Skipped",
    "steps",
    places=1,
    meaning="steps passed over because the gradient's norm was above optimizer.skip_norm.",
)

ABLATED = (ELBO, RATE, DISTORTION, ACTIVE_UNITS, NLL, GAP, BPD)
TABULATED = (ELBO, RATE, DISTORTION, NLL, BPD, ACTIVE_UNITS, GAP, CLIPPED, SKIPPED)
# The columns of a table of runs of which none has finished.
EXPECTED = (ELBO, RATE, DISTORTION, NLL, ACTIVE_UNITS, GAP)


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
    # Of a run that nearly diverged, one reads the size and not the digits.
    text = f"{value:.{places}f}" if abs(value) < 1e7 else f"{value:.3g}"
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
