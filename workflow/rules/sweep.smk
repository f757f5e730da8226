# A sweep's table and figure (vimpo/analysis/sweep.py); its runs are trained and scored, not probed.


rule sweep:
    input:
        study=f"{FOLDER}/config.yaml",
        scores=scores_of_trials,
    output:
        tables=expand(f"{FOLDER}/sweep/{{name}}.csv", name=["sweeps", "sweeps_curves"]),
        figures=expand(
            f"{FOLDER}/sweep/{{name}}.{{suffix}}",
            name=["sweeps", "sweeps_curves"],
            suffix=["svg", "png"],
        ),
    log:
        f"{FOLDER}/logs/sweep.log",
    benchmark:
        f"{FOLDER}/benchmarks/sweep.tsv"
    conda:
        "../../envs/vimpo.yaml"
    resources:
        mem_mb=1000,
        runtime=20,
    params:
        python=interpreter,
        study=merged_study,
    shell:
        "{params.python} -m vimpo sweep --config {params.study} > {log} 2>&1"


localrules:
    sweep,
