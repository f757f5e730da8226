"""Evaluation of a saved checkpoint by lm-eval: avg@k and pass@k by sampling, and greedy.

Five things in lm-eval and transformers silently falsify such scores; each is prevented here and has
a test. With `repeats` alone only the first of the k samples is scored: the tasks carry a
`take_first_k` filter. A checkpoint without an EOS setting continues past EOS, and what follows is
scored: all declared ends count (vimpo/models/ends.py). lm-eval encodes prompts with whatever the
tokenizer adds to a text, at its end too: they are encoded as in training (policy.py). transformers
takes top-k, top-p, penalties and so on from the checkpoint's generation config: it is replaced, and
every decoding setting is given. The answer checks of stock tasks reject right answers: the suite's
own verifier judges.

Neither torch nor lm-eval is imported before an evaluation starts, so commands start fast.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vimpo.config import ConfigError, Study, require
from vimpo.evaluation.benchmarks import BenchmarkTask, benchmark_task, needs_hub
from vimpo.evaluation.cut_off import is_cut_off, unmarked
from vimpo.evaluation.estimators import pass_name
from vimpo.evaluation.registered import RegisteredTask
from vimpo.storage.files import remove_leftovers, write_atomic, write_json
from vimpo.storage.integrity import beside, sealing
from vimpo.tasks.prompts import encode
from vimpo.training.telemetry import versions

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILTER = "all"  # keeps all k responses of a problem


def evaluate_checkpoint(
    model: Path,
    study: Study,
    output: Path,
    samples: Path,
    *,
    digest: str,
    benchmarks: list[str] | None = None,
) -> dict:
    """Score the checkpoint in folder `model`; write `output` (JSON) and `samples` (JSON lines, gz).

    A result has `benchmark`, `metric` (the decoder: `sampled` is avg@k, `greedy` is one response),
    `value`, `stderr` over problems (null for a single problem), `problems`, and `samples`, the
    responses per problem; if asked for, `pass_at`, value and stderr for each k; if the task grades
    steps, `flawless`, their share among the right responses; in the stock style also
    `stock_metric`, `stock_value` and `stock_stderr`, lm-eval's own score of the same responses.
    `results` and `samples` repeat byte for byte on the CPU, and those of one benchmark do not
    depend on which others are asked for. Both files lie in one folder, with their checksums in
    eval.sha256.

    Sets torch's threads and seed. Raises ConfigError for an unknown benchmark, for a folder without
    a model, and for a model whose positions do not fit the longest prompt and its response.
    """
    started = time.perf_counter()
    names = choose_benchmarks(study, benchmarks)
    if not (model / "config.json").is_file():
        raise ConfigError(
            f"model: '{model}' holds no config.json; allowed: a folder written by save_pretrained"
        )
    lm = load_lm(model, study, offline=not needs_hub(study, names))
    check_length(lm, study, names)
    results, logs = run_benchmarks(lm, study, names)
    report = {
        "digest": digest,
        "results": results,
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 3),
    }
    lines = "".join(json.dumps(log) + "\n" for log in logs)
    sums = beside(output)
    remove_leftovers(output.parent, samples.name, output.name, sums.name)
    with sealing(sums, [samples.name, output.name]):
        write_atomic(samples, gzip.compress(lines.encode(), mtime=0))
        write_json(output, report)
    return report


def choose_benchmarks(study: Study, names: Iterable[str] | None = None) -> list[str]:
    """The named benchmarks in the study's order, each once; all of them for None.

    Raises ConfigError for a name that the study does not have, and for an empty list.
    """
    known = study.task.benchmarks
    if names is None:
        return list(known)
    names = set(names)
    for name in sorted(names):
        require(name, known, "benchmarks")
    if not names:
        raise ConfigError(f"benchmarks: none named; allowed: {', '.join(known)}")
    return [name for name in known if name in names]


def load_lm(folder: Path, study: Study, *, offline: bool = True) -> LM:
    """A saved checkpoint as lm-eval's Hugging Face model, without progress bars."""
    _quiet(offline)
    # Before set_up_torch, by which time all libraries are to be loaded: lm_eval.evaluate's too.
    import lm_eval.evaluator  # noqa: F401

    from vimpo.evaluation.policy import PolicyLM
    from vimpo.models.networks import load_policy, load_tokenizer, set_up_torch

    trust = study.runtime.trust_remote_code
    set_up_torch(study.runtime)
    # A run that failed has its scores too, whatever its weights.
    of_a_run = (folder.parent / "manifest.json").is_file()
    policy = load_policy(folder, study.runtime, finite=not of_a_run)
    tokenizer = load_tokenizer(folder, trust)
    _replace_generation_config(policy, tokenizer)
    lm = PolicyLM(
        pretrained=policy,
        tokenizer=tokenizer,
        batch_size=study.evaluation.batch_size,
        trust_remote_code=trust,
    )
    lm.tells_cut_off = study.refuses_truncated
    return lm


