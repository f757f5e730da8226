"""The report: self-contained, complete, accessible, and without a number of its own."""

import re
import shutil
from html.parser import HTMLParser

import jinja2
import numpy as np
import pandas as pd
import pytest
from fake_results import small_study, write_figures, write_results

from vimpo.aggregate import aggregate
from vimpo.config import Cell, ConfigError, dump_yaml, load_study
from vimpo.contents import FIGURES
from vimpo.report import TEMPLATES, report_content, write_report
from vimpo.report_claims import part_view
from vimpo.report_tables import Table
from vimpo.tables import read_table

LOST = Cell("ppo", "s", "0.25", 1)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    study = small_study(tmp_path_factory.mktemp("report"))
    write_results(study)
    shutil.rmtree(study.run_folder(LOST))
    tables, figures = study.folder / "tables", study.folder / "figures"
    aggregate(study, tables)
    write_figures(figures)
    write_report(study, tables, figures, study.folder / "report.html")
    return study


def page_of(study):
    return Page((study.folder / "report.html").read_text())


def test_the_page_is_whole_and_fetches_nothing(written):
    page = page_of(written)
    assert page.open == []
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/svg+xml;base64,"))
    anchors = {a["href"][1:] for t, a in page.elements if t == "a"}
    assert anchors <= {a.get("id") for _, a in page.elements}
    assert "url(" not in (written.folder / "report.html").read_text()


def test_every_figure_is_there_with_alternative_text(written):
    images = [a for t, a in page_of(written).elements if t == "img"]
    assert len(images) == len(FIGURES) - 1  # this study names no sweeps
    assert all(len(image["alt"]) > 60 for image in images)
    assert len({image["alt"] for image in images}) == len(images)


def test_headline_numbers_are_those_of_the_summary(written):
    text = " ".join(page_of(written).words)
    summary = read_table(written.folder / "tables", "summary")
    rows = summary[(summary["benchmark"] == "mean") & (summary["metric"] == "sampled")]
    assert len(rows) == 3 * 7
    for row in rows.itertuples():
        assert f"{100 * row.mean:.1f}" in text
        if row.low == row.low:
            assert f"[{100 * row.low:.1f}, {100 * row.high:.1f}], n = {row.n:.0f}" in text


def test_what_is_missing_is_named_with_the_reason(written):
    text = " ".join(page_of(written).words)
    assert "23 of 24 training runs are complete" in text
    assert LOST.name in text
    assert "n = 1 of 2, no interval: one seed has no spread" in text
    assert "n = 3 of 4, no interval: one seed at size s" in text


def test_every_hyperparameter_of_the_algorithms_used_is_printed(written):
    content = report_content(written, written.folder / "tables")
    table = content["hyperparameters"]
    printed = {row[0].text for row in table.rows}
    for name in ("vimpo", "ppo", "grpo"):
        assert set(written.algorithms[name].model_dump()) <= printed
    beta = next(row for row in table.rows if row[0].text == "beta")
    assert [entry.text for entry in beta[1:]] == ["0.02", "–", "–"]
    shared = {row[0].text for row in content["shared"].rows}
    assert {f"train.{key}" for key in written.train.model_dump()} <= shared


def test_tuning_budget_counts_learning_rates():
    grid = [{"algorithms": ["vimpo", "vimpo_fast", "vimpo_strong", "grpo"]}]
    algorithms = {
        "vimpo_fast": {"objective": "vimpo", "lr_scale": 3.0},
        "vimpo_strong": {"objective": "vimpo", "beta": 0.3},
    }
    from vimpo.report_tables import tuning

    study = load_study({"grid": grid, "algorithms": algorithms})
    assert [row[-1].text for row in tuning(study, {}).rows] == ["2", "2", "1", "1"]
    assert tuning(study, {}).rows[1][1].text == "0.0006 (xs), 0.0006 (s)"


