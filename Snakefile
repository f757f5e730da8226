# Contents page of a study: base policies -> training -> evaluation -> tables -> figures -> report.
#
#   snakemake --cores all                                                the quick study
#   snakemake --cores all --configfile workflow/config/study.yaml       another one

from snakemake.utils import min_version

min_version("9.27")


if not workflow.configfiles:

    # Only where no other study is named: Snakemake would merge the two. Found beside this file, wherever
    # Snakemake is started.
    configfile: f"{workflow.basedir}/workflow/config/quick.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/resolve.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/surprisal.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/sweep.smk"
include: "workflow/rules/probe.smk"
include: "workflow/rules/aggregate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/reproduce.smk"


report: "report/workflow.rst"


localrules:
    all,
    train_all,


rule all:
    default_target: True
    input:
        f"{FOLDER}/report.html",


rule train_all:
    input:
        [f"{path}/manifest.json" for path in RUNS],


onsuccess:
    if Path(FOLDER, "report.html").exists():
        print(f"Report: {FOLDER}/report.html")


onerror:
    # What is complete is still worth reading: the cells that are missing are named in it.
    if TAKEN_OVER.cells or any(Path(path, "manifest.json").exists() for path in RUNS):
        shell("{PYTHON} -m vimpo summarize --config {MERGED} || true")
