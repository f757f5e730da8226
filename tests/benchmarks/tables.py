"""Write README.md beside this file from results/*.json: `python tests/benchmarks/tables.py`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).parent
NAMES = (
    "against_trl",
    "steps",
    "steps_one_thread",
    "decoding",
    "real_model",
    "validation",
    "grid",
    "chunked_kl",
    "verifier",
)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def against_trl(found: dict) -> str:
    rows = [
        [
            name,
            f"{one['median']['ours']['response_length']:.0f}",
            phase,
            f"{one['median']['ours'][phase]:.3f}",
            f"{one['median']['trl'][phase]:.3f}",
            f"{one['trl_over_ours'][phase]:.2f}",
            f"{one['floor'][phase]:.3f}",
            f"{one['share_of_floor'][phase]:.0%}",
        ]
        for name, one in found["cases"].items()
        for phase in ("rollout", "update", "total")
    ]
    head = ("model", "tokens", "phase", "here, s", "TRL, s", "TRL / here", "floor, s")
    first = next(iter(found["cases"].values()))
    processes, rate = len(first["rounds"]["ours"]), first["floor"]["gflops_per_second"]
    rollouts = 16 * 8  # of every step at 64 x 2
    lengths = [one["median"]["ours"] for n, one in found["cases"].items() if n.startswith("64 x 2")]
    each = ", ".join(
        f"{1e6 * one['total'] / rollouts / one['response_length']:.0f} at "
        f"{one['response_length']:.0f} tokens"
        for one in lengths
    )
    return f"""## A GRPO step against TRL's

TRL {found["trl"]}; groups of 8 rollouts, 32 of them at 128 x 3 and 16 else, one update,
{found["threads"]} threads; medians of {processes} processes each, run alternately.
`tokens`: mean length of a response. The floor is the step's arithmetic without padding at
{rate:.0f} GFLOP/s, the rate of a large float32 product, with a group's prompt read once.

{table((*head, "floor / here"), rows)}

Microseconds of a step per sampled token at 64 x 2: {each}."""


def step_table(found: dict) -> str:
    def cell(ratio: dict) -> str:
        return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"

    rows = [
        [
            size,
            f"{one['parameters'] / 1e6:.2f} M",
            cell(one["time_to_grpo"]),
            cell(one["time_to_ppo"]),
            cell(one["memory_to_ppo"]),
            f"{one['utilisation']:.0%}",
        ]
        for size, one in found["sizes"].items()
    ]
    head = ("size", "parameters", "VIMPO / GRPO, time", "VIMPO / PPO, time", "VIMPO / PPO, memory")
    return table((*head, "utilisation"), rows)


def steps(found: dict) -> str:
    first = next(iter(found["sizes"].values()))
    return f"""## The algorithms side by side

Whole steps, median and range of {len(first["rounds"]["vimpo"])} rounds, {found["threads"]} threads;
memory is the peak above what the libraries hold. Utilisation: FLOPs of GRPO's update without
padding, divided by its time and the rate of a large product. To GRPO's rollouts, forward and
backward pass, VIMPO adds a forward pass of the reference, and PPO adds all passes of a critic.
`wide` has few tokens for its parameters: weights, gradients and moments are most of its memory.
`vocabulary` is m with the 151,936 tokens of Qwen3 (16 rollouts of 64 random tokens), `chunks` the
same with `logit_chunk: 256`.

{step_table(found)}"""


def steps_one_thread(found: dict) -> str:
    rate = max(one["gflops_per_second"] for one in found["sizes"].values())
    return f"""On {found["threads"]} thread, as the suite runs cells side by side; the rate is up to
{rate:.0f} GFLOP/s:

{step_table(found)}"""


def validation(found: dict) -> str:
    rows = [
        [
            name,
            *(f"{one['seconds'][which]:.1f}" for which in ("without", "with")),
            f"{one['more']:.1%}",
            ", ".join(f"{share:.1%}" for share in one["rounds"]),
        ]
        for name, one in found["runs"].items()
    ]
    head = ("run", "without, CPU s", "with, CPU s", "more", "rounds")
    return f"""## Validation during training

The default run, with `train.validation: {{}}` and without, a step of each in turn in one process:
held-out accuracy under three decoders, and the KL to the base policy.

{table(head, rows)}"""


def per_cell(grids: Sequence[dict]) -> float:
    """Seconds of every further cell."""
    least, most = grids[0], grids[-1]
    return (most["seconds"] - least["seconds"]) / (most["cells"] - least["cells"])


def grid(found: dict) -> str:
    # the first stretch is of about as many cells as one core has
    dry, two, one = found["dry_run"], per_cell(found["grids"][:2]), per_cell(found["one_core"])
    rows = [
        [
            str(cores),
            str(g["cells"]),
            f"{g['seconds']:.0f}",
            f"{g['cells_an_hour']:.0f}",
            f"{g['own_cpu_seconds'] / g['cells']:.2f}",
        ]
        for cores, key in ((1, "one_core"), (2, "grids"))
        for g in found[key]
    ]
    fixed = found["grids"][0]["seconds"] - found["grids"][0]["cells"] * two
    stretches = ", ".join(
        f"{per_cell((a, b)):.2f} s from {a['cells']:,} to {b['cells']:,} cells"
        for a, b in pairwise(found["grids"])
    )
    return f"""## The grid

