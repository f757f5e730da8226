# One base policy per size, shared by every algorithm, noise level and seed.


rule pretrain:
    output:
        config=f"{FOLDER}/base/{{size}}/config.yaml",
        metrics=f"{FOLDER}/base/{{size}}/metrics.csv",
        timing=f"{FOLDER}/base/{{size}}/timing.csv",
        manifest=f"{FOLDER}/base/{{size}}/manifest.json",
        model=directory(f"{FOLDER}/base/{{size}}/model"),
        sums=f"{FOLDER}/base/{{size}}/SHA256SUMS",
    log:
        f"{FOLDER}/logs/pretrain/{{size}}.log",
    benchmark:
        f"{FOLDER}/benchmarks/pretrain/{{size}}.tsv"
    conda:
        "../../envs/vimpo.yaml"
    threads: cores("pretrain")
    resources:
        **asks("pretrain"),
    params:
        python=interpreter,
        study=merged_study,
        digest=base_digest,
    shell:
        "{params.python} -m vimpo pretrain --checked --config {params.study} --size {wildcards.size}"
        " > {log} 2>&1"