def check_length(lm: LM, study: Study, names: list[str]) -> None:
    """Raise ConfigError if lm-eval would cut the longest prompt to make room for a response."""
    for name in names:
        benchmark = benchmark_task(study, name, lm.tokenizer)
        longest = max(map(len, encode(lm.tokenizer, benchmark.prompts())))
        room = lm.max_length - longest
        if benchmark.max_response > room:
            field = "train.max_response"
            if getattr(study.task.benchmarks[name], "max_response", None):
                field = f"task.benchmarks.{name}.max_response"
            raise ConfigError(
                f"{field}: {benchmark.max_response} and the longest prompt of {name} ({longest} "
                f"tokens) exceed the model's {lm.max_length} positions; allowed: at most {room}"
            )


def run_benchmarks(lm: LM, study: Study, names: list[str]) -> tuple[list[dict], list[dict]]:
    """Let lm-eval score `lm` on the named benchmarks: results, and a log of every problem.

    One call per benchmark, and per decoder that a study adds, each from the same seed: the requests
    of a call share batches and random numbers, so a score would otherwise depend on the others.
    `simple_evaluate` calls
    `lm_eval.evaluate` too, but adds 0.4 s per call to describe the machine.
    """
    import torch
    from lm_eval import evaluate
    from lm_eval.tasks import TaskManager

    def calls() -> Iterator[tuple[BenchmarkTask, list[dict]]]:
        for name in names:
            benchmark = benchmark_task(study, name, getattr(lm, "tokenizer", None))
            if isinstance(benchmark, RegisteredTask) and benchmark.chooses:
                yield benchmark, []
                continue
            defined = task_definitions(study, benchmark)
            usual = [task for task in defined if task["task"] not in study.evaluation.decoders]
            yield benchmark, usual
            yield from ((benchmark, [task]) for task in defined if task not in usual)

    results, logs = [], []
    for benchmark, definitions in calls():
        if isinstance(benchmark, RegisteredTask) and benchmark.chooses:
            chosen = benchmark.chosen(lm)
            results += _chosen_results(study, benchmark, chosen)
            logs += _chosen_logs(study, benchmark, chosen)
            continue
        tasks = TaskManager(include_defaults=False).load(definitions)
        torch.manual_seed(study.evaluation.seed)
        # The standard error of a mean is analytic: any number above 0 switches it on.
        outcome = evaluate(lm, tasks, bootstrap_iters=1)
        for metric, scores in outcome["results"].items():
            stderr = scores[f"accuracy_stderr,{FILTER}"]
            results.append(
                {
                    "benchmark": benchmark.name,
                    "metric": metric,
                    "value": scores[f"accuracy,{FILTER}"],
                    "stderr": None if stderr == "N/A" else stderr,
                    "problems": outcome["n-samples"][metric]["effective"],
                    "samples": outcome["configs"][metric]["repeats"],
                }
            )
            if benchmark.stock_metric:
                results[-1] |= {
                    "stock_metric": benchmark.stock_metric,
                    "stock_value": scores[f"stock,{FILTER}"],
                    "stock_stderr": None if stderr == "N/A" else scores[f"stock_stderr,{FILTER}"],
                }
            if ks := study.passes_of(metric):
                results[-1]["pass_at"] = {str(k): _pass_of(scores, k) for k in ks}
            if benchmark.grades_steps and not math.isnan(scores[f"flawless,{FILTER}"]):
                results[-1]["flawless"] = scores[f"flawless,{FILTER}"]
            logs += [_log(benchmark, metric, sample) for sample in outcome["samples"][metric]]
    return results, logs


