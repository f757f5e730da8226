"""Committed studies: results/published/<study>/ holds the resolved configuration, manifests, small
tables, and rows of single runs.

Figures and report are made from configuration and tables alone, without runs, models or torch, on
any machine; other analyses, and a continuation of the study, start from the rows in cells/:

    python -m vimpo publish --config FILE     copy configuration, manifests and tables there
    snakemake --cores 1 figures               draw every published study again, and rewrite the
                                              README's sections that say what was found
    python -m vimpo rename FOLDER NAME        give a published study another name
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from vimpo.analysis.law import read_points
from vimpo.config import ConfigError, Study, dump_yaml, load_study
from vimpo.report.figures import draw
from vimpo.report.law import FIGURE as LAW
from vimpo.report.law import write_law
from vimpo.report.page import NOTE, write_report
from vimpo.report.readme import write_readme
from vimpo.storage.archive import FOLDER as CELLS
from vimpo.storage.archive import archive_files, check_archive
from vimpo.storage.columns import PUBLISHED_TABLES
from vimpo.storage.files import write_atomic
from vimpo.storage.integrity import SUMS, check, read_sums, seal
from vimpo.storage.manifests import FILE as MANIFESTS
from vimpo.storage.manifests import check_manifests
from vimpo.storage.tables import check_tables, read_tables, section_digests, was_written

FOLDER = Path("results/published")


def publish(
    study: Study,
    folder: Path = FOLDER,
    config: Path | None = None,
    names: Collection[str] = PUBLISHED_TABLES,
) -> Path:
    """Copy configuration, manifests and tables of a study, finished or in part, to `folder`.

    names: PUBLISHED_TABLES, which figures and reports are made from, with the rows of single runs
    in cells/; or CELL_TABLES, which hold such rows themselves. The folder is replaced as a whole,
    except for its note.
    Raises ConfigError, and writes nothing, if the tables are missing, damaged or of another
    configuration.
    """
    candidates = [study.folder / "tables", study.folder / "partial" / "tables"]
    tables = next((t for t in candidates if (t / "provenance.csv").is_file()), None)
    if tables is None:
        raise ConfigError(
            f"publish: '{study.folder}' has no tables; allowed: a study that is finished, or one "
            "whose tables `summarize` made of what is there"
        )
    frames = read_tables(tables, (*PUBLISHED_TABLES, *names))
    check_tables(study, frames, config)
    check_archive(tables / CELLS)
    check_manifests(tables / CELLS)
    target = folder / study.study
    aside = folder / f".{study.study}.new"
    shutil.rmtree(aside, ignore_errors=True)
    for name in [name for name in names if was_written(tables, name)]:
        write_atomic(aside / "tables" / f"{name}.csv", (tables / f"{name}.csv").read_bytes())
    for name in archive_files(tables / CELLS) if "curves" not in names else ():
        file = f"{CELLS}/{name}"
        write_atomic(aside / file, (tables / file).read_bytes())
    write_atomic(aside / MANIFESTS, (tables / CELLS / MANIFESTS).read_bytes())
    # where the runs lay, and which were taken over, means nothing elsewhere
    here = study.model_copy(update={"results": "results", "continues": None})
    write_atomic(aside / "config.yaml", dump_yaml(here))
    seal(aside / SUMS, ["."])
    if (target / NOTE).is_file():
        shutil.copy(target / NOTE, aside)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    return target


def rename(folder: Path, name: str) -> Path:
    """Give a published study another name, and seal it again; every number stays as it is.

    The name stands in three places: the folder, `study` in config.yaml, and the digest of `study`
    in provenance.csv. Figures and reports still say the old one until they are drawn again.
    Raises ConfigError, and writes nothing, if the new name is taken or not one, or if a file is
    not what was published.
    """
    config = folder / "config.yaml"
    files = list(read_sums(folder / SUMS))
    if not files:
        raise ConfigError(f"rename: '{folder}' is no study; allowed: what `publish` wrote")
    for file in files:
        check("rename", folder / file, "restore what was published")
    old = load_study(config)
    new = load_study(old.model_dump(mode="json") | {"study": name})
    if (target := folder.with_name(name)).exists():
        raise ConfigError(f"rename: '{target}' is there; allowed: a name that is free")
    before, after = (section_digests({"study": study.study}) for study in (old, new))
    ((item, value),) = before.items()
    provenance = folder / "tables/provenance.csv"
    row = re.compile(f"^{re.escape(item)},{value},", re.MULTILINE)
    text = row.sub(f"{item},{after[item]},", provenance.read_text(encoding="utf-8"))
    write_atomic(provenance, text)
    line = re.compile("^study: .*$", re.MULTILINE)
    write_atomic(config, line.sub(f"study: {name}", config.read_text(encoding="utf-8"), count=1))
    seal(folder / SUMS, files)
    return folder.rename(target)


def published(folder: Path = FOLDER) -> list[Path]:
    """Folders of all published studies, by name."""
    return sorted(path.parent for path in Path(folder).glob("*/config.yaml"))


def draw_published(folder: Path = FOLDER) -> list[Path]:
    """Draw figures and write the report of every published study; returns what was written.

    The capacity law over those that have a capacity goes to a folder of its own. The README and
    docs/ above `folder`, if there are any, are brought up to date.
    Raises ConfigError if there is no study, or if tables and configuration do not agree.
    """
    folder = Path(folder)
    if not (studies := published(folder)):
        raise ConfigError(f"published: '{folder}' holds no study; allowed: what `publish` wrote")
    reports = []
    for path in studies:
        config = path / "config.yaml"
        study = load_study(config)
        check_tables(study, read_tables(path / "tables", PUBLISHED_TABLES), config)
        draw(path / "tables", path / "figures")
        write_report(study, path / "tables", path / "figures", path / "report.html", config=config)
        reports.append(path / "report.html")
    bases: dict[str, str] = {}
    if points := [row for path in studies for row in read_points(path, bases)]:
        reports += write_law(points, folder / LAW)
    return [*reports, *write_readme(studies, folder.resolve().parent.parent)]
