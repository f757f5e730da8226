"""The report: tables and figures of a study as one HTML file, and the same in Markdown.

The HTML is self-contained: figures are embedded, nothing is fetched. Text lives in the templates of
`report/` and in the registry of figures; numbers come from the tables and the configuration alone.
The same inputs give the same bytes.
"""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from vimpo.analysis.hypotheses import accuracy_by
from vimpo.analysis.scores import CONTROL, NAMES
from vimpo.config import ConfigError, Study
from vimpo.config.decoders import SAMPLED
from vimpo.report import scaling as report_scaling
from vimpo.report import tables as report_tables
from vimpo.report import verdicts as report_claims
from vimpo.report.figures.registry import FIGURES
from vimpo.report.findings import OWN, findings, short_claims
from vimpo.report.glance import glance
from vimpo.report.labels import CROWD, Style, noise_name, ordered_noise, styles
from vimpo.report.scaling import gap_table, iqm_table
from vimpo.report.yardstick import frontier_content, headroom_content, ignorant_critics
from vimpo.storage.codes import Reason
from vimpo.storage.columns import PUBLISHED_TABLES
from vimpo.storage.files import write_atomic
from vimpo.storage.registration import standing
from vimpo.storage.tables import ALL_SIZES, BASE, check_tables, read_tables
from vimpo.text import short

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parents[2] / "report"
# Beside the configuration of a published study: what has been learnt of the study since.
NOTE = "note.md"


def write_report(
    study: Study,
    tables: Path,
    figures: Path,
    output: Path,
    templates: Path = TEMPLATES,
    config: Path | None = None,
) -> None:
    """Write the HTML report to `output`, and Markdown next to it with the suffix `.md`.

    `config`: the file that `study` was read from. The tables may be recorded as made from its exact
    text, which a later version of the suite would resolve to more fields.
    Raises ConfigError if a table or figure is missing, or if the tables are not of `study`.
    """
    output, figures = Path(output), Path(figures)
    template = template_environment(templates).get_template("report.j2")
    content = report_content(study, Path(tables), Path(templates), config)
    embedded = {name: _data_uri(figures / f"{name}.svg") for name in FIGURES}
    linked = {
        name: Path(os.path.relpath(figures / f"{name}.png", output.parent)).as_posix()
        for name in FIGURES
    }
    html = template.render(content | {"layout": "layout.html.j2", "sources": embedded})
    markdown = template.render(content | {"layout": "layout.md.j2", "sources": linked})
    write_atomic(output, html.lstrip())
    write_atomic(output.with_suffix(".md"), re.sub(r"\n{3,}", "\n\n", markdown).strip() + "\n")


