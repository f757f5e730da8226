"""The report: self-contained, complete, accessible, and without a number of its own."""

import re
import shutil
from html.parser import HTMLParser

import pytest
from fake_results import small_study, write_figures, write_results

from vimpo.analysis.aggregate import aggregate
from vimpo.config import Cell, ConfigError, dump_yaml, load_study
from vimpo.report.figures.registry import FIGURES
from vimpo.report.page import TEMPLATES, report_content, write_report
from vimpo.report.tables import Table
from vimpo.storage.integrity import SUMS, seal
from vimpo.storage.tables import read_table, write_table

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
    absent = {"sweeps", "sweeps_curves", "headroom"}  # this study names no sweeps and has no oracle
    assert len(images) == len(FIGURES) - len(absent)
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


@pytest.mark.slow
def test_a_sweep_of_one_algorithm_is_called_a_map(written, tmp_path):
    rows = [
        {"sweep": sweep, "objective": objective, "trial": trial, "axis": "beta", "at": at}
        | {"settings": "", "metric": "sampled accuracy", "failed": 0, "chosen": chosen}
        | {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 2, "expected": 2, "confidence": 0.95}
        for sweep, objective, trial, at, chosen in (
            ("tuning", "vimpo", "vimpo_1", 0.02, "yes"),
            ("tuning", "ppo", "ppo_1", 0.02, "yes"),
            ("stability", "vimpo", "vimpo_1", 0.02, ""),
            ("stability", "vimpo", "vimpo_2", 0.5, "yes"),
        )
    ]
    tables, figures = tmp_path / "tables", tmp_path / "figures"
    named = tmp_path / "sweeps.csv"
    write_table(named, rows)
    study = written.model_copy(update={"sweeps": [str(named)]})
    aggregate(study, tables)
    shutil.copytree(written.folder / "figures", figures)
    shutil.copy(next(figures.glob("*.svg")), figures / "sweeps.svg")
    write_report(study, tables, figures, tmp_path / "report.html")
    text = " ".join(Page((tmp_path / "report.html").read_text()).words)
    assert "A sweep of a single algorithm (stability) maps where it is stable" in text
    marked = [[entry.text for entry in row] for row in report_content(study, tables)["sweeps"].rows]
    assert [(row[0], row[-1]) for row in marked] == [
        ("tuning", "best"),
        ("tuning", "best"),
        ("stability", ""),
        ("stability", "best"),
    ]


def test_tuning_budget_counts_learning_rates():
    grid = [{"algorithms": ["vimpo", "vimpo_fast", "vimpo_strong", "grpo"]}]
    algorithms = {
        "vimpo_fast": {"objective": "vimpo", "lr_scale": 3.0},
        "vimpo_strong": {"objective": "vimpo", "beta": 0.3},
    }
    from vimpo.report.tables import tuning

    study = load_study({"grid": grid, "algorithms": algorithms})
    assert [row[-1].text for row in tuning(study, {}).rows] == ["2", "2", "1", "1"]
    assert tuning(study, {}).rows[1][1].text == "0.0006 (xs), 0.0006 (s)"


def test_the_papers_table_stands_next_to_ours(written):
    content = report_content(written, written.folder / "tables")
    rows = {(row[0].text, row[1].text): row for row in content["paper"].rows}
    assert rows["VIMPO", "noise 0.25"][6].text == "35.9"
    assert rows["naive GRPO", "noise 0"][-1].text == "n/a"
    ours = rows["GRPO", "noise 0"][-1]
    assert ours.text != "n/a"
    assert "n = 4" in ours.detail
    assert any("39.6" in note for note in content["paper"].notes)
    assert {e.text for e in rows["PPO", "noise 0"][2:7]} == {"–"}  # the paper has no PPO
    assert "n = 4" in rows["PPO", "noise 0"][-1].detail
    # an average is that of its four benchmarks
    for row in (r for r in content["paper"].rows if r[0].text != "PPO"):
        values = [float(entry.text) for entry in row[2:7]]
        assert sum(values[:4]) / 4 == pytest.approx(values[4], abs=0.11)
    setup = {row[0].text: row for row in content["paper_setup"].rows}
    assert setup["prompts per step"][2].text == "16"
    assert setup["VIMPO beta"][2].text == "0.02"
    assert setup["whitening and token means"][2].text == "batch"
    assert setup["overlong prompts"][2].text == "none is too long"


