# Figures from tables, the report from both.

FIGURES = {
    "learning_curves": "Learning",
    "accuracy_by_benchmark": "Accuracy",
    "accuracy_vs_noise": "Noise",
    "accuracy_vs_size": "Size",
    "cost": "Cost",
}


rule figures:
    input:
        study=f"{FOLDER}/config.yaml",
        tables=rules.aggregate.output,
    output:
        [
            report(
                f"{FOLDER}/figures/{name}.svg",
                caption="../../report/figure.rst",
                category=category,
                labels={"figure": name},
            )
            for name, category in FIGURES.items()
        ],
        expand(f"{FOLDER}/figures/{{name}}.png", name=FIGURES),
    log:
        f"{FOLDER}/logs/figures.log",
    benchmark:
        f"{FOLDER}/benchmarks/figures.tsv"
    conda:
        "../../envs/vimpo.yaml"
    resources:
        mem_mb=1000,
        runtime=20,
    shell:
        "python -m vimpo plot --config {input.study} > {log} 2>&1"


rule report:
    input:
        study=f"{FOLDER}/config.yaml",
        tables=rules.aggregate.output,
        figures=rules.figures.output,
    output:
        html=report(f"{FOLDER}/report.html", caption="../../report/report.rst", category="Report"),
        markdown=f"{FOLDER}/report.md",
    log:
        f"{FOLDER}/logs/report.log",
    benchmark:
        f"{FOLDER}/benchmarks/report.tsv"
    conda:
        "../../envs/vimpo.yaml"
    resources:
        mem_mb=1000,
        runtime=20,
    shell:
        "python -m vimpo report --config {input.study} > {log} 2>&1"


localrules:
    figures,
    report,