def template_environment(templates: Path = TEMPLATES) -> jinja2.Environment:
    """Templates of the report and the README; HTML is escaped, an unknown name is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=jinja2.select_autoescape(
            enabled_extensions=("html.j2",), default_for_string=False
        ),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["pipe_safe"] = lambda text: str(text).replace("|", "\\|")
    return environment


def _note(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8").split()) if path.is_file() else ""


def report_content(
    study: Study, tables: Path, templates: Path = TEMPLATES, config: Path | None = None
) -> dict:
    """Everything that the templates refer to."""
    frames = read_tables(tables, PUBLISHED_TABLES)
    check_tables(study, frames, config)
    summary, missing = frames["summary"], frames["missing"]
    looks = styles(summary["algorithm"])
    cells = study.cells()
    names = {cell.name for cell in cells}
    without = {
        stage: len(set(rows["cell"]) & names)
        for stage, rows in missing.groupby("stage", sort=False)
    }
    untrained = set(missing.loc[missing["stage"].isin(["train", "evaluate"]), "cell"]) & names
    content = {
        "study": study,
        "algorithms": [looks[a].label for a in dict.fromkeys(c.algorithm for c in cells)],
        "sizes": study.used_sizes(),
        "noises": [noise_name(n) for n in ordered_noise(cell.noise for cell in cells)],
        "note": _note(tables.parent / NOTE),
        "seeds": sorted({cell.seed for cell in cells}),
        "benchmarks": list(study.task.benchmarks),
        "cell_count": len(cells),
        "complete_count": len(cells) - len(untrained),
        "without": without,
        "standing": standing(study, frames["provenance"], len(frames["outcomes"]), config),
        "confidence": f"{100 * study.statistics.confidence:g}",
        "outcomes": report_tables.outcomes(frames["outcome_summary"], looks),
        "seen": glance(*(frames[name] for name in FIGURES["headline"].tables)),
        "crowded": len(looks) - (BASE in looks) > CROWD,
        "failures": report_tables.failures(frames["outcomes"]),
        "outcomes_known": len(frames["outcomes"]) > 0,
        "missing": report_tables.plain_table(missing),
        "provenance": report_tables.plain_table(frames["provenance"]),
    }
    content = (
        content
        | _claims(frames, looks)
        | headroom_content(frames["headroom"], looks)
        | frontier_content(frames["frontier"], looks)
        | _accuracy(study, frames, looks)
        | _scaling(study, frames, looks)
        | _cost(frames, looks)
        | _methods(study, frames, looks, templates)
    )
    return content | {"figures": _figures(content, templates)}


def _figures(content: dict, templates: Path) -> dict[str, dict[str, str]]:
    """Name, section, title, caption and alternative text of each figure of this study."""
    environment = template_environment(templates)
    return {
        name: {"name": name, "section": entry.section}
        | {
            part: environment.from_string(" ".join(text.split())).render(content)
            for part, text in (
                ("title", entry.title),
                ("caption", entry.caption),
                ("alt", entry.alt),
            )
        }
        for name, entry in FIGURES.items()
        if not entry.when or content[entry.when]
    }


def _claims(frames: dict[str, pd.DataFrame], looks: dict[str, Style]) -> dict:
    found = report_claims.verdicts(frames["claims"])
    critics = ignorant_critics(frames["probe_summary"], looks)
    said = findings(frames["claims"], critics)
    return {
        "findings": said,
        "short_claims": short_claims(said),
        "own_questions": any(finding["name"] == OWN for finding in said),
        "suite_claims": any(finding["name"] != OWN for finding in said),
        "claims": found,
        "verdict_counts": report_claims.counts(found),
        "claims_table": report_claims.claims_table(found),
        "disagreements": report_claims.disagreements(frames["claims"]),
        "decoders": report_claims.decoders_table(frames["claims"]),
        "facts": report_claims.facts_table(frames["claims"]),
        "part_count": report_claims.test_count(frames["claims"]),
    }


def _accuracy(study: Study, frames: dict[str, pd.DataFrame], looks: dict[str, Style]) -> dict:
    summary, curves = frames["summary"], frames["curves_summary"]
    sizes, headline = study.used_sizes(), report_tables.headline
    whole = [ALL_SIZES] if len(sizes) > 1 else sizes
    modes = summary.loc[summary["noise_level"] > 0, "noise_mode"]
    levels = summary.loc[summary["noise_mode"].isin(["group", "rollout"]), "noise_level"]
    return {
        "headline": headline(summary, looks, "sampled", whole),
        "per_size": headline(summary, looks, "sampled", sizes),
        "other_scores": {
            title: headline(summary, looks, metric, list(dict.fromkeys([*whole, *sizes])))
            for metric, title in _score_titles(study).items()
            if metric in set(summary["metric"]) - {SAMPLED}
        },
        "gaps": gap_table(frames["comparisons"], looks, ablations=False),
        "ablations": gap_table(frames["comparisons"], looks, ablations=True),
        "iqm": iqm_table(frames["comparisons"], looks),
        "window": int(curves["window"].max()) if len(curves) else 1,
        "training_recorded": bool((curves["metric"] != "accuracy").any()),
        "methods": list(dict.fromkeys(summary.loc[summary["low"].notna(), "method"])),
        "one_seed": bool((summary["reason_code"] == Reason.ONE_SEED).any()),
        "expected_line": bool(modes.isin(["group", "rollout"]).any()),
        "control": f"{CONTROL:g}",
        "control_run": bool((levels >= CONTROL).any()),
    }


def _score_titles(study: Study) -> dict[str, str]:
    """The metrics of the table of accuracy, and what they are called."""
    return {
        name: title[0].upper() + title[1:]
        for decoder in study.decoders()
        for name, title in (
            (decoder, accuracy_by(decoder)),
            *((f"{decoder}_pass@{k}", f"pass@{k}, {decoder}") for k in study.passes_of(decoder)),
        )
    }


def _scaling(study: Study, frames: dict[str, pd.DataFrame], looks: dict[str, Style]) -> dict:
    probes = frames["probe_summary"]
    reasons = set(probes["reason_code"])
    known = set(frames["capacity"]["size"])
    return {
        "capacity": report_tables.capacity(frames["capacity"], looks),
        "unmeasured": [size for size in study.used_sizes() if size not in known],
        "probed": len(probes) > 0,
        "graded": Reason.NO_ORACLE not in reasons,
        "doubled": Reason.IS_THE_TRUTH not in reasons,
    } | report_scaling.probe_tables(probes, looks)


def _cost(frames: dict[str, pd.DataFrame], looks: dict[str, Style]) -> dict:
    return {
        "measured": report_scaling.measured_table(frames["measured_summary"], looks),
        "projection": report_scaling.projection_table(frames["memory_projection"], looks),
        "cost": report_tables.cost(frames["cost_summary"], looks),
    }


def _methods(
    study: Study, frames: dict[str, pd.DataFrame], looks: dict[str, Style], templates: Path
) -> dict:
    summary = frames["summary"]
    params = summary.dropna(subset=["params"]).drop_duplicates("size").set_index("size")["params"]
    setup = report_tables.paper_setup(templates / "paper_setup.csv", study, looks)
    return _limits(study, params, setup) | {
        "paper": report_tables.paper_results(templates / "paper_table.csv", summary, looks),
        "paper_setup": setup,
        "hyperparameters": report_tables.hyperparameters(study, looks),
        "shared": report_tables.shared_settings(study),
        "ladder": report_tables.sizes(study, params.to_dict()),
        "tuning": report_tables.tuning(study, looks),
        "sweeps": report_tables.sweep_table(frames["sweeps"], looks),
        "maps": _single_sweeps(frames["sweeps"]),
        "sweeps_curves_recorded": len(frames["sweeps_curves"]) > 0,
    }


def _single_sweeps(sweeps: pd.DataFrame) -> list[str]:
    """Sweeps of a single objective, which map it rather than compare it."""
    objectives = sweeps.groupby("sweep", sort=False)["objective"].nunique()
    return list(objectives.index[objectives == 1])


def _limits(study: Study, params: pd.Series, setup: report_tables.Table) -> dict:
    """What a study's size and set-up do not let it say, and what the paper had instead."""
    sizes = study.used_sizes()
    known = sorted(params[size] for size in sizes if size in params.index)
    ends = list(dict.fromkeys(short(n) for n in (known[:1] + known[-1:])))
    present = {cell.algorithm for cell in study.cells()}
    close = [label for name, label in NAMES.items() if name in present]
    closeness = ["close"] if study.train.epochs == 1 and len(close) > 1 else []
    return {
        "close": close,
        "limits": ["scale", *closeness, "transfers", "open", "tests"],
        "parameters": " to ".join(ends) or "an unknown number of",
        "scratch": all(study.sizes[size].path is None for size in sizes),
        "synthetic": study.task.kind == "chain",
        "setup": {
            name.text: {"paper": paper.text, "ours": ours.text, "known": ours.known}
            for name, paper, ours in setup.rows
        },
    }


def _data_uri(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"figures: '{path}' is not a file; allowed: the output of `plot`")
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
