"""Figures, from tables only: every number drawn here was computed by `vimpo.analysis.aggregate`.

An algorithm has one colour, marker and line style in all figures (Okabe and Ito's colours, which
colour-blind readers tell apart). Means carry their interval, panels their n. SVGs repeat byte for
byte: fixed ids, no date, text as outlines of the fonts that matplotlib brings along.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vimpo.report.figures import accuracy as plots_accuracy
from vimpo.report.figures import cost as plots_cost
from vimpo.report.figures import headline as plots_headline
from vimpo.report.figures import probes as plots_probes
from vimpo.report.figures import sweep as plots_sweep
from vimpo.report.figures.style import RC
from vimpo.report.labels import Style, styles
from vimpo.storage.columns import FIGURES, PUBLISHED_TABLES
from vimpo.storage.files import write_atomic
from vimpo.storage.tables import read_tables

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PNG_DPI, SVG_DPI = 150, 72
# Each figure is drawn from one table, or from those that its function takes.
DRAWERS: dict[str, tuple[Callable[..., Figure], tuple[str, ...]]] = {
    "headline": (plots_headline.headline, ("summary", "probe_summary", "measured_summary")),
    "learning_curves": (plots_accuracy.learning_curves, ("curves_summary",)),
    "accuracy_by_benchmark": (plots_accuracy.accuracy_by_benchmark, ("summary",)),
    "accuracy_vs_noise": (plots_accuracy.accuracy_vs_noise, ("summary",)),
    "accuracy_vs_size": (plots_accuracy.accuracy_vs_size, ("summary",)),
    "gap_vs_size": (plots_accuracy.gap_vs_size, ("comparisons",)),
    "value_accuracy": (plots_probes.value_accuracy, ("probe_summary",)),
    "value_by_position": (plots_probes.value_by_position, ("probe_summary",)),
    "credit": (plots_probes.credit, ("probe_summary",)),
    "credit_profile": (plots_probes.credit_profile, ("probe_summary",)),
    "precision": (plots_probes.precision, ("probe_summary",)),
    "cost": (plots_cost.cost, ("measured_summary",)),
    "memory_projection": (plots_cost.memory_projection, ("memory_projection",)),
    "sweeps": (plots_sweep.sweeps, ("sweeps",)),
}


def draw(tables: Path, output: Path) -> list[Path]:
    """Draw every figure as SVG and PNG into `output`; returns the paths."""
    frames = read_tables(tables, PUBLISHED_TABLES)
    return draw_figures(frames, FIGURES, styles(frames["summary"]["algorithm"]), Path(output))


def draw_figures(
    frames: Mapping[str, pd.DataFrame], names: Iterable[str], looks: dict[str, Style], output: Path
) -> list[Path]:
    """Draw some of the figures from the tables that they need."""
    import matplotlib as mpl
    from matplotlib.style import context

    output.mkdir(parents=True, exist_ok=True)
    written = []
    # a reader's own matplotlibrc must not change a figure
    with mpl.rc_context(), context(["default", RC]):
        for name in names:
            drawer, sources = DRAWERS[name]
            figure = drawer(*(frames[source] for source in sources), looks)
            written += _save(figure, output / name)
    return written


def _save(figure: Figure, path: Path) -> list[Path]:
    """Lay out once and print twice: `savefig` would lay out and draw four times."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    svg, png = path.with_suffix(".svg"), path.with_suffix(".png")
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(PNG_DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    page = io.BytesIO()
    canvas.print_png(page)
    write_atomic(png, page.getvalue())
    figure.set_dpi(SVG_DPI)
    page = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(page, metadata={"Date": None})
    write_atomic(svg, page.getvalue())
    return [svg, png]
