"""README, CONTRIBUTING and docs/: their links, names, commands and numbers are true."""

import json
import re
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from vimpo.cli import main
from vimpo.config import load_study

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests/benchmarks/results"
OTHERS = ("README.md", "CONTRIBUTING.md", "tests/benchmarks/README.md", "report/LOG.md")
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in OTHERS)]
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def page_id(path):
    return path.relative_to(ROOT).as_posix()


def prose(path):
    """A page without its code blocks."""
    return FENCE.sub("", path.read_text())


def slugs(path):
    """Anchors of a page's headings, as GitHub makes them."""
    found = []
    for heading in re.findall(r"^#+ +(.+?) *$", prose(path), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        repeated = sum(re.sub(r"-\d+$", "", other) == slug for other in found)
        found.append(f"{slug}-{repeated}" if repeated else slug)
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_relative_link_leads_somewhere(page):
    targets = [t for t in LINK.findall(prose(page)) if not re.match(r"[a-z]+:", t)]
    broken = []
    for target in targets:
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in slugs(path)):
            broken.append(target)
    assert not broken


def test_anchors_are_those_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A GRPO step: TRL's, `code_x`\n```\n# no heading\n```\n## [Link](x.md) & more\n## Twice\n"
        "## Twice\n"
    )
    expected = ["a-grpo-step-trls-code_x", "link--more", "twice", "twice-1"]
    assert slugs(page) == expected


def test_every_guide_is_in_the_index():
    linked = set(LINK.findall(prose(ROOT / "README.md")))
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= linked
    assert "CONTRIBUTING.md" in linked


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_file_that_is_named_exists(page):
    """Paths of the repository in backticks or commands; `<...>` and `*` stand for names."""
    folders = "vimpo|workflow|profiles|report|docs|examples|envs|tests"
    names = re.findall(rf"(?<![\w./-])(?:{folders})/[\w./<>*-]*", page.read_text())
    patterns = {re.sub(r"<[^>]*>", "*", name.rstrip(".")) for name in names}
    assert not sorted(p for p in patterns if not (ROOT / p).exists() and not any(ROOT.glob(p)))


def test_every_module_of_the_table_of_packages_is_there():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", prose(ROOT / "docs/developing.md"), re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / "vimpo").glob("*/__init__.py")}
    assert {package for package, _ in rows} == folders
    named = [(package, name) for package, row in rows for name in re.findall(r"`(\w+\.py)`", row)]
    assert len(named) > 20
    assert not [pair for pair in named if not ROOT.joinpath("vimpo", *pair).is_file()]


def test_every_command_that_is_shown_exists(capsys):
    with suppress(SystemExit):
        main(["--help"])
    known = set(re.findall(r"^\W*([a-z]+)\b", capsys.readouterr().out, re.MULTILINE))
    for page in PAGES:
        shown = set(re.findall(r"python -m vimpo ([a-z]+)", page.read_text()))
        assert shown <= known, page


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_the_readme_has_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    assert "pip install -e . && snakemake --cores all" in readme
    assert "pip install -e '.[test]' && pytest" in readme
    assert "pip install -e '.[test]' && pytest" in (ROOT / ".ci/run").read_text()


def test_the_readme_links_the_loss_from_a_section_of_its_own():
    section = (ROOT / "README.md").read_text().partition("\n## Where the loss is\n")[2]
    assert "](vimpo/objectives/vimpo.py)" in section.lstrip().splitlines()[0]


def test_the_studies_that_are_shown_are_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = [
        block
        for page in PAGES
        for block in re.findall(r"```yaml\n(study:.*?)```", page.read_text(), re.DOTALL)
    ]
    names = {load_study(yaml.safe_load(block)).study for block in blocks}
    assert names == {"mine", "rloo", "rloo-asked", "real", "sums", "afternoon"}


def test_the_jobs_that_are_shown_are_valid():
    (block,) = re.findall(
        r"```yaml\n(cluster:.*?)```", (ROOT / "docs/cluster.md").read_text(), re.DOTALL
    )
    study = load_study(ROOT / "workflow/config/paper.yaml").model_dump(mode="json")
    jobs = load_study(study | yaml.safe_load(block)).cluster
    assert jobs.sizes["qwen3-8b"].partition == "gpu-large"


def layout():
    """Paths of README's tree; an entry of `vimpo/` is indented by two spaces per level."""
    tree = (ROOT / "README.md").read_text().partition("## Layout")[2].split("```")[1]
    above, found = [], []
    for line in tree.strip("\n").splitlines():
        level = (len(line) - len(line.lstrip())) // 2
        above[level:] = [line.split()[0]]
        found.append("".join(above))
    return found


