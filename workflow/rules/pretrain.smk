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


# The critic that an algorithm's cells start with, shared by all seeds of a noise level.


rule critic:
    input:
        base=rules.pretrain.output.manifest,
    output:
        config=f"{FOLDER}/base/{{size}}/critic-{{critic}}/config.yaml",
        metrics=f"{FOLDER}/base/{{size}}/critic-{{critic}}/metrics.csv",
        timing=f"{FOLDER}/base/{{size}}/critic-{{critic}}/timing.csv",
        manifest=f"{FOLDER}/base/{{size}}/critic-{{critic}}/manifest.json",
        model=directory(f"{FOLDER}/base/{{size}}/critic-{{critic}}/model"),
        sums=f"{FOLDER}/base/{{size}}/critic-{{critic}}/SHA256SUMS",
    log:
        f"{FOLDER}/logs/critic/{{size}}/{{critic}}.log",
    benchmark:
        f"{FOLDER}/benchmarks/critic/{{size}}/{{critic}}.tsv"
    conda:
        "../../envs/vimpo.yaml"
    threads: cores("critic")
    resources:
        **asks("critic"),
    params:
        python=interpreter,
        study=merged_study,
        options=critic_options,
    shell:
        "{params.python} -m vimpo critic --checked --config {params.study} {params.options}"
        " > {log} 2>&1"
