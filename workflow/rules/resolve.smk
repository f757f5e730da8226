# The study as it is run, every default written out, once its models, data and benchmarks are at hand:
# base policies wait for it. What is on the hub is fetched here, beside Snakemake, where a cluster has
# its network. A folder that another study made is refused.


rule resolve:
    output:
        f"{FOLDER}/config.yaml",
    log:
        f"{FOLDER}/logs/resolve.log",
    benchmark:
        f"{FOLDER}/benchmarks/resolve.tsv"
    # A wrong input does not get better.
    retries: 0
    conda:
        "../../envs/vimpo.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        study=merged_study,
        digest=digest(STUDY),
    shell:
        "(python -m vimpo check --config {params.study}"
        " && python -m vimpo resolve --config {params.study} --output {output}) > {log} 2>&1"
        " || (cat {log} >&2; exit 1)"


localrules:
    resolve,
