"""Does the quick study settle its questions whatever the seeds? Repeats it with others.

    python tests/benchmarks/repetitions.py --output repetitions.csv     # ten times the quick study

Every repetition is the whole study but for its figures and report. A question is settled if its
verdict, corrected for the number of questions, is not `inconclusive`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

ROOT = Path(__file__).parents[2]
KEPT = ["part", "effect", "low", "high", "n", "p_holm", "verdict"]


def repeated(first_seed: int, config: Path, folder: Path, cores: int) -> pd.DataFrame:
    """Verdicts of the study with seeds from `first_seed` on: a row per question."""
    study = yaml.safe_load(config.read_text())
    for block in study["grid"]:
        block["seeds"] = [first_seed + i for i in range(len(block["seeds"]))]
    name = f"{study['study']}_{first_seed}"
    changed = folder / f"{name}.yaml"
    changed.write_text(yaml.safe_dump(study | {"study": name, "results": str(folder)}))
    claims = folder / name / "tables" / "claims.csv"
    command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "-q", "--nolock"]
    command += ["--rerun-incomplete", "--configfile", str(changed), "--", str(claims)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    return pd.read_csv(claims)[KEPT].assign(first_seed=first_seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=ROOT / "workflow/config/quick.yaml")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=11)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("results/repetitions"))
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    found: list[pd.DataFrame] = []
    for i in range(asked.repetitions):
        found.append(repeated(asked.first_seed + 10 * i, asked.config, folder, asked.cores))
        rows = pd.concat(found)
        rows.to_csv(asked.output, index=False)  # what is finished is kept
        settled = rows.assign(settled=rows["verdict"] != "inconclusive")
        print(f"after {i + 1}:", settled.groupby("part", sort=False)["settled"].mean().to_dict())


if __name__ == "__main__":
    main()
