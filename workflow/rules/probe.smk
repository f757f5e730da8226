# The scaling caveat: is the implied value true, fine and stable; and what does a step cost?


rule probe:
    input:
        base=rules.pretrain.output.manifest,
        manifest=rules.train.output.manifest,
        # Sequential if both run in one job; a new evaluation does not rerun probes.
        evaluated=ancient(rules.evaluate.output.scores),
        surprisal=surprisal_of_values,
    output:
        probes=f"{FOLDER}/runs/{RUN}/probes.parquet",
        prefixes=f"{FOLDER}/runs/{RUN}/prefixes.parquet",
        sums=f"{FOLDER}/runs/{RUN}/probes.sha256",
    log:
        f"{FOLDER}/logs/probe/{RUN}.log",
    benchmark:
        f"{FOLDER}/benchmarks/probe/{RUN}.tsv"
    group:
        CELL_JOB
    conda:
        "../../envs/vimpo.yaml"
    threads: cores("probe")
    resources:
        **asks("probe"),
    params:
        python=interpreter,
        study=merged_study,
        digest=probe_digest,
    shell:
        "{params.python} -m vimpo probe --config {params.study} --algorithm {wildcards.algorithm}"
        " --size {wildcards.size} --noise {wildcards.noise} --seed {wildcards.seed} > {log} 2>&1"


rule probe_snapshot:
    input:
        base=rules.pretrain.output.manifest,
        manifest=rules.train.output.manifest,
    output:
        probes=f"{FOLDER}/runs/{RUN}/{SNAPSHOT}/probes.parquet",
        prefixes=f"{FOLDER}/runs/{RUN}/{SNAPSHOT}/prefixes.parquet",
        sums=f"{FOLDER}/runs/{RUN}/{SNAPSHOT}/probes.sha256",
    log:
        f"{FOLDER}/logs/probe_snapshot/{RUN}/{SNAPSHOT}.log",
    benchmark:
        f"{FOLDER}/benchmarks/probe_snapshot/{RUN}/{SNAPSHOT}.tsv"
    conda:
        "../../envs/vimpo.yaml"
    threads: cores("probe")
    resources:
        **asks("probe"),
    params:
        python=interpreter,
        study=merged_study,
        digest=probe_digest,
    shell:
        "{params.python} -m vimpo probe --config {params.study} --algorithm {wildcards.algorithm}"
        " --size {wildcards.size} --noise {wildcards.noise} --seed {wildcards.seed}"
        " --step {wildcards.step} > {log} 2>&1"


rule cost:
    input:
        base=rules.pretrain.output.manifest,
        surprisal=surprisal_of_size,
    output:
        cost=f"{FOLDER}/cost/{{size}}.csv",
        sums=f"{FOLDER}/cost/{{size}}.sha256",
    log:
        f"{FOLDER}/logs/cost/{{size}}.log",
    benchmark:
        f"{FOLDER}/benchmarks/cost/{{size}}.tsv"
    conda:
        "../../envs/vimpo.yaml"
    threads: cores("cost")
    resources:
        **asks("cost"),
    params:
        python=interpreter,
        study=merged_study,
        digest=cost_digest,
    shell:
        "{params.python} -m vimpo cost --config {params.study} --size {wildcards.size} > {log} 2>&1"