@pytest.mark.parametrize("template", sorted(p.name for p in TEMPLATES.glob("*.j2")))
def test_no_template_holds_a_number(template):
    if template == "style.css.j2":
        pytest.skip("lengths of a style sheet are no results")
    assert_no_digit((TEMPLATES / template).read_text())


@pytest.mark.parametrize("name", FIGURES)
def test_no_caption_holds_a_number(name):
    entry = FIGURES[name]
    assert_no_digit(" ".join([entry.title, entry.caption, entry.alt]))


def assert_no_digit(text):
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
    items = [*content.values(), *content["other_scores"].values()]
    assert len(blocks) == sum(isinstance(item, Table) and len(item.rows) > 0 for item in items)
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
    seal(tables / SUMS, [path.name for path in tables.glob("*.csv")])
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
    with pytest.raises(ConfigError, match=r"headline\.svg' is not a file"):
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
    content = report_content(written, written.folder / "tables")
    assert len(content["findings"]) == 7
    parts = [(part, f["verdicts"]) for f in content["findings"] for part in f["parts"]]
    assert sorted(part.part for part, _ in parts) == sorted(tests["part"])
    for part, verdicts in parts:
        verdict = f"; {part.verdict}" if len(verdicts) > 1 else ""
        for shown in (text, markdown):
            assert f"({part.interval_n}{verdict})" in shown
    assert "Is VIMPO better than GRPO here?" in text
    assert "**Is VIMPO better than GRPO here? " in markdown
    assert sum(content["verdict_counts"].values()) == 6
    assert len(content["claims_table"].rows) == len(tests) == content["part_count"]
    assert len(content["decoders"].rows) == 4  # C1, C2, and C4 twice
    facts = claims[(claims.kind == "fact") & (claims.role != "by_size")]  # those are with the tests
    assert len(content["facts"].rows) == len(facts)


def test_limits_are_those_of_the_study(written):
    text = " ".join(page_of(written).words)
    assert "The policies have 107k to 371k parameters and are made here from scratch" in text
    assert "the paper trained Qwen3-4B-Base" in text
    assert "chains of 2, 3, 4 operations on numbers up to 9" in text
    assert f"at most {written.train.max_response} tokens" in text
    assert "(here 0.02, in the paper 5e-4)" in text
    assert "With a single update per batch VIMPO, GRPO and PPO are close by construction" in text
    content = report_content(written, written.folder / "tables")
    assert content["limits"] == ["scale", "close", "transfers", "open", "tests"]


def test_what_does_not_limit_a_study_is_not_said(tmp_path):
    study = small_study(tmp_path, train={"epochs": 2}, grid={"algorithms": ["grpo"], "seeds": [4]})
    tables, figures = tmp_path / "tables", tmp_path / "figures"
    aggregate(study, tables)
    write_report(study, tables, write_figures(figures), tmp_path / "report.html")
    text = (tmp_path / "report.md").read_text()
    assert "close by construction" not in text
    assert "beta has to fall as responses grow." in text
    assert "on 1 seed per cell" in text
    assert "an unknown number of parameters" in text


def test_tables_of_a_later_version_are_known_by_the_text_of_their_configuration(written, tmp_path):
    """A new field changes the digest of its section, but not the file that was published."""
    config = tmp_path / "config.yaml"
    config.write_text(dump_yaml(written))
    later = written.model_copy(update={"claims": written.claims.model_copy(update={"power": 0.9})})
    with pytest.raises(ConfigError, match="claims: other settings"):
        report_content(later, written.folder / "tables")
    assert report_content(later, written.folder / "tables", config=config)