def test_the_papers_table_stands_beside_ours(written):
    content = report_content(written, written.folder / "tables")
    rows = {(row[0].text, row[1].text): row for row in content["paper"].rows}
    assert rows["VIMPO", "noise 0.25"][6].text == "35.9"
    assert rows["naive GRPO", "noise 0"][-1].text == "n/a"
    ours = rows["GRPO", "noise 0"][-1]
    assert ours.text != "n/a"
    assert "n = 4" in ours.detail
    assert any("39.6" in note for note in content["paper"].notes)
    # an average is that of its four benchmarks
    for row in content["paper"].rows:
        values = [float(entry.text) for entry in row[2:7]]
        assert sum(values[:4]) / 4 == pytest.approx(values[4], abs=0.11)
    setup = {row[0].text: row for row in content["paper_setup"].rows}
    assert setup["prompts a step"][2].text == "16"
    assert setup["VIMPO beta"][2].text == "0.02"


@pytest.mark.parametrize("template", sorted(p.name for p in TEMPLATES.glob("*.j2")))
def test_no_template_holds_a_number(template):
    if template == "style.css.j2":
        pytest.skip("lengths of a style sheet are no results")
    text = (TEMPLATES / template).read_text()
    text = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", "", text)
    assert not re.search(r"\d", text), re.search(r".*\d.*", text).group()


def test_the_markdown_twin_has_the_same_tables(written):
    markdown = (written.folder / "report.md").read_text()
    html = " ".join(page_of(written).words)
    for link in re.findall(r"!\[[^]]+\]\(([^)]+)\)", markdown):
        assert (written.folder / link).is_file()
        assert not link.startswith("/")
    blocks = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    content = report_content(written, written.folder / "tables")
    assert len(blocks) == sum(
        isinstance(item, Table) and len(item.rows) > 0 for item in content.values()
    )
    for block in blocks:
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(columns) == 1, block
    for row in content["per_size"].rows:
        assert all(entry.text in markdown and entry.text in html for entry in row)
    assert "{{" not in markdown
    assert "{%" not in markdown


