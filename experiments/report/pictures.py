"""Reconstructions, samples and traversals of one run, as a raster for images and as line profiles
for vectors.

A `Picture` is drawn twice, into the HTML page and by matplotlib, from the same arrays.
"""

import base64
import dataclasses
import html
import io

import numpy as np

from experiments.report.style import ACCENT, MUTED, viridis

# Cells across: ten digits fit a third of the page and stay legible.
COLUMNS = 10
GAP = 2
MAX_ROWS = 4


@dataclasses.dataclass(frozen=True)
class Line:
    """A polyline in a picture of `columns` x `rows` unit cells, y downwards; dots too where the
    vector is short.
    """

    x: np.ndarray
    y: np.ndarray
    color: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """`columns` x `rows` cells: a raster uint8 [H, W, 3], or lines where there is none."""

    columns: int
    rows: int
    raster: np.ndarray | None
    lines: tuple[Line, ...] = ()


def reconstructions(gallery: dict[str, np.ndarray]) -> Picture | None:
    """Test examples above their reconstructions; for vectors, both in one cell."""
    if not _has(gallery, "originals", "reconstructions"):
        return None
    originals, rebuilt = gallery["originals"], gallery["reconstructions"]
    if originals.ndim == 2:
        pairs = zip(originals[:COLUMNS], rebuilt[:COLUMNS], strict=True)
        return _profiles([[(a, MUTED), (b, ACCENT)] for a, b in pairs], columns=5)
    columns = min(COLUMNS, len(originals))
    bands = min(MAX_ROWS // 2, len(originals) // columns)
    rows = [
        images[band * columns : (band + 1) * columns]
        for band in range(bands)
        for images in (originals, rebuilt)
    ]
    return _raster(np.stack(rows))


def samples(gallery: dict[str, np.ndarray]) -> Picture | None:
    """Decoded draws from the prior."""
    if not _has(gallery, "samples"):
        return None
    drawn = gallery["samples"][: MAX_ROWS * COLUMNS]
    if drawn.ndim == 2:
        return _profiles([[(sample, ACCENT)] for sample in drawn[:COLUMNS]], columns=5)
    # The width that leaves the fewest over: 32 samples in rows of eight, not thirty in rows of ten.
    widths = range(min(COLUMNS, len(drawn)), max(0, min(COLUMNS, len(drawn)) - 3), -1)
    columns = max(widths, key=lambda width: min(len(drawn) // width, MAX_ROWS) * width)
    rows = min(len(drawn) // columns, MAX_ROWS)
    return _raster(drawn[: rows * columns].reshape(rows, columns, *drawn.shape[1:]))


def traversals(gallery: dict[str, np.ndarray]) -> Picture | None:
    """One row per latent dim, moved across the prior while the others stay; for vectors, one cell
    per dim.
    """
    if not _has(gallery, "traversals"):
        return None
    moved = gallery["traversals"][:MAX_ROWS]
    if moved.ndim == 3:
        colors = viridis(moved.shape[1])
        return _profiles(
            [list(zip(row, colors, strict=True)) for row in moved], columns=min(2, len(moved))
        )
    return _raster(moved, at_least=7)


def to_html(picture: Picture, alt: str) -> str:
    """An <img> with a data URI, or an inline <svg>."""
    alt = html.escape(alt)
    if picture.raster is not None:
        # Whole-number enlargement keeps the pixels square and sharp whatever the browser does.
        factor = max(1, round(640 / picture.raster.shape[1]))
        enlarged = picture.raster.repeat(factor, axis=0).repeat(factor, axis=1)
        return f'<img src="{png_uri(enlarged)}" alt="{alt}">'
    unit = 100
    side = unit - 6
    marks = [
        f'<rect x="{unit * c + 3}" y="{unit * r + 3}" width="{side}" height="{side}" class="cell"/>'
        for r in range(picture.rows)
        for c in range(picture.columns)
    ]
    for line in picture.lines:
        points = " ".join(
            f"{x:.1f},{y:.1f}" for x, y in zip(unit * line.x, unit * line.y, strict=True)
        )
        marks.append(f'<polyline points="{points}" stroke="{line.color}"/>')
        if line.x.size <= 16:
            marks += [
                f'<circle cx="{unit * x:.1f}" cy="{unit * y:.1f}" r="3.5" fill="{line.color}"/>'
                for x, y in zip(line.x, line.y, strict=True)
            ]
    size = f"0 0 {unit * picture.columns} {unit * picture.rows}"
    opening = f'<svg class="profiles" viewBox="{size}" role="img" aria-label="{alt}">'
    return f"{opening}{''.join(marks)}</svg>"


def draw(picture: Picture, axes) -> None:
    """Draws the picture into a matplotlib Axes; a raster stays a raster in the PDF."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if picture.raster is not None:
        axes.imshow(picture.raster, interpolation="nearest")
        return
    axes.set_xlim(0, picture.columns)
    axes.set_ylim(picture.rows, 0)
    for line in picture.lines:
        marker = "." if line.x.size <= 16 else None
        axes.plot(line.x, line.y, color=line.color, linewidth=0.7, marker=marker, markersize=2)


def png_uri(raster: np.ndarray) -> str:
    """uint8 [H, W, 3] as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(raster).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _has(gallery: dict[str, np.ndarray], *names: str) -> bool:
    return all(name in gallery and gallery[name].size for name in names)


def _raster(cells: np.ndarray, at_least: int = 1) -> Picture:
    """uint8 [rows, columns, H, W(, C)] -> one raster with white gaps between the cells.

    Where there are fewer columns than `at_least`, the rest is white, and no cell is huge.
    """
    if cells.ndim == 4:
        cells = cells[..., None]
    if cells.shape[-1] not in (1, 3):
        # No colour reading of 2 or 4 and more channels is right for all data; their mean always
        # shows the shape.
        cells = cells.mean(axis=-1, keepdims=True).astype(np.uint8)
    rows, filled, height, width, _ = cells.shape
    columns = max(filled, at_least)
    out = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for r in range(rows):
        for c in range(filled):
            top, left = r * (height + GAP), c * (width + GAP)
            out[top : top + height, left : left + width] = cells[r, c]
    return Picture(columns, rows, out)


def _profiles(cells: list[list[tuple[np.ndarray, str]]], columns: int) -> Picture:
    """Vectors uint8 [D] with colours, one or more per cell: value upwards against the index of the
    dimension.
    """
    columns = min(columns, len(cells))
    lines = []
    for i, cell in enumerate(cells):
        for vector, color in cell:
            across = np.linspace(0.1, 0.9, vector.size) if vector.size > 1 else np.array([0.5])
            up = 0.9 - 0.8 * vector.astype(np.float64) / 255
            lines.append(Line(i % columns + across, i // columns + up, color))
    return Picture(columns, -(-len(cells) // columns), None, tuple(lines))
