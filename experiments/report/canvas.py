"""The sheet that every paper figure is drawn on: its style, its making and its saving.

Object-oriented API with the Agg and PDF canvases only: no pyplot, no global state, no display.
Fonts are embedded as Type 42 (TrueType), which conference submission systems accept; Type 3 they
refuse.
"""

import contextlib
import io
import pathlib
import warnings
from collections.abc import Iterator, Sequence

from experiments.report import style

# Dots per inch of the PNGs and of rasters inside the PDFs: sharp in print at this size, megabytes
# smaller than 300.
DPI = 160

RC = {
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.edgecolor": "#9aa3b2",
    "axes.labelcolor": style.INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#eceff4",
    "xtick.color": "#667085",
    "ytick.color": "#667085",
    "xtick.labelcolor": style.INK,
    "ytick.labelcolor": style.INK,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "text.parse_math": False,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Within it figures are drawn, and saved, in this style.

    text.parse_math is off, so a "$" in a label is a dollar sign; tick labels that want powers are
    written by hand.
    """
    import matplotlib

    # A label in a script that the font lacks is drawn as boxes, and names too long for any layout
    # leave it as it is: neither is a reason to warn whoever runs a sweep.
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        yield


def new_figure(
    rows: int, columns: int, width: float, height: float, ratios: Sequence[float] | None = None
):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, width_ratios=ratios)
    return figure, list(panels.ravel())


def save(figure, stem: pathlib.Path) -> list[pathlib.Path]:
    """Writes STEM.png and STEM.pdf; returns their paths."""
    from experiments.report import write_whole

    _without_mathtext(figure)
    paths = []
    for suffix, metadata in ((".png", {}), (".pdf", {"CreationDate": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], metadata=metadata, facecolor="white")
        # The layout is solved once; solving it again for the PDF would cost as much as drawing it.
        figure.set_layout_engine("none")
        paths.append(stem.with_name(stem.name + suffix))
        write_whole(paths[-1], buffer.getvalue())
    return paths


def _without_mathtext(figure) -> None:
    """Writes 0.01 at the ticks of logarithmic axes, where matplotlib's own 10⁻² is mathematics."""
    from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatter):
                axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())
