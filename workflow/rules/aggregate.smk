# Tidy tables from all runs; a missing run is a row of missing.csv, never an average.

from vimpo.storage.columns import ARCHIVED, TABLES, curves_of


rule aggregate:
    input:
        study=f"{FOLDER}/config.yaml",
        base=expand(rules.evaluate_base.output.scores, size=MADE_SIZES),
        surprisal=expand(rules.surprisal.output.surprisal, size=MADE_SIZES),
        runs=[f"{path}/eval.json" for path in RUNS],
        probes=[f"{path}/probes.parquet" for path in RUNS],
        snapshots=[
            f"{path}/{file}" for path in SNAPSHOTS for file in ("eval.json", "probes.parquet")
        ],
        costs=expand(rules.cost.output.cost, size=MADE_SIZES),
        sweeps=STUDY.sweeps,
        curves=[path for path in map(curves_of, STUDY.sweeps) if Path(path).is_file()],
    output:
        tables=expand(f"{FOLDER}/tables/{{table}}.csv", table=TABLES),
        cells=expand(f"{FOLDER}/tables/cells/{{table}}.parquet", table=ARCHIVED),
        manifests=f"{FOLDER}/tables/cells/manifests.jsonl",
        sums=f"{FOLDER}/tables/SHA256SUMS",
    log:
        f"{FOLDER}/logs/aggregate.log",
    benchmark:
        f"{FOLDER}/benchmarks/aggregate.tsv"
    conda:
        "../../envs/vimpo.yaml"
    resources:
        mem_mb=1000,
        runtime=20,
    params:
        python=interpreter,
        study=merged_study,
        taken_over=TAKEN_OVER.digest,
    shell:
        "{params.python} -m vimpo aggregate --config {params.study} > {log} 2>&1"


localrules:
    aggregate,
