# One cell of the grid: algorithm, size, noise level and seed.


rule train:
    input:
        base=rules.pretrain.output.manifest,
        surprisal=surprisal_of_cell,
        critic=critic_of_cell,
    output:
        config=f"{FOLDER}/runs/{RUN}/config.yaml",
        metrics=f"{FOLDER}/runs/{RUN}/metrics.csv",
        timing=f"{FOLDER}/runs/{RUN}/timing.csv",
        manifest=f"{FOLDER}/runs/{RUN}/manifest.json",
        model=directory(f"{FOLDER}/runs/{RUN}/model"),
        sums=f"{FOLDER}/runs/{RUN}/SHA256SUMS",
    log:
        f"{FOLDER}/logs/train/{RUN}.log",
    benchmark:
        f"{FOLDER}/benchmarks/train/{RUN}.tsv"
    group:
        CELL_JOB
    conda:
        "../../envs/vimpo.yaml"
    threads: cores("train")
    resources:
        **asks("train"),
    params:
        python=interpreter,
        study=merged_study,
        digest=cell_digest,
        launch=launcher(STUDY),
    shell:
        "{params.launch}{params.python} -m vimpo train --checked --config {params.study}"
        " --algorithm {wildcards.algorithm} --size {wildcards.size}"
        " --noise {wildcards.noise} --seed {wildcards.seed} > {log} 2>&1"
