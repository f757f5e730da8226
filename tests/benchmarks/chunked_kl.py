"""Peak memory and time of chunked scores against plain ones, at Qwen3's vocabulary of 151,936.

    python tests/benchmarks/chunked_kl.py --output chunked_kl.json

One forward and backward pass of what a VIMPO step needs from the output layer: logp with its
graph, entropy and exact KL without. Each case is its own process; its peak is that of the resident
set beyond what the inputs hold, its times are the best of `--repeats`. If other work shares the
machine, read CPU seconds at one thread.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

VOCABULARY = 151_936
WAYS = ("plain", "chunked")


def case(way: str, tokens: int, hidden: int, chunk: int, repeats: int, threads: int) -> dict:
    """Run one case in this process -> its seconds, and peak_mb beyond the inputs."""
    import torch

    from vimpo.objectives.chunked import Head, chunked_scores
    from vimpo.objectives.common import exact_kl

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    scale = hidden**-0.5
    weights = [torch.randn(VOCABULARY, hidden).mul_(scale) for _ in range(2)]
    states = [torch.randn(tokens, hidden) for _ in range(2)]
    targets = torch.randint(VOCABULARY, (tokens,))
    policy = Head(states[0].requires_grad_(), weights[0].requires_grad_())
    reference = Head(states[1], weights[1])

    def plain() -> torch.Tensor:
        logits = torch.nn.functional.linear(*policy[:2])
        log_probs = logits.log_softmax(-1)
        logp = log_probs.gather(1, targets[:, None]).squeeze(1)
        with torch.no_grad():
            entropy = -(log_probs.exp() * log_probs).sum(-1)
            ref_logits = torch.nn.functional.linear(*reference[:2])
            kl = exact_kl(logits, ref_logits)
        return logp.sum() + (entropy + kl).sum().detach()

    def chunked() -> torch.Tensor:
        found = chunked_scores(policy, targets, reference, chunk=chunk)
        return found.logp.sum() + (found.entropy + found.kl).sum().detach()

    def once() -> tuple[float, float]:
        for tensor in policy[:2]:
            tensor.grad = None
        start = time.perf_counter(), time.process_time()
        (plain if way == "plain" else chunked)().backward()
        return time.perf_counter() - start[0], time.process_time() - start[1]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, cpu = map(min, zip(*(once() for _ in range(repeats)), strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    row = {"way": way, "tokens": tokens, "hidden": hidden, "chunk": chunk, "threads": threads}
    times = {"seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3)}
    return row | times | {"peak_mb": round(peak / 1024, 1)}


def run(way: str, tokens: int, options: argparse.Namespace) -> dict:
    arguments = [way, tokens, options.hidden, options.chunk, options.repeats, options.threads]
    command = [sys.executable, __file__, "--case", *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--hidden", type=int, default=1024, help="1024 is Qwen3-0.6B's")
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("chunked_kl.json"))
    options = parser.parse_args()
    if options.case:
        way, *numbers = options.case
        print(json.dumps(case(way, *map(int, numbers))))
        return
    rows = [run(way, tokens, options) for tokens in options.tokens for way in WAYS]
    gradient_mb = VOCABULARY * options.hidden * 4 / 2**20
    for plain, chunked in zip(rows[::2], rows[1::2], strict=True):
        print(
            f"{plain['tokens']:5} tokens:"
            f" plain {plain['peak_mb']:7.0f} MB {plain['seconds']:6.2f} s"
            f"   chunked {chunked['peak_mb']:6.0f} MB {chunked['seconds']:6.2f} s"
            f"   time ratio {chunked['seconds'] / plain['seconds']:.2f}"
            f" (CPU {chunked['cpu_seconds'] / plain['cpu_seconds']:.2f})"
        )
    print(f"(of each peak, {gradient_mb:.0f} MB are the gradient of the weight)")
    result = {"vocabulary": VOCABULARY, "weight_gradient_mb": gradient_mb, "cases": rows}
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