The tiny study, whose cells are nearly all start-up:

{table(("cores", "cells", "s", "cells per hour", "Snakemake, CPU s per cell"), rows)}

On two cores a further cell (training, evaluation, probes) takes
{stretches}.
The smaller grids ran before the largest and after it, and are means of the two. A study takes
{fixed:.0f} s besides (base policy, cost, tables, report), which weighs more the fewer the cells.
The last column is the CPU time of Snakemake's own process, without its jobs.

On one core a further cell takes {one:.1f} s, {one / two:.2f} times as long. Of these, its
stages take {found["stages_seconds"]:.1f} s in one process that has imported everything, so
start-up, of three processes and of Snakemake's jobs, is {found["start_up_seconds"]:.1f} s.

`snakemake -n` on {dry["cells"]:,} cells: {dry["seconds"]:.0f} s and {dry["peak_mb"]:.0f} MB."""


def decoding(found: dict) -> str:
    rows = [
        [
            one["size"],
            str(one["rollouts"]),
            *(f"{one['seconds'][way]:.3f}" for way in ("plain", "cache")),
            f"{one['ratio']:.2f}",
            "yes" if one["same_tokens"] else "no",
        ]
        for one in found["cases"]
    ]
    head = ("size", "rollouts", "here, s", "transformers' cache, s", "ratio", "same tokens")
    return f"""## Decoding

Rollouts of {found["tokens"]} tokens from the ladder's models, CPU seconds on one thread, the two
ways in turn.

{table(head, rows)}"""


def real_model(found: dict) -> str:
    (count,) = {len(one["rounds"]) for one in found["rows"]}
    rounds = "1 round" if count == 1 else f"{count} rounds"
    phases = ("rollout", "reference", "critic", "update", "total")
    rows = [
        [
            one["algorithm"],
            one["setting"],
            *(f"{one['seconds'][phase]:.1f}" for phase in phases),
            f"{one['memory'] / 2**30:.2f}",
        ]
        for one in found["rows"]
    ]
    head = ("algorithm", "setting", *(f"{phase}, s" for phase in phases), "memory, GiB")
    return f"""## A real model on one core

SmolLM2-135M in steps of [`smollm.yaml`](../../workflow/config/smollm.yaml), 4 prompts x 4 rollouts
of at most 24 tokens, each in a process of its own. Memory is the peak above what the libraries
hold. Seconds are medians of {found["steps"]} steps in {rounds}, with {found["instructions"]}.

{table(head, rows)}"""


def chunked_kl(found: dict) -> str:
    by_tokens: dict[int, dict] = {}
    for case in found["cases"]:
        by_tokens.setdefault(case["tokens"], {})[case["way"]] = case
    rows = [
        [
            str(tokens),
            *(f"{c[way]['peak_mb']:.0f}" for way in ("plain", "chunked")),
            *(f"{c[way]['cpu_seconds']:.1f}" for way in ("plain", "chunked")),
            f"{c['chunked']['cpu_seconds'] / c['plain']['cpu_seconds']:.2f}",
        ]
        for tokens, c in by_tokens.items()
    ]
    head = ("tokens", "plain, MB", "chunked, MB", "plain, CPU s", "chunked, CPU s", "time ratio")
    return f"""## Exact KL in chunks

Log-probability with gradient, entropy and exact KL at a vocabulary of {found["vocabulary"]:,}.
Peaks are above the inputs; {found["weight_gradient_mb"]:.0f} MB of each are the output matrix's
gradient.

{table(head, rows)}"""


def verifier(found: dict) -> str:
    rows = [
        [
            name,
            str(one["rows"]),
            str(one["agree"]),
            str(found["math_verify_alone"].get(name, sum(found["math_verify_alone"].values()))),
            *(str(one[k]) for k in ("tp", "fp", "fn", "tn")),
            f"{one['precision']:.3f}",
            f"{one['recall']:.3f}",
        ]
        for name, one in found["all"].items()
    ]
    head = ("labelled answers", "rows", "agree", "math-verify alone", "TP", "FP", "FN", "TN")
    speed = found["speed"]
    return f"""## The answer verifier

{table((*head, "precision", "recall"), rows)}

{speed["answers_per_cpu_second"]:.0f} answers per second of its workers' CPU time."""


def text() -> str:
    sections = [
        globals()[name](json.loads((HERE / f"results/{name}.json").read_text())) for name in NAMES
    ]
    head = """# Benchmarks

`tables.py` writes each section from the JSON that the script of the same name left in `results/`.
Seconds are from one shared two-core machine; ratios were measured side by side. In short:
[docs/benchmarks.md](../../docs/benchmarks.md).
"""
    return "\n\n".join([head.rstrip(), *sections]) + "\n"


if __name__ == "__main__":
    (HERE / "README.md").write_text(text())