def test_the_layout_names_every_package_and_nothing_else():
    listed = layout()
    assert not [path for path in listed if not (ROOT / path).exists()]
    packages = [init.parent for init in (ROOT / "vimpo").rglob("__init__.py")]
    assert len(packages) > 12
    modules = [p for p in (ROOT / "vimpo").glob("*.py") if not p.name.startswith("__")]
    inside = {f"{p.relative_to(ROOT).as_posix()}/" for p in packages}
    assert inside | {p.relative_to(ROOT).as_posix() for p in modules} <= set(listed)
    assert len(set(listed)) == len(listed)


def written(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def ranges(found, key):
    medians = [one[key]["median"] for one in found["sizes"].values()]
    return f"{min(medians):.2f} to {max(medians):.2f}"


def speed():
    """Sentences of docs/benchmarks.md, with the numbers that the scripts wrote."""
    trl, steps, grid, kl = (written(n) for n in ("against_trl", "steps", "grid", "chunked_kl"))
    first = trl["cases"]["128 x 3"]
    seconds = {who: first["median"][who]["total"] for who in ("ours", "trl")}
    ahead = [one["trl_over_ours"]["total"] for one in trl["cases"].values()]
    few, more = (
        (b["seconds"] - a["seconds"]) / (b["cells"] - a["cells"])
        for a, b in pairwise(grid["grids"])
    )
    counts = [g["cells"] for g in grid["grids"][1:]]
    decoding = [case["ratio"] for case in written("decoding")["cases"]]
    tokens = max(case["tokens"] for case in kl["cases"])
    peak = {case["way"]: case["peak_mb"] for case in kl["cases"] if case["tokens"] == tokens}
    dry = grid["dry_run"]
    yield (
        f"a GRPO step takes {seconds['ours']:.2f} s here and {seconds['trl']:.2f} s in TRL, a "
        f"ratio of {first['trl_over_ours']['total']:.2f}; over all cases {min(ahead):.2f} to "
        f"{max(ahead):.2f}"
    )
    yield (
        f"a VIMPO step takes {ranges(steps, 'time_to_ppo')} of the time of PPO's and "
        f"{ranges(steps, 'time_to_grpo')} of GRPO's"
    )
    large, chunks = (steps["sizes"][n]["memory_to_ppo"]["median"] for n in ("vocabulary", "chunks"))
    yield f"it takes {large:.2f} of PPO's memory, or {chunks:.2f} with `logit_chunk`"
    yield (
        f"rollouts of the ladder's models take {min(decoding):.2f} to {max(decoding):.2f} times "
        "less processor time"
    )
    yield (
        f"every further cell of the tiny study takes {few:.1f} s up to {counts[0]} cells and "
        f"{more:.1f} s up to {counts[1]}"
    )
    yield f"on one core {grid['start_up_seconds']:.1f} s of a cell are start-up"
    yield (f"on {dry['cells']:,} cells takes {dry['seconds']:.0f} s and {dry['peak_mb']:.0f} MB")
    yield (
        f"at {tokens} tokens and a vocabulary of {kl['vocabulary']:,}, exact KL in chunks peaks at "
        f"{peak['chunked']:.0f} MB instead of {peak['plain']:.0f} MB"
    )


def verifier():
    found = written("verifier")
    whole, hard = found["all"]["all"], found["all"]["hardverify_math"]
    alone = sum(found["math_verify_alone"].values())
    yield (
        f"On {whole['rows']} labelled answers it agrees with {whole['agree']} labels "
        f"({whole['fp']} wrong answers accepted, {whole['fn']} right ones refused); math-verify "
        f"alone agrees with {alone}"
    )
    yield (
        f"Without {hard['rows']} answers chosen to defeat such verifiers, it agrees with "
        f"{whole['agree'] - hard['agree']} of {whole['rows'] - hard['rows']}"
    )


def test_what_docs_say_of_a_real_model_is_what_the_script_measured():
    measurements = written("real_model")["rows"]
    found = {(r["algorithm"], r["setting"]): r["memory"] / 2**30 for r in measurements}
    section = (ROOT / "docs/real-models.md").read_text().partition("## On a laptop")[2]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| ")][1:]
    settings = ("as it is", "lora", "lora, micro_batch: 4, logit_chunk: 256", "all of them")
    for setting, row in zip(settings, rows[1:5], strict=True):
        for algorithm, cell in zip(("grpo", "vimpo", "ppo"), row[1:], strict=True):
            measured = found.get((algorithm, setting))
            assert cell.strip() == (f"{measured:.2f} GiB" if measured else "")
    seconds = {
        r["setting"]: r["seconds"]["total"] for r in measurements if r["algorithm"] == "vimpo"
    }
    assert f"took {seconds['bfloat16'] / seconds['as it is']:.1f} times as long" in section


@pytest.mark.parametrize("sentences", [speed, verifier])
def test_benchmarks_says_what_the_scripts_wrote(sentences):
    text = " ".join((ROOT / "docs/benchmarks.md").read_text().split())
    missing = [sentence for sentence in sentences() if sentence not in text]
    assert not missing
