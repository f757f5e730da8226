# lm-eval on the base policies, on every trained policy and on its snapshots.


rule evaluate_base:
    input:
        manifest=rules.pretrain.output.manifest,
    output:
        scores=f"{FOLDER}/base/{{size}}/eval.json",
        samples=f"{FOLDER}/base/{{size}}/samples.jsonl.gz",
        sums=f"{FOLDER}/base/{{size}}/eval.sha256",
    log:
        f"{FOLDER}/logs/evaluate_base/{{size}}.log",
    benchmark:
        f"{FOLDER}/benchmarks/evaluate_base/{{size}}.tsv"
    conda:
        "../../envs/vimpo.yaml"
    threads: cores("evaluate")
    resources:
        **asks("evaluate"),
    params:
        python=interpreter,
        study=merged_study,
        digest=STUDY.evaluation_digest(),
    shell:
        "{params.python} -m vimpo evaluate --config {params.study} --base --size {wildcards.size}"
        " > {log} 2>&1"


rule evaluate:
    input:
        manifest=rules.train.output.manifest,
    output:
        scores=f"{FOLDER}/runs/{RUN}/eval.json",
        samples=f"{FOLDER}/runs/{RUN}/samples.jsonl.gz",
        sums=f"{FOLDER}/runs/{RUN}/eval.sha256",
    log:
        f"{FOLDER}/logs/evaluate/{RUN}.log",
    benchmark:
        f"{FOLDER}/benchmarks/evaluate/{RUN}.tsv"
    group:
        CELL_JOB
    conda:
        "../../envs/vimpo.yaml"
    threads: cores("evaluate")
    resources:
        **asks("evaluate"),
    params:
        python=interpreter,
        study=merged_study,
        digest=STUDY.evaluation_digest(),
    shell:
        "{params.python} -m vimpo evaluate --config {params.study} --algorithm {wildcards.algorithm}"
        " --size {wildcards.size} --noise {wildcards.noise} --seed {wildcards.seed} > {log} 2>&1"


rule evaluate_snapshot:
    input:
        manifest=rules.train.output.manifest,
    output:
        scores=f"{FOLDER}/runs/{RUN}/{SNAPSHOT}/eval.json",
        samples=f"{FOLDER}/runs/{RUN}/{SNAPSHOT}/samples.jsonl.gz",
        sums=f"{FOLDER}/runs/{RUN}/{SNAPSHOT}/eval.sha256",
    log:
        f"{FOLDER}/logs/evaluate_snapshot/{RUN}/{SNAPSHOT}.log",
    benchmark:
        f"{FOLDER}/benchmarks/evaluate_snapshot/{RUN}/{SNAPSHOT}.tsv"
    conda:
        "../../envs/vimpo.yaml"
    threads: cores("evaluate")
    resources:
        **asks("evaluate"),
    params:
        python=interpreter,
        study=merged_study,
        digest=STUDY.evaluation_digest(),
    shell:
        "{params.python} -m vimpo evaluate --config {params.study} --algorithm {wildcards.algorithm}"
        " --size {wildcards.size} --noise {wildcards.noise} --seed {wildcards.seed}"
        " --step {wildcards.step} > {log} 2>&1"
