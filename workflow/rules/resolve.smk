# The study as it runs, with every default written out; another study's folder is refused.


rule resolve:
    output:
        f"{FOLDER}/config.yaml",
    log:
        f"{FOLDER}/logs/resolve.log",
    benchmark:
        f"{FOLDER}/benchmarks/resolve.tsv"
    conda:
        "../../envs/vimpo.yaml"
    resources:
        mem_mb=400,
        runtime=5,
    params:
        python=interpreter,
        study=merged_study,
        digest=digest(STUDY),
    shell:
        "{params.python} -m vimpo resolve --config {params.study} --output {output} > {log} 2>&1"


localrules:
    resolve,