def test_the_report_repeats_byte_for_byte(written, tmp_path):
    folder = written.folder
    write_report(written, folder / "tables", folder / "figures", tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == (folder / "report.html").read_bytes()


def test_names_are_escaped(written, tmp_path):
    tables = tmp_path / "tables"
    shutil.copytree(written.folder / "tables", tables)
    with (tables / "provenance.csv").open("a") as file:
        file.write("hardware.cpu,<script>|,1\n")
    write_report(written, tables, written.folder / "figures", tmp_path / "report.html")
    assert "&lt;script&gt;" in (tmp_path / "report.html").read_text()
    assert "<script>\\|" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": [{"seeds": [1]}]}, "seed-2.* not in the grid"),
        ({"grid": [{"seeds": [1, 2, 3]}]}, "seed-3.* neither in accuracy.csv nor"),
        ({"statistics": {"confidence": 0.9}}, "0.95: intervals of another confidence"),
        (
            {"claims": {"accuracy_margin": 0.3}},
            "study, statistics, claims: other settings than those of",
        ),
        (
            {"algorithms": {"vimpo": {"beta": 0.3}}},
            "study, algorithms, statistics: other settings than",
        ),
        ({"task": {"benchmarks": {"mine": {"operators": 2}}}}, "chain_easy.* benchmarks not in"),
    ],
)
def test_tables_of_another_study_are_refused_by_name(written, change, message, tmp_path):
    other = load_study({"study": "other"} | change)
    with pytest.raises(ConfigError, match=message):
        write_report(other, written.folder / "tables", written.folder / "figures", tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


def test_missing_figures_are_named(written, tmp_path):
    with pytest.raises(ConfigError, match=r"accuracy_by_benchmark\.svg|learning_curves\.svg"):
        write_report(written, written.folder / "tables", tmp_path, tmp_path / "r.html")


@pytest.mark.parametrize("change", [{"sizes": ["xs"], "seeds": [4]}, {"noise": [0]}])
def test_small_grids_and_empty_folders_still_make_a_report(change, tmp_path):
    study = small_study(tmp_path, grid=[change])
    tables, figures = tmp_path / "tables", tmp_path / "figures"
    aggregate(study, tables)
    write_figures(figures)
    write_report(study, tables, figures, tmp_path / "report.html")
    assert "0 of" in (tmp_path / "report.html").read_text()


# --- Claims --------------------------------------------------------------------------------------


def test_the_claims_table_and_the_sentences_are_those_of_the_csv(written):
    claims = read_table(written.folder / "tables", "claims")
    tests = claims[claims["kind"] == "test"]
    text = re.sub(r"\s+", " ", " ".join(page_of(written).words))
    markdown = (written.folder / "report.md").read_text()
    for row in tests.itertuples():
        words = f"{row.statement[0].upper()}{row.statement[1:]}: {row.verdict}"
        assert words in text
        assert words in markdown
    content = report_content(written, written.folder / "tables")
    assert sum(content["verdict_counts"].values()) == 6
    assert len(content["claims_table"].rows) == len(tests) == content["part_count"]
    assert len(content["facts"].rows) == len(claims) - len(tests)


def part(**changes):
    row = {
        "claim": "C1",
        "kind": "test",
        "statement": "it holds",
        "metric": "accuracy",
        "unit": "",
        "effect": 0.0123,
        "low": -0.5,
        "high": 0.52,
        "n": 4,
        "expected": 4,
        "counted": "pairs",
        "p": 0.1,
        "p_holm": 0.2,
        "threshold": -0.02,
        "side": "above",
        "verdict": "inconclusive",
        "per_size": 2,
        "needed_per_size": 17,
        "reason": "",
    }
    return pd.Series(row | changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            "It holds: inconclusive; 0.012 [-0.500, 0.520] over 4 pairs, asked > -0.02 (p 0.2); "
            "as seen, about 17 seeds a size would settle it, there are 2.",
        ),
        (
            {"verdict": "refuted", "p_holm": 1e-9, "n": 3, "unit": "ratio", "threshold": 1.0},
            "It holds: refuted; 0.0123× [-0.5×, 0.52×] over 3 of 4 pairs, asked > 1× (p < 0.001).",
        ),
        (
            dict(low=np.nan, high=np.nan, p_holm=np.nan, reason="one seed has no spread"),
            "It holds: inconclusive; 0.012 over 4 pairs, asked > -0.02; not settled by this study: "
            "one seed has no spread.",
        ),
        (
            dict(effect=np.nan, low=np.nan, p_holm=np.nan, reason="no pair at size s"),
            "It holds: inconclusive, not available: no pair at size s.",
        ),
        (
            dict(needed_per_size=np.inf, counted="rounds"),
            "It holds: inconclusive; 0.012 [-0.500, 0.520] over 4 rounds, asked > -0.02 (p 0.2); "
            "as seen, more than ten thousand rounds a size would settle it, there are 2.",
        ),
    ],
)
def test_a_sentence_says_what_its_row_says(changes, sentence):
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES))
    template = environment.from_string(
        '{% import "text.j2" as text with context %}{{ text.sentence(part) }}'
    )
    assert template.render(part=part_view(part(**changes))) == sentence


def test_tables_of_a_later_version_are_known_by_the_text_of_their_configuration(written, tmp_path):
    """A new field changes the digest of its section, but not the file that was published."""
    config = tmp_path / "config.yaml"
    config.write_text(dump_yaml(written))
    later = written.model_copy(update={"claims": written.claims.model_copy(update={"power": 0.9})})
    with pytest.raises(ConfigError, match="claims: other settings"):
        report_content(later, written.folder / "tables")
    assert report_content(later, written.folder / "tables", config=config)
