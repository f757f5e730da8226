"""Figures, from tables only: every number drawn here was computed by `vimpo.analysis.aggregate`.

An algorithm has the same colour, marker and line style in all figures (Okabe and Ito's colours,
which colour-blind readers can tell apart). Means show their interval, panels their n. SVGs repeat
byte for byte: fixed ids, no date, text as outlines of the fonts that matplotlib ships.

What draws is imported only when something is drawn: the workflow reads the registry without it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vimpo.report.figures.registry import FIGURES, FigureEntry
from vimpo.storage.columns import PUBLISHED_TABLES
from vimpo.storage.files import write_atomic

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from vimpo.report.labels import Style

PNG_DPI, SVG_DPI = 150, 72


def draw(tables: Path, output: Path) -> list[Path]:
    """Draw every figure as SVG and PNG into `output`; returns the paths."""
    from vimpo.report.labels import styles
    from vimpo.storage.tables import read_tables

    frames = read_tables(tables, PUBLISHED_TABLES)
    return draw_figures(frames, FIGURES, styles(frames["summary"]["algorithm"]), Path(output))


def draw_figures(
    frames: Mapping[str, pd.DataFrame], names: Iterable[str], looks: dict[str, Style], output: Path
) -> list[Path]:
    """Draw figures from the tables that they need. Raises KeyError for an unknown name."""

    def drawn(entry: FigureEntry) -> Figure:
        return entry.drawer()(*(frames[table] for table in entry.tables), looks)

    return print_figures({name: partial(drawn, FIGURES[name]) for name in names}, output)


def print_figures(figures: Mapping[str, Callable[[], Figure]], output: Path) -> list[Path]:
    """Draw each figure and write it as SVG and PNG into `output`; returns the paths."""
    import matplotlib as mpl
    from matplotlib.style import context

    from vimpo.report.figures.style import RC

    output.mkdir(parents=True, exist_ok=True)
    written = []
    # a reader's own matplotlibrc must not change a figure
    with mpl.rc_context(), context(["default", RC]):
        for name, draw_one in figures.items():
            written += _save(draw_one(), output / name)
    return written


def _save(figure: Figure, path: Path) -> list[Path]:
    """Lay out once and print twice: `savefig` would lay out and draw four times."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    svg, png = path.with_suffix(".svg"), path.with_suffix(".png")
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(PNG_DPI)
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")
    write_atomic(png, png_of(canvas))
    figure.set_dpi(SVG_DPI)
    page = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(page, metadata={"Date": None})
    write_atomic(svg, page.getvalue())
    return [svg, png]


def png_of(canvas: FigureCanvasAgg) -> bytes:
    """In 256 colours, which a figure of lines and bands hardly exceeds: a third of the size."""
    from PIL import Image

    canvas.draw()
    drawn = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
    page = io.BytesIO()
    small = drawn.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(page, "PNG", optimize=True, dpi=(PNG_DPI, PNG_DPI))
    return page.getvalue()
