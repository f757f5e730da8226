"""The report: tables and figures of a study as one HTML file, and its twin in Markdown.

The HTML needs nothing but itself: figures are embedded, nothing is fetched. Text lives in the
templates of `report/`, numbers come from the tables and the configuration alone. The same inputs
give the same bytes.
"""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

import pandas as pd

from vimpo import report_tables
from vimpo.config import ConfigError, Study
from vimpo.plot_style import noise_name, ordered_noise, styles
from vimpo.plots import FIGURES
from vimpo.records import write_atomic
from vimpo.tables import ALL_SIZES, BASE, read_table

TEMPLATES = Path(__file__).parents[1] / "report"


def write_report(
    study: Study, tables: Path, figures: Path, output: Path, templates: Path = TEMPLATES
) -> None:
    """Write the HTML report to `output`, and Markdown beside it under the suffix `.md`.

    Raises ConfigError where a table or figure is missing, or where the tables are not of `study`.
    """
    import jinja2

    output, figures = Path(output), Path(figures)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["pipe_safe"] = lambda text: str(text).replace("|", "\\|")
    content = report_content(study, Path(tables), Path(templates))
    page = content | {"sources": {name: _data_uri(figures / f"{name}.svg") for name in FIGURES}}
    write_atomic(output, environment.get_template("report.html.j2").render(page))

    links = {
        name: Path(os.path.relpath(figures / f"{name}.png", output.parent)).as_posix()
        for name in FIGURES
    }
    markdown = environment.get_template("report.md.j2").render(content | {"sources": links})
    write_atomic(output.with_suffix(".md"), re.sub(r"\n{3,}", "\n\n", markdown))


def report_content(study: Study, tables: Path, templates: Path = TEMPLATES) -> dict:
    """Everything that the templates name."""
    summary, missing = read_table(tables, "summary"), read_table(tables, "missing")
    accuracy, provenance = read_table(tables, "accuracy"), read_table(tables, "provenance")
    costs, curves = read_table(tables, "cost_summary"), read_table(tables, "curves_summary")
    check_tables(study, accuracy, missing, summary)
    looks = styles(summary["algorithm"])
    cells = study.cells()
    unfinished = set(missing["cell"]) & {cell.name for cell in cells}
    params = summary.dropna(subset=["params"]).drop_duplicates("size").set_index("size")["params"]
    sizes = study.used_sizes()
    whole = [ALL_SIZES] if len(sizes) > 1 else sizes
    used = list(dict.fromkeys(cell.algorithm for cell in cells))
    metrics = list(dict.fromkeys(summary["metric"]))
    return {
        "study": study,
        "algorithms": [looks[a].label for a in used],
        "sizes": sizes,
        "noises": [noise_name(n) for n in ordered_noise(cell.noise for cell in cells)],
        "seeds": sorted({cell.seed for cell in cells}),
        "benchmarks": list(study.task.benchmarks),
        "cell_count": len(cells),
        "complete_count": len(cells) - len(unfinished),
        "confidence": f"{100 * study.statistics.confidence:g}",
        "window": int(curves["window"].max()) if len(curves) else 1,
        "methods": list(dict.fromkeys(m for m in summary["method"] if m and m != "not available")),
        "one_seed": bool((summary["reason"] == "one seed has no spread").any()),
        "headline": report_tables.headline(summary, looks, "sampled", whole),
        "per_size": report_tables.headline(summary, looks, "sampled", sizes),
        "greedy": report_tables.headline(summary, looks, "greedy", [*whole, *sizes])
        if "greedy" in metrics and len(sizes) > 1
        else report_tables.headline(summary, looks, "greedy", sizes),
        "greedy_evaluated": "greedy" in metrics,
        "cost": report_tables.cost(costs, looks),
        "paper": report_tables.paper_results(templates / "paper_table.csv", summary, looks),
        "paper_setup": report_tables.paper_setup(templates / "paper_setup.csv", study, looks),
        "hyperparameters": report_tables.hyperparameters(study, looks),
        "shared": report_tables.shared_settings(study),
        "ladder": report_tables.sizes(study, params.to_dict()),
        "tuning": report_tables.tuning(study, looks),
        "missing": report_tables.plain_table(missing),
        "provenance": report_tables.plain_table(provenance),
        "figures": list(FIGURES),
    }


def check_tables(
    study: Study, accuracy: pd.DataFrame, missing: pd.DataFrame, summary: pd.DataFrame
) -> None:
    """Refuse tables of another study: every cell must be in the grid, and accounted for.

    Raises ConfigError that names the first cells at fault.
    """
    runs = accuracy[accuracy["algorithm"] != BASE].drop_duplicates(
        ["algorithm", "size", "noise", "seed"]
    )
    found = {
        f"{r.algorithm}/{r.size}/noise-{r.noise}/seed-{int(r.seed)}"
        for r in runs[["algorithm", "size", "noise", "seed"]].itertuples()
    }
    cells = {cell.name for cell in study.cells()}
    faults = {
        "not in the grid": sorted(found - cells),
        "neither in accuracy.csv nor in missing.csv": sorted(cells - found - set(missing["cell"])),
        "benchmarks not in the study": sorted(
            set(accuracy["benchmark"]) - set(study.task.benchmarks)
        ),
    }
    if wrong := set(summary["confidence"].dropna()) - {study.statistics.confidence}:
        faults["intervals of another confidence"] = sorted(map(str, wrong))
    for fault, names in faults.items():
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
            raise ConfigError(
                f"tables: {shown}: {fault} of study '{study.study}'; "
                "allowed: tables that `aggregate` made from this configuration"
            )


def _data_uri(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"figures: '{path}' is not a file; allowed: the output of `plot`")
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
