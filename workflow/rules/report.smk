# Figures from tables, the report from both.

from vimpo.report.figures.registry import FIGURES
from vimpo.storage.columns import NEWER, PUBLISHED_TABLES


rule draw:
    input:
        study=f"{FOLDER}/config.yaml",
        tables=rules.aggregate.output.tables,
    output:
        [
            report(
                f"{FOLDER}/figures/{name}.svg",
                caption="../../report/figure.rst",
                category=figure.category,
                labels={"figure": name},
            )
            for name, figure in FIGURES.items()
        ],
        expand(f"{FOLDER}/figures/{{name}}.png", name=FIGURES),
    log:
        f"{FOLDER}/logs/draw.log",
    benchmark:
        f"{FOLDER}/benchmarks/draw.tsv"
    conda:
        "../../envs/vimpo.yaml"
    resources:
        mem_mb=1000,
        runtime=20,
    params:
        python=interpreter,
        study=merged_study,
    shell:
        "{params.python} -m vimpo plot --config {params.study} > {log} 2>&1"


rule report:
    input:
        study=f"{FOLDER}/config.yaml",
        tables=rules.aggregate.output.tables,
        figures=rules.draw.output,
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
    params:
        python=interpreter,
        study=merged_study,
    shell:
        "{params.python} -m vimpo report --config {params.study} > {log} 2>&1"


# Figures and reports of all committed studies, and the README's generated sections, from their tables
# alone: no job of a study is in its DAG. It has no output (a benchmark would be one), so it always
# draws, whatever the file times of a fresh clone.
rule figures:
    input:
        [
            file
            for study in sorted(Path("results/published").glob("*/config.yaml"))
            for file in (study, *(study.parent / f"tables/{t}.csv" for t in PUBLISHED_TABLES))
            if file.stem not in NEWER or file.exists()
        ],
    log:
        "results/published/logs/figures.log",
    conda:
        "../../envs/vimpo.yaml"
    resources:
        mem_mb=1000,
        runtime=20,
    params:
        python=interpreter,
    shell:
        "{params.python} -m vimpo figures > {log} 2>&1 || (cat {log} >&2; exit 1)"


localrules:
    draw,
    report,
    figures,
