"""Committed studies: figures and reports come from small tables alone, and nothing is trained."""

import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import snakes
import yaml
from fake_results import small_study, write_results

from vimpo.analysis.aggregate import aggregate
from vimpo.cli import main
from vimpo.config import Cell, ConfigError, load_study
from vimpo.report.figures.registry import FIGURES
from vimpo.report.page import report_content, template_environment
from vimpo.report.published import draw_published, publish, rename
from vimpo.storage.columns import ARCHIVED, OPTIONAL_TABLES, PUBLISHED_TABLES, RAW
from vimpo.storage.integrity import SUMS, seal
from vimpo.storage.manifests import read_manifests

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study that is finished but for one run; of one size, because drawing takes its time."""
    grid = {"sizes": ["s"], "noise": [0, 0.25]}
    study = small_study(tmp_path_factory.mktemp("published"), grid=grid)
    write_results(study)
    shutil.rmtree(study.run_folder(Cell("grpo", "s", "0.25", 2)))
    aggregate(study, study.folder / "tables")
    return study


@pytest.fixture
def clone(study, tmp_path):
    """A fresh clone that holds nothing but the published study."""
    publish(study, tmp_path / "results/published")
    return tmp_path


def snakemake(folder, *arguments):
    """The workflow of this checkout, at work in another folder, and without torch."""
    (folder / "hidden").mkdir(exist_ok=True)
    for name in ("torch", "transformers", "lm_eval"):
        (folder / f"hidden/{name}.py").write_text(f"raise ImportError('{name} is not needed')")
    words = ["--configfile", ROOT / "workflow/config/quick.yaml", "--directory", folder]
    words += ["--cores", "1", "--nolock", *arguments]
    return snakes.snakemake(*words, environment={"PYTHONPATH": f"{folder / 'hidden'}:{ROOT}"})


def test_what_is_published_is_small_and_names_no_place(clone, study):
    folder = clone / "results/published/fake"
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    tables = {f"tables/{name}.csv" for name in PUBLISHED_TABLES}
    cells = {f"cells/{name}.parquet" for name in ARCHIVED}
    assert files == {"SHA256SUMS", "config.yaml", "manifests.jsonl", *tables, *cells}
    subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    manifests = read_manifests(folder)
    assert len(manifests) == 11 + 1  # runs and base policies
    cell = study.cells()[0]
    written = json.loads((study.run_folder(cell) / "manifest.json").read_text())
    outputs = {"config.yaml", "metrics.csv", "timing.csv"}
    assert set(manifests[cell.name].pop("outputs")) == outputs
    assert manifests[cell.name] == written
    assert not set(RAW) & set(PUBLISHED_TABLES)
    assert str(study.results) not in (folder / "config.yaml").read_text()
    assert not list(folder.parent.glob(".*"))


def test_figures_plans_nothing_but_drawing_and_trains_nothing(clone):
    """The rule has no inputs that another rule makes, so a dry run holds it alone."""
    result = snakemake(clone, "--dry-run", "figures")
    assert result.returncode == 0, result.stderr
    rules = [
        line.split()[1].rstrip(":")
        for line in (result.stdout + result.stderr).splitlines()
        if line.startswith(("rule ", "localrule "))
    ]
    assert rules == ["figures"]


@pytest.fixture(scope="module")
def drawn(study, shared):
    """A clone whose figures and report Snakemake made, without torch; read only."""

    def draw(folder):
        published = publish(study, folder / "results/published")
        (published / "note.md").write_text("What it\ncould not say.\n")
        result = snakemake(folder, "figures")
        assert result.returncode == 0, result.stdout + result.stderr

    return shared("drawn", draw)


def test_every_figure_repeats_whatever_a_readers_settings(drawn, tmp_path):
    import matplotlib as mpl

    folder = drawn / "results/published/fake"
    names = [f"figures/{name}.{suffix}" for name in FIGURES for suffix in ("svg", "png")]
    assert sorted(p.name for p in (folder / "figures").iterdir()) == sorted(n[8:] for n in names)
    again = tmp_path / "published/fake"
    shutil.copytree(folder, again, ignore=shutil.ignore_patterns("figures", "report.*"))
    with mpl.rc_context({"font.size": 20, "lines.linewidth": 9, "svg.fonttype": "none"}):
        assert draw_published(again.parent) == [again / "report.html"]
    for name in (*names, "report.html", "report.md"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    assert "11 of 12 training runs are complete" in (again / "report.html").read_text()


def test_svgs_hold_outlines_and_fetch_nothing(drawn):
    paths = list(drawn.glob("results/published/fake/figures/*.svg"))
    assert len(paths) == len(FIGURES)
    for path in paths:
        tags = {element.tag.rpartition("}")[2] for element in ET.parse(path).iter()}
        assert "text" not in tags  # letters are paths, whatever fonts a reader has
        assert "image" not in tags
        assert path.stat().st_size < 1_000_000


def test_figures_are_drawn_whatever_the_times_of_the_files(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "copy", copy_function=shutil.copy2)
    assert "no output are always executed" in snakemake(tmp_path / "copy", "-n", "figures").stdout


def test_a_changed_table_is_refused_by_name(clone):
    path = clone / "results/published/fake/tables/claims.csv"
    path.write_text(path.read_text().replace("inconclusive", "supported"))
    with pytest.raises(ConfigError, match=r"claims\.csv' is damaged: its checksum is not"):
        draw_published(clone / "results/published")
    assert not (clone / "results/published/fake/report.html").exists()


def test_a_changed_configuration_is_refused_by_name(clone):
    path = clone / "results/published/fake/config.yaml"
    config = yaml.safe_load(path.read_text())
    config["train"]["prompts_per_step"] = 8
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="train: other settings than those of study 'fake'"):
        draw_published(clone / "results/published")


def test_a_mixture_is_not_published(study, tmp_path):
    other = load_study(study.model_dump(mode="json") | {"probes": {"continuations": 8}})
    with pytest.raises(ConfigError, match="probes: other settings than those of study 'fake'"):
        publish(other, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_study_without_tables_has_nothing_to_publish(tmp_path):
    with pytest.raises(ConfigError, match="has no tables"):
        publish(small_study(tmp_path), tmp_path / "published")
    with pytest.raises(ConfigError, match="holds no study"):
        draw_published(tmp_path / "published")


@pytest.mark.slow
def test_a_study_from_before_a_table_is_published_and_drawn_without_it(study, tmp_path):
    old = study.model_copy(update={"results": str(tmp_path / "results")})
    shutil.copytree(study.folder / "tables", old.folder / "tables")
    for name in OPTIONAL_TABLES:
        (old.folder / f"tables/{name}.csv").unlink()
    seal(old.folder / "tables" / SUMS, ["."])
    target = publish(old, tmp_path / "published")
    assert not [n for n in OPTIONAL_TABLES if (target / f"tables/{n}.csv").exists()]
    assert draw_published(target.parent) == [target / "report.html"]


def test_publishing_again_replaces_the_folder(study, clone):
    old = clone / "results/published/fake/figures/old.svg"
    old.parent.mkdir()
    old.write_text("old")
    publish(study, clone / "results/published")
    assert not old.exists()


def test_the_command_publishes_a_part_of_a_study(study, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    part = study.model_copy(update={"results": str(tmp_path / "results")})
    shutil.copytree(study.folder / "tables", part.folder / "partial/tables")
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(part.model_dump(mode="json")))
    target = tmp_path / "published"
    assert main(["publish", "--config", str(config), "--published", str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target / "fake")
    assert main(["figures", "--published", str(tmp_path / "nothing")]) == 2
    assert "holds no study" in capsys.readouterr().err


def test_a_renamed_study_keeps_every_number(clone, capsys, unprinted):
    old = clone / "results/published/fake"
    before = {p.relative_to(old): p.read_bytes() for p in old.rglob("*") if p.is_file()}
    assert main(["rename", str(old), "other"]) == 0
    new = old.with_name("other")
    assert capsys.readouterr().out.strip() == str(new)
    assert not old.exists()
    after = {p.relative_to(new): p.read_bytes() for p in new.rglob("*") if p.is_file()}
    changed = {str(name) for name in before | after if before.get(name) != after.get(name)}
    assert changed == {SUMS, "config.yaml", "tables/provenance.csv"}
    pairs = [(before[Path(name)], after[Path(name)]) for name in changed - {SUMS}]
    for lines in ((a.splitlines(), b.splitlines()) for a, b in pairs):
        (pair,) = [(a, b) for a, b in zip(*lines, strict=True) if a != b]
        assert pair == (b"study: fake", b"study: other") or pair[0].startswith(b"study.study,")
    assert load_study(new / "config.yaml").study == "other"
    assert draw_published(new.parent) == [new / "report.html"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("fake", "is there; allowed"), ("../up", "study: '../up'"), ("other", "is damaged")],
)
def test_a_name_that_cannot_be_given_changes_nothing(clone, name, message):
    folder = clone / "results/published/fake"
    if message == "is damaged":
        (folder / "tables/summary.csv").write_text("")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=message):
        rename(folder, name)
    assert {p: p.read_bytes() for p in clone.rglob("results/**/*") if p.is_file()} == before


def test_what_is_not_published_has_no_other_name(tmp_path):
    with pytest.raises(ConfigError, match="is no study"):
        rename(tmp_path / "nothing", "other")


def test_a_note_opens_the_report(drawn):
    for name in ("report.html", "report.md"):
        text = (drawn / "results/published/fake" / name).read_text()
        assert text.count("What it could not say.") == 1


def test_a_note_opens_pages_and_outlives_publishing(study, clone):
    folder = clone / "results/published/fake"
    (folder / "note.md").write_text("What it\ncould not say.\n")
    publish(study, folder.parent)
    content = report_content(study, folder / "tables")
    assert content["note"] == "What it could not say."
    for name in ("readme_headline.md.j2", "readme_studies.md.j2"):
        text = template_environment().get_template(name).render(content | {"folder": "f"})
        assert "\nWhat it could not say.\n" in text
