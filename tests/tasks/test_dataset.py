r"""Real problems as training data: sources, prompts, order, rewards, and what is refused."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from real_data import byte_model, byte_tokenizer, real_file

from vimpo.config import ConfigError, DatasetTask, load_study
from vimpo.planning.preflight import check_before_running
from vimpo.tasks import make_task
from vimpo.tasks.prompts import encode
from vimpo.tasks.sources import check_sources
from vimpo.training.runs import pretrain_base, train_cell
from vimpo.training.trainer import Trainer

ROWS = [{"problem": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(1, 21)]
LIMITS = {"workers": 1, "seconds": 5}


def jsonl(folder, rows, name="problems.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def task_of(path, source=None, **fields):
    source = {"path": path} | (source or {})
    return DatasetTask.model_validate(
        {"kind": "dataset", "datasets": [source], "verifier": LIMITS} | fields
    )


def study_of(folder, path, model, source=None, train=None, sizes=None, **fields):
    return load_study(
        {
            "study": "real",
            "results": str(folder / "results"),
            "task": {
                "kind": "dataset",
                "datasets": [{"path": path} | (source or {})],
                "verifier": LIMITS,
                "benchmarks": {"aime25": {"task": "aime25"}},
            }
            | fields,
            "sizes": {"bytes": {"path": str(model)} | (sizes or {})},
            "train": {"steps": 2, "prompts_per_step": 3, "group_size": 2, "max_response": 6}
            | (train or {}),
            "grid": {"algorithms": ["grpo"], "sizes": ["bytes"], "noise": [0], "seeds": [1]},
        }
    )


@pytest.fixture
def path(tmp_path):
    return jsonl(tmp_path, ROWS)


# --- Sources -------------------------------------------------------------------------------------


def test_parquet_and_jsonl_hold_the_same_problems(tmp_path, path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "problems.parquet")
    tokenizer = byte_tokenizer()
    ours = make_task(task_of(path), tokenizer)
    theirs = make_task(task_of(str(tmp_path / "problems.parquet")), tokenizer)
    assert ours.problems == theirs.problems
    assert len(ours.problems) == 20


def test_columns_are_mapped_and_patterns_find_the_answer(tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": "1+1?"}], "reward": {"truth": ["2"]}},
        {"prompt": [{"role": "user", "content": "2+2?"}], "reward": {"truth": ["4.0"]}},
    ]
    source = {"problem": "prompt", "answer": "reward.truth.0"}
    task = make_task(task_of(jsonl(tmp_path, rows), source), byte_tokenizer())
    assert {p.answer for p in task.problems.values()} == {"2", "4.0"}
    rows = [{"question": "1+1?", "answer": "long 1+1 = 2\n#### 2"}]
    source = {"problem": "question", "answer_pattern": "#### (.+)"}
    task = make_task(task_of(jsonl(tmp_path, rows), source), byte_tokenizer())
    (problem,) = task.problems.values()
    assert problem.answer == "2"


def test_prompts_ask_for_a_box_plainly_or_as_a_chat(path, tmp_path):
    plain = make_task(task_of(path, prompt="Q: {problem} \\boxed{}"), byte_tokenizer())
    (problem, *_) = plain.training_problems(0, 0, 3)
    assert problem.prompt.startswith("Q: What is ")
    assert problem.prompt.endswith("? \\boxed{}")
    assert (
        "\\boxed{}"
        in make_task(task_of(path), byte_tokenizer()).training_problems(0, 0, 1)[0].prompt
    )
    folder = byte_model(tmp_path / "chat", chat=True)
    from vimpo.models.networks import load_tokenizer

    tokenizer = load_tokenizer(folder)
    config = task_of(path, prompt="{problem}", chat_template=True, system="Be brief.")
    (problem, *_) = make_task(config, tokenizer).training_problems(0, 0, 3)
    assert problem.prompt.startswith("<system>Be brief.\n<user>What is ")
    assert problem.prompt.endswith("?\n<assistant>")
    with pytest.raises(ConfigError, match=r"task\.chat_template: true needs a tokenizer with"):
        make_task(config, byte_tokenizer())


def test_equal_problems_are_one_and_long_prompts_are_left_out(tmp_path):
    rows = [*ROWS, ROWS[3], {"problem": "x" * 400, "answer": "1"}]
    task = make_task(task_of(jsonl(tmp_path, rows), max_prompt=200), byte_tokenizer())
    assert task.counts == {
        "rows": 22, "repeated": 1, "conflicting": 0, "too_long": 1, "unreadable": 0,
        "problems": 20,
    }  # fmt: skip


def test_long_prompts_may_lose_their_beginning(tmp_path, path):
    settings = {"prompt": "{problem}", "max_prompt": 17, "long_prompts": "cut"}
    tokenizer = byte_tokenizer()
    task = make_task(task_of(path, **settings), tokenizer)
    assert (task.counts["too_long"], task.counts["problems"]) == (11, 20)
    (whole,) = encode(tokenizer, ["What is 7 plus 7?"])
    assert encode(tokenizer, ["What is 7 plus 7?"], 5) == [whole[-5:]]
    study = study_of(tmp_path, path, byte_model(tmp_path / "model"), **settings)
    (cell, *_) = study.cells()
    trainer = Trainer(study.cell_config(cell), tmp_path / "model")
    rollouts = trainer.collector.collect(0).rollouts
    assert rollouts.prompt_mask.sum(1).tolist() == [17] * len(rollouts.mask)
    ends = {tuple(ids) for ids in encode(tokenizer, [r["problem"] for r in ROWS], 17)}
    assert set(map(tuple, rollouts.prompt_ids.tolist())) <= ends


# --- Order ---------------------------------------------------------------------------------------


def test_the_order_is_fixed_by_seeds_and_texts_and_not_by_the_file(tmp_path, path):
    tokenizer = byte_tokenizer()
    ours = make_task(task_of(path), tokenizer)
    turned = make_task(task_of(jsonl(tmp_path, ROWS[::-1], "turned.jsonl")), tokenizer)
    steps = [[p.id for p in ours.training_problems(1, step, 6)] for step in range(9)]
    assert steps == [[p.id for p in turned.training_problems(1, step, 6)] for step in range(9)]
    assert all(len(set(step)) == 6 for step in steps)
    # 20 problems are three steps of 6; an epoch repeats nothing, and the next has another order.
    for epoch in (steps[:3], steps[3:6], steps[6:]):
        assert len({identity for step in epoch for identity in step}) == 18
    assert steps[:3] != steps[3:6]
    other_run = [p.id for p in ours.training_problems(2, 0, 6)]
    other_order = make_task(task_of(path, order_seed=1), tokenizer).training_problems(1, 0, 6)
    assert other_run != steps[0] != [p.id for p in other_order]
    assert ours.provenance(1)["order_sha256"] == turned.provenance(1)["order_sha256"]
    assert ours.provenance(1)["order_sha256"] != ours.provenance(2)["order_sha256"]


def test_problems_of_validation_are_set_aside(tmp_path, path):
    def draws(task):
        return {p.id for step in range(60) for p in task.training_problems(1, step, 3)}

    tokenizer = byte_tokenizer()
    plain = make_task(task_of(path), tokenizer)
    task = make_task(task_of(path), tokenizer, held_out=5)
    aside = [p.id for p in task.held_out(5)]
    assert len(set(aside)) == 5
    assert draws(task) == draws(plain) - set(aside)
    assert len(draws(plain)) == 20
    assert task.supply() == 15
    turned = make_task(task_of(jsonl(tmp_path, ROWS[::-1], "b.jsonl")), tokenizer, held_out=5)
    assert [p.id for p in turned.held_out(5)] == aside
    # A warm start is shared with studies that set none aside.
    assert task.demonstrations(0, 4, 6) == plain.demonstrations(0, 4, 6)
    with pytest.raises(ConfigError, match="the 16 that a step needs and the 5 of validation"):
        make_task(task_of(path), tokenizer, batch_size=16, held_out=5)


def test_a_run_on_a_dataset_answers_what_it_set_aside(tmp_path, path):
    model = byte_model(tmp_path / "model", positions=300)
    looked_at = {
        "validation": {"every": 2, "problems": 4, "decoders": {"greedy": {"temperature": 0}}}
    }
    study = study_of(tmp_path, path, model, train=looked_at, max_prompt=250)
    folder = train_cell(study, study.cells()[0], quiet=True)
    rows = (folder / "validation.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["0", "greedy"], ["2", "greedy"]]
    assert rows[1].split(",")[3:6] == ["nan", "4", "1"]  # no oracle grades steps here


def test_rewards_are_the_verifiers_verdicts(path):
    task = make_task(task_of(path), byte_tokenizer())
    problems = task.training_problems(0, 0, 4)
    golds = [int(p.answer) for p in problems]
    responses = [
        f"\\boxed{{{golds[0]}}}",
        f"\\boxed{{{golds[1]}+0}}",
        f"\\boxed{{{golds[2] + 1}}}",
        f"it is {golds[3]}",
    ]
    assert task.rewards(problems, responses) == [1.0, 1.0, 0.0, 0.0]
    lenient = make_task(task_of(path, boxed_only=False), byte_tokenizer())
    assert lenient.rewards(problems, responses) == [1.0, 1.0, 0.0, 1.0]
    strict = make_task(task_of(path, evaluated_only=True), byte_tokenizer())
    assert strict.rewards(problems, responses) == [1.0, 0.0, 0.0, 0.0]


def test_golds_must_be_worked_out_where_answers_must_be(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text(
        '{"problem": "6 / 8 =", "answer": "6/8"}\n{"problem": "1 + 1 =", "answer": "2"}\n'
    )
    make_task(task_of(str(path)), byte_tokenizer())
    with pytest.raises(ConfigError, match="1 gold answers cannot be read as worked-out numbers"):
        make_task(task_of(str(path), evaluated_only=True), byte_tokenizer())


# --- Runs ----------------------------------------------------------------------------------------


def test_a_run_on_a_dataset_repeats_and_records_its_data(tmp_path, path):
    model = byte_model(tmp_path / "model")
    study = study_of(tmp_path, path, model)
    (cell,) = study.cells()
    folder = train_cell(study, cell, quiet=True)
    data = json.loads((folder / "manifest.json").read_text())["data"]
    assert data["problems"] == 20
    assert data["sources"][0]["path"] == path
    assert len(data["sources"][0]["sha256"]) == len(data["order_sha256"]) == 64
    metrics = (folder / "metrics.csv").read_bytes()
    again = study.model_copy(update={"results": str(tmp_path / "again")})
    assert (train_cell(again, cell, quiet=True) / "metrics.csv").read_bytes() == metrics
    base = json.loads((study.base_folder("bytes") / "manifest.json").read_text())
    assert "data" not in base


def test_a_base_policy_learns_worked_solutions(tmp_path):
    rows = [row | {"why": f"\\boxed{{{row['answer']}}}"} for row in ROWS]
    model = byte_model(tmp_path / "model")
    sizes = {"pretrain_steps": 6, "pretrain_lr": 0.02}
    study = study_of(tmp_path, jsonl(tmp_path, rows), model, {"solution": "why"}, sizes=sizes)
    study = study.model_copy(
        update={"pretrain": study.pretrain.model_copy(update={"batch_size": 10, "warmup_steps": 1})}
    )
    folder = pretrain_base(study, "bytes", quiet=True)
    losses = [float(line.split(",")[1]) for line in (folder / "metrics.csv").open().readlines()[1:]]
    assert losses[-1] < losses[0]
    assert json.loads((folder / "manifest.json").read_text())["data"]["problems"] == 20


def test_workers_do_not_change_what_a_run_is(tmp_path, path):
    model = byte_model(tmp_path / "model")
    (one, two) = (study_of(tmp_path, path, model, verifier=LIMITS | {"workers": n}) for n in (1, 8))
    assert one.cell_digest(one.cells()[0]) == two.cell_digest(two.cells()[0])
    slower = study_of(tmp_path, path, model, verifier=LIMITS | {"seconds": 9})
    assert slower.cell_digest(one.cells()[0]) != one.cell_digest(one.cells()[0])


@pytest.mark.parametrize(
    ("name", "source", "count"),
    [
        ("gsm8k_train.jsonl", {"problem": "question", "answer_pattern": "#### (.+)"}, 7473),
        ("math500_test.jsonl", {"solution": "solution"}, 500),
        ("aime24_test.jsonl", {"problem": "Problem", "answer": "Answer"}, 30),
        ("amc23_test.jsonl", {}, 40),
    ],
)
def test_real_files_are_read(name, source, count):
    config = task_of(str(real_file(name)), source, max_prompt=100_000)
    task = make_task(config, byte_tokenizer(), batch_size=8)
    assert task.counts["rows"] == count
    assert task.counts["unreadable"] == 0
    assert task.counts["problems"] == count - task.counts["repeated"]
    problems = task.training_problems(0, 0, 8)
    golds = [f"So \\boxed{{{problem.answer}}}." for problem in problems]
    assert task.rewards(problems, golds) == [1.0] * 8


# --- Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"problem": "question"}, r"datasets\[0\]\.problem: .* no column 'question'; allowed: pr"),
        ({"answer": "gold"}, r"datasets\[0\]\.answer: .* no column 'gold'; allowed: problem, ans"),
        ({"solution": "why"}, r"datasets\[0\]\.solution: .* no column 'why'; allowed: problem"),
    ],
)
def test_a_missing_column_is_named_before_anything_runs(tmp_path, path, source, message):
    study = study_of(tmp_path, path, byte_model(tmp_path / "model"), source)
    with pytest.raises(ConfigError, match=message):
        check_before_running(study)


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.parquet"])
def test_an_empty_dataset_is_refused(tmp_path, name):
    file = tmp_path / name
    schema = pa.schema([("problem", pa.string()), ("answer", pa.string())])
    pq.write_table(schema.empty_table(), file) if name.endswith("parquet") else file.touch()
    for check in (check_sources, lambda task: make_task(task, byte_tokenizer())):
        with pytest.raises(ConfigError, match=rf"path: '.*{name}' holds no rows; allowed: a data"):
            check(task_of(str(file)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, "is not a file; allowed: a .jsonl or .parquet file, or a hub name"),
        ("rows.csv", "a,b", r"ends in '.csv'; allowed: .jsonl or .parquet"),
        ("rows.jsonl", "{]", r"line 1 of '.*' is not JSON"),
        ("rows.jsonl", "[1]\n", r"line 1 of '.*' is not an object"),
        ("rows.parquet", "text", r"is not a Parquet file"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=rf"task\.datasets\[0\]\.path: .*{message}"):
        check_sources(task_of(str(tmp_path / name)))


@pytest.mark.parametrize("answer", ["", "The triangle can be cut along its midline.", "\\frac{1}{"])
def test_a_gold_answer_that_cannot_be_read_is_shown(tmp_path, answer):
    path = jsonl(tmp_path, [*ROWS, {"problem": "Why?", "answer": answer}])
    with pytest.raises(ConfigError, match=r"1 gold answers cannot be read .* in row 21 of .*allow"):
        make_task(task_of(path), byte_tokenizer())
    task = make_task(task_of(path, unreadable_answers="drop"), byte_tokenizer())
    assert task.counts["unreadable"] == 1
    assert len(task.problems) == 20


def test_prompts_longer_than_the_limit_are_refused_where_asked_or_where_none_is_left(path):
    with pytest.raises(ConfigError, match=r"task\.max_prompt: 20 of 20 .* than 30 tokens, such"):
        make_task(task_of(path, max_prompt=30), byte_tokenizer())
    config = task_of(path, prompt="{problem}", max_prompt=18, long_prompts="refuse")
    with pytest.raises(ConfigError, match=r"task\.max_prompt: 11 of 20 .* allowed: at least 19"):
        make_task(config, byte_tokenizer())


def test_prompt_and_response_must_fit_the_model(tmp_path, path):
    study = study_of(tmp_path, path, byte_model(tmp_path / "model", positions=300), max_prompt=295)
    with pytest.raises(ConfigError, match=r"task\.max_prompt: 295 leaves no room .* 1 to 294"):
        train_cell(study, study.cells()[0], quiet=True)


def test_too_few_problems_for_a_step_are_refused(path):
    with pytest.raises(ConfigError, match=r"20 problems remain of 20 rows, fewer than the 21"):
        make_task(task_of(path), byte_tokenizer(), batch_size=21)


def test_a_pattern_that_is_missing_in_an_answer_is_refused(path):
    config = task_of(path, {"answer_pattern": "#### (.+)"})
    with pytest.raises(ConfigError, match=r"answer_pattern: '#### \(.\+\)' is not in the answer"):
        make_task(config, byte_tokenizer())


@pytest.mark.parametrize(
    ("special", "missing"), [({"eos_token": "<eos>"}, "pad"), ({"pad_token": "<pad>"}, "eos")]
)
def test_a_tokenizer_without_pad_or_eos_is_refused(tmp_path, path, special, missing):
    study = study_of(tmp_path, path, byte_model(tmp_path / "model", **special))
    with pytest.raises(ConfigError, match=rf"tokenizer of .* has no {missing}_token; one must be"):
        train_cell(study, study.cells()[0], quiet=True)
    assert not (study.run_folder(study.cells()[0]) / "metrics.csv").exists()


def test_a_hub_name_without_network_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = {"path": "nobody/nothing-of-this-name"}
    task = DatasetTask.model_validate({"kind": "dataset", "datasets": [source]})
    with pytest.raises(ConfigError) as caught:
        make_task(task, byte_tokenizer())
    (line,) = str(caught.value).splitlines()
    assert line.startswith("task.datasets[0].path: 'nobody/nothing-of-this-name' could not be")
    assert "allowed: a hub name and split that exist, with network or a filled cache" in line


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"datasets": []}, r"task\.datasets: \[\] is not allowed"),
        ({"prompt": "no place"}, r"task\.prompt: 'no place' does not contain \{problem\}; allowed"),
        (
            {"system": "Be brief."},
            r"task\.system: 'Be brief\.' is part of a chat; allowed: null, or with",
        ),
        ({"symbols": "+"}, r"task\.symbols: unknown key"),
        (
            {"benchmarks": {"m": {"task": "math"}}},
            r"task\.benchmarks\.m\.task: 'math' is unknown; allowed: math500, aime24, aime25, ol",
        ),
        (
            {"benchmarks": {"m": {"task": "amc23", "style": "stock"}}},
            r"task\.benchmarks\.m\.style: amc23 has no 'stock' style; allowed: boxed, or stock wit",
        ),
        (
            {"datasets": [{"path": "a/b", "answer_pattern": "("}]},
            r"'\(' is not a regular expression \(.*\); allowed: one with",
        ),
        ({"datasets": [{"path": "a/b", "answer_pattern": "x"}]}, r"has 0 groups; allowed: one"),
        ({"verifier": {"seconds": 0}}, r"task\.verifier\.seconds: 0 is not allowed"),
    ],
)
def test_bad_fields_are_named_as_the_user_wrote_them(task, message):
    base = {"kind": "dataset", "datasets": [{"path": "a/b"}]}
    sizes = {"q": {"path": "some/model"}}
    with pytest.raises(ConfigError, match=message):
        load_study({"task": base | task, "sizes": sizes, "grid": {"sizes": ["q"]}})


def test_a_kind_of_task_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"task: .*'chain', 'dataset'"):
        load_study({"task": {"kind": "poetry"}})


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("xs", r"sizes\.xs\.path: a model made from scratch reads only chains"),
        ("q", r"sizes\.q\.pretrain_steps: needs worked solutions; allowed: 0"),
    ],
)
def test_sizes_must_suit_the_data(size, message):
    with pytest.raises(ConfigError, match=message):
        load_study(
            {
                "task": {"kind": "dataset", "datasets": [{"path": "a/b"}]},
                "sizes": {"q": {"path": "some/model", "pretrain_steps": 5}},
                "grid": {"sizes": [size]},
            }
        )
