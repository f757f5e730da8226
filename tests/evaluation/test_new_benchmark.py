"""A benchmark is one row of the registry and a YAML file: add one, and see it wherever one is used.

Validated, counted by the plan, evaluated on a model, and shown in tables and report.
"""

from __future__ import annotations

import json

import pytest
import yaml
from fake_results import small_study, write_figures, write_results
from real_data import byte_model
from transformers import Qwen3ForCausalLM

from vimpo.analysis.aggregate import aggregate
from vimpo.analysis.reading import read_scores
from vimpo.config import ConfigError, load_study
from vimpo.config.benchmarks import BENCHMARKS, Published
from vimpo.evaluation.lm_eval import evaluate_checkpoint
from vimpo.planning.inputs import benchmark_responses
from vimpo.planning.preflight import check_before_running
from vimpo.report.page import write_report
from vimpo.storage.tables import read_table

PROBLEMS = [{"asked": f"What is {n} plus {n}?", "said": f"so: {2 * n}"} for n in range(1, 5)]


@pytest.fixture
def sums(tmp_path, monkeypatch):
    """Registers the benchmark `sums`; its name."""
    rows = tmp_path / "sums.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    definition = tmp_path / "sums.yaml"
    fields = {
        "task": "sums",
        "dataset_path": str(rows),
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{asked}}",
        "doc_to_target": "{{said}}",
        "generation_kwargs": {"until": ["Problem:"]},
    }
    definition.write_text(yaml.safe_dump(fields))
    row = Published(
        definition=str(definition),
        problems=len(PROBLEMS),
        samples=3,
        question="asked",
        answer="said",
        answer_mark="so:",
    )
    monkeypatch.setitem(BENCHMARKS, "sums", row)
    return "sums"


def study_of(model, **fields):
    task = {"kind": "dataset", "datasets": [{"path": "some/dataset"}], "prompt": "{problem}"}
    return load_study(
        {
            "task": task | {"verifier": {"workers": 1}, "benchmarks": {"doubled_sums": fields}},
            "sizes": {"q": {"path": str(model)}},
            "train": {"max_response": 24},
            "grid": {"sizes": ["q"]},
        }
    )


def test_it_is_validated(sums, tmp_path):
    study = study_of("some/model", task=sums)
    assert study.samples_of("doubled_sums") == 3
    with pytest.raises(
        ConfigError,
        match=r"task: 'sum' is unknown; allowed: math500, .*, sums; or any task of lm-eval",
    ):
        study_of("some/model", task="sum")
    with pytest.raises(ConfigError, match="style: sums has no 'stock' style; allowed: boxed"):
        study_of("some/model", task=sums, style="stock")
    copy = tmp_path / "copy.jsonl"
    copy.write_text('{"asked": "1+1?"}\n')
    with pytest.raises(ConfigError, match=r"copy\.jsonl' has no column 'said'; allowed: asked"):
        check_before_running(study_of("some/model", task=sums, path=str(copy)))


def test_it_is_planned(sums):
    assert benchmark_responses(study_of("some/model", task=sums)) == 4 * (3 + 1)
    assert benchmark_responses(study_of("some/model", task=sums, limit=2, samples=7)) == 2 * 8


def test_it_is_evaluated(sums, tmp_path, monkeypatch):
    import torch

    from vimpo.models.networks import load_tokenizer

    model = byte_model(tmp_path / "model")
    tokenizer = load_tokenizer(model)

    def generate(self, input_ids, **kwargs):
        """The right answer to all but the last problem."""
        rows = []
        for ids in input_ids.tolist():
            prompt = tokenizer.decode([i for i in ids if i != 0], skip_special_tokens=True)
            n = int(prompt.split()[2])
            answer = f"\\boxed{{{2 * n if n < 4 else 0}}}"
            rows.append([*ids, *tokenizer(answer).input_ids, 1])
        width = max(map(len, rows))
        return torch.tensor([row + [0] * (width - len(row)) for row in rows])

    monkeypatch.setattr(Qwen3ForCausalLM, "generate", generate)
    study = study_of(model, task=sums)
    output = tmp_path / "eval.json"
    evaluate_checkpoint(model, study, output, tmp_path / "samples.jsonl.gz", digest="d")
    scores = {row["metric"]: row for row in read_scores(tmp_path, study)}
    assert set(scores) == {"sampled", "greedy"}
    for row in scores.values():
        assert (row["benchmark"], row["value"], row["problems"]) == ("doubled_sums", 0.75, 4)
    assert scores["sampled"]["samples"] == 3


def test_it_is_in_the_tables_and_in_the_report(sums, tmp_path):
    chains = {f"chain_{n}": {"operators": n, "problems": 20} for n in (2, 3, 4)}
    study = small_study(
        tmp_path / "results",
        task={"benchmarks": chains | {"doubled_sums": {"task": sums, "limit": 3, "samples": 2}}},
        sizes={"xs": {"path": "some/model"}},
        grid=[{"algorithms": ["vimpo", "ppo", "grpo"], "sizes": ["xs"], "seeds": [1, 2]}],
        evaluation={"samples": 2},
    )
    write_results(study)
    tables, figures = study.folder / "tables", study.folder / "figures"
    aggregate(study, tables)
    accuracy = read_table(tables, "accuracy")
    found = accuracy[accuracy["benchmark"] == "doubled_sums"]
    assert len(found) == len(accuracy) / 4
    assert set(found["problems"]) == {3}
    write_figures(figures)
    write_report(study, tables, figures, study.folder / "report.html")
    for file in ("report.html", "report.md"):
        assert "doubled_sums" in (study.folder / file).read_text()
