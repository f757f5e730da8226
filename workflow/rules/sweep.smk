# A sweep's table and figure (vimpo/sweep.py): its runs need be trained and scored, not probed.


def swept(wildcards):
    """Scores of all trials, once the comparison is known to be fair."""
    # Only for this target: every other start of Snakemake does without pandas.
    from vimpo.sweep import trials

    try:
        trials(STUDY)
    except ConfigError as error:
        raise WorkflowError(f"error: {error}")
    return [f"{path}/eval.json" for path in RUNS]


rule sweep:
    input:
        study=f"{FOLDER}/config.yaml",
        scores=swept,
    output:
        table=f"{FOLDER}/sweeps.csv",
        figures=expand(f"{FOLDER}/figures/sweeps.{{suffix}}", suffix=["svg", "png"]),
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
        study=merged_study,
    shell:
        "python -m vimpo sweep --config {params.study} > {log} 2>&1"


localrules:
    sweep,
