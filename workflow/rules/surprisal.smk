# How surprised is each base policy by its own responses? A beta that is given by its capacity waits for
# this; reports and the manifests of runs say what it means for any other.


rule surprisal:
    input:
        base=rules.pretrain.output.manifest,
    output:
        surprisal=f"{FOLDER}/base/{{size}}/surprisal.json",
        sums=f"{FOLDER}/base/{{size}}/surprisal.sha256",
    log:
        f"{FOLDER}/logs/surprisal/{{size}}.log",
    benchmark:
        f"{FOLDER}/benchmarks/surprisal/{{size}}.tsv"
    # Before the cells of the size, which would otherwise end without knowing their capacity.
    priority: 1
    conda:
        "../../envs/vimpo.yaml"
    threads: cores("evaluate")
    resources:
        **asks("evaluate"),
    params:
        python=interpreter,
        study=merged_study,
        digest=surprisal_settings,
    shell:
        "{params.python} -m vimpo surprisal --config {params.study} --size {wildcards.size}"
        " > {log} 2>&1"