def task_definitions(study: Study, benchmark: BenchmarkTask) -> list[dict]:
    """lm-eval's definitions of one task per decoder, with the study's settings."""
    template = benchmark.definition()
    until = template.get("generation_kwargs", {}).get("until", [])

    def define(metric: str, k: int, **decoding: float) -> dict:
        length = benchmark.max_response
        kwargs = {"until": list(until), "max_gen_toks": length, "top_k": 0, **decoding}
        return template | {
            "task": metric,
            "repeats": k,
            "filter_list": [{"name": FILTER, "filter": [{"function": "take_first_k", "k": k}]}],
            "generation_kwargs": kwargs,
        }

    def task(name: str) -> dict:
        decoder = study.decoding(name)
        if decoder.is_greedy:
            return define(name, 1, do_sample=False, temperature=0.0, top_p=1.0)
        how = {"temperature": decoder.at(study.train.temperature), "top_p": decoder.top_p}
        return define(name, benchmark.samples, do_sample=True, **how)

    return [task(name) for name in study.decoders()]


def _chosen_results(study: Study, benchmark: RegisteredTask, chosen: dict) -> list[dict]:
    """Nothing is drawn, so every decoder has the same score, and so does pass@k."""
    score = {"value": chosen["value"], "stderr": chosen["stderr"]}
    results = []
    for decoder in study.decoders():
        row = {"benchmark": benchmark.name, "metric": decoder, **score}
        row |= {"problems": len(benchmark.docs)}
        row |= {"samples": study.samples_of(benchmark.name, decoder)}
        if ks := study.passes_of(decoder):
            row["pass_at"] = {str(k): score for k in ks}
        results.append(row)
    return results


def _chosen_logs(study: Study, benchmark: RegisteredTask, chosen: dict) -> list[dict]:
    """One line per problem and decoder; a response is the log-likelihoods of the choices."""
    logs = []
    for decoder in study.decoders():
        k = study.samples_of(benchmark.name, decoder)
        for row, sample in zip(benchmark.rows(), chosen["samples"], strict=True):
            prompt, answer = benchmark.describe(row)
            logs.append(
                {
                    "benchmark": benchmark.name,
                    "metric": decoder,
                    "prompt": prompt,
                    "answer": answer,
                    "responses": [json.dumps(sample["filtered_resps"])] * k,
                    "marks": [int(sample[benchmark.spec.metric] == 1)] * k,
                }
            )
    return logs


def _pass_of(scores: dict, k: int) -> dict:
    """Value and standard error over problems of pass@k."""
    name = pass_name(k)
    stderr = scores[f"{name}_stderr,{FILTER}"]
    return {"value": scores[f"{name},{FILTER}"], "stderr": None if stderr == "N/A" else stderr}


def _log(benchmark: BenchmarkTask, metric: str, sample: dict) -> dict:
    """One problem: its k responses as lm-eval scored them, and a mark for each response.

    cut_off: 1 for those that are wrong because they were cut off, if there are any.
    """
    doc, (responses,) = sample["doc"], sample["filtered_resps"]
    prompt, answer = benchmark.describe(doc)
    cut_off = [int(is_cut_off(response)) for response in responses]
    return {
        "benchmark": benchmark.name,
        "metric": metric,
        "prompt": prompt,
        "answer": answer,
        "responses": [unmarked(response) for response in responses],
        "marks": [int(mark) for mark in benchmark.judged(doc, responses)],
        **({"cut_off": cut_off} if any(cut_off) else {}),
    }


def _quiet(offline: bool) -> None:
    """Log only errors; no network if `offline`. The variables must be set before the imports."""
    os.environ["TQDM_DISABLE"] = os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    if offline:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _replace_generation_config(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Of a checkpoint's generation settings, keep only the tokens that end a response."""
    from transformers import GenerationConfig

    from vimpo.models.ends import ends_of

    # The logits of a policy whose training failed may be NaN. All tokens are then equally likely,
    # and the answer is wrong; otherwise sampling would end the program. Finite logits stay.
    policy.generation_config = GenerationConfig(
        eos_token_id=list(ends_of(policy, tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
        remove_invalid_values=True,
    )
