"""Inputs of a plan: the device's row, the shape of each size, the number of responses."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vimpo.config import ConfigError, DatasetTask, ModelSpec, Study, require
from vimpo.config.asked import Benchmark, RealBenchmark, TextBenchmark
from vimpo.config.cache import remembered
from vimpo.config.model_paths import gguf_file
from vimpo.config.types import local_path
from vimpo.models import memory
from vimpo.models.memory import Shape

DEVICES = Path(__file__).with_name("devices.csv")


@dataclass(frozen=True)
class Device:
    """A row of devices.csv, overridden by the study's own assumptions."""

    name: str
    memory_gib: float | None
    flops: float
    bandwidth: float
    train_utilisation: float
    decode_utilisation: float
    layer_seconds: float
    source: str


def load_device(study: Study) -> Device:
    """The device that the study is planned for. Raises ConfigError for an unknown one."""
    with DEVICES.open(encoding="utf-8") as file:
        rows = {row["device"]: row for row in csv.DictReader(file)}
    cpu = study.runtime.device == "cpu"
    name = study.plan.device or ("cpu-core" if cpu else "h100")
    require(name, rows, "plan.device")
    row = rows[name]
    if (row["kind"] == "cpu") != cpu:
        allowed = [n for n, r in rows.items() if (r["kind"] == "cpu") == cpu]
        raise ConfigError(
            f"plan.device: '{name}' does not go with runtime.device: {study.runtime.device}; "
            f"allowed: {', '.join(allowed)}"
        )

    def assumed(field: str) -> float:
        own = getattr(study.plan, field)
        return float(row[field]) if own is None else own

    return Device(
        name=name,
        memory_gib=float(row["memory_gib"]) if row["memory_gib"] else None,
        flops=float(row[f"tflops_{study.runtime.dtype}"]) * 1e12,
        bandwidth=float(row["bandwidth_gb_s"]) * 1e9,
        train_utilisation=assumed("train_utilisation"),
        decode_utilisation=assumed("decode_utilisation"),
        layer_seconds=assumed("layer_seconds"),
        source=row["source"],
    )


def shape_of(name: str, spec: ModelSpec) -> Shape | None:
    """The shape of a size: a rung's, a local model's, or a published one; else None."""
    if spec.path is None:
        return memory.shape_of(name, spec)
    if spec.sha256 and (file := gguf_file(spec.path)):
        read = remembered("gguf", spec.sha256, partial(_read_config, spec.path))
        return _shape_of(name, read, spec.path, str(file)) if read else None
    config = Path(spec.path).expanduser() / "config.json"
    if config.is_file():
        return _shape_of(name, config.read_text(encoding="utf-8"), config.parent, str(config))
    family = spec.path.split("/")[-1].removesuffix("-Base")
    known = {shape.name: shape for shape in memory.PUBLISHED}
    return replace(known[family], name=name) if family in known else None


def _read_config(path: str) -> str:
    """A GGUF file's configuration as a config.json; empty if it cannot be read here."""
    try:
        from vimpo.models.networks import load_model_config

        return load_model_config(path).to_json_string()
    except (ConfigError, ImportError):
        return ""


def _shape_of(name: str, config: str, path: Path | str, source: str) -> Shape | None:
    """From the text of a Hugging Face config.json; None if it lacks a number that a decoder has.

    path: of the model, which counts its own parameters.
    """
    whole = json.loads(config)
    c = whole | whole.get("text_config", {})
    total, active = _counted(config, path) or (None, None)
    try:
        heads = c["num_attention_heads"]
        return Shape(
            name,
            vocabulary=c["vocab_size"],
            hidden=c["hidden_size"],
            layers=c["num_hidden_layers"],
            heads=heads,
            kv_heads=c.get("num_key_value_heads") or heads,
            head_dim=c.get("head_dim") or c["hidden_size"] // heads,
            # of all experts that a token is sent to
            intermediate=(c.get("moe_intermediate_size") or c["intermediate_size"])
            * (c.get("num_experts_per_tok") or 1),
            tied=c.get("tie_word_embeddings", True),
            qk_norm=c.get("model_type") == "qwen3",
            source=source,
            parameters=total,
            active=active,
        )
    except KeyError:
        return None


def _counted(config: str, path: Path | str) -> tuple[int, int] | None:
    """Parameters of a model by its config.json, counted once; None if it cannot be built here."""

    def find() -> str:
        try:
            from vimpo.models.counting import count_parameters

            return json.dumps(count_parameters(path))
        except Exception:  # without torch, or in whatever way the model's own code fails
            return ""

    total_active = remembered("parameters", config, find)
    return tuple(json.loads(total_active)) if total_active else None


ASSUMED_PROBLEMS = 1000  # of a benchmark that is not read for a plan
PROMPTS_READ = 1000  # of each source


def prompt_lengths(study: Study) -> tuple[int, int] | None:
    """Tokens of a study's prompts: their mean and the longest; None unless all of it is local.

    The largest of all sizes' tokenizers; prompts beyond task.max_prompt, which training leaves out,
    do not count.
    """
    task = study.task
    sizes = [study.sizes[size] for size in study.used_sizes()]
    if not isinstance(task, DatasetTask) or not all(size.sha256 for size in sizes):
        return None
    if not all(source.sha256 for source in task.datasets):
        return None
    found = []
    for spec in sizes:
        key = json.dumps([task.model_dump(mode="json"), spec.sha256, PROMPTS_READ])
        found.append(json.loads(remembered("prompts", key, partial(_read_prompts, task, spec))))
    mean, longest = map(max, zip(*found, strict=True))
    return (mean, longest) if longest else None


def _read_prompts(task: DatasetTask, spec: ModelSpec) -> str:
    from vimpo.models.networks import load_tokenizer
    from vimpo.tasks.dataset import source_rows
    from vimpo.tasks.prompts import Prompter, encode

    tokenizer = load_tokenizer(str(spec.path))
    prompter = Prompter(task, tokenizer)
    rows = [
        r
        for i, d in enumerate(task.datasets)
        for r in source_rows(d, f"task.datasets[{i}]")[:PROMPTS_READ]
    ]
    ids = encode(tokenizer, [prompter(row.problem, row.turns) for row in rows])
    cut = task.long_prompts == "cut"
    lengths = [min(n, task.max_prompt) for n in map(len, ids) if n <= task.max_prompt or cut] or [0]
    return json.dumps([math.ceil(sum(lengths) / len(lengths)), max(lengths)])


def _rows(benchmark: Benchmark | TextBenchmark) -> int:
    """Lines of a local JSONL file; where they cannot be counted so, what is assumed."""
    local, there = local_path(getattr(benchmark, "path", ""), "path")
    if not there or local.suffix != ".jsonl":
        return ASSUMED_PROBLEMS
    with local.open(encoding="utf-8", errors="replace") as lines:
        return sum(bool(line.strip()) for line in lines)


def benchmark_responses(study: Study) -> int:
    """Responses per evaluation: k of avg@k under each decoder, of which greedy gives one."""
    total = 0
    for name, benchmark in study.task.benchmarks.items():
        if isinstance(benchmark, RealBenchmark):
            problems = _problems(benchmark, f"task.benchmarks.{name}.path")
        else:
            problems = benchmark.problems or _rows(benchmark)
        total += problems * sum(study.samples_of(name, d) for d in study.decoders())
    return total


def _problems(benchmark: RealBenchmark, field: str) -> int:
    """How many problems are scored: the limit, or all rows of a local file, counted once.

    Otherwise as many as were published: on the hub, and of a file that cannot be read.
    """

    def count() -> str:
        from vimpo.tasks.sources import read_rows

        try:
            return str(len(read_rows(str(benchmark.path), field)))
        except ConfigError:  # `check` says what is wrong with it
            return ""

    if benchmark.limit:
        return benchmark.limit
    found = remembered("rows", benchmark.sha256, count) if benchmark.sha256 else ""
    return int(found or benchmark.published.problems)
