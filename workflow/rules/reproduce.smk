# Is what was committed still what comes out? Trains the six cells of tests/reference/ again, compares,
# and fails where they are different; `python -m vimpo reproduce` does it for any finished study.
#
# Who changes on purpose what comes out makes the reference again:
#
#   snakemake --cores all --configfile workflow/config/reference.yaml
#   python -m vimpo publish --cells --config workflow/config/reference.yaml --published tests

from vimpo.storage.columns import CELL_TABLES


# It has no output (a benchmark would be one), so that it always trains.
rule reproduce:
    input:
        study="tests/reference/config.yaml",
        tables=[f"tests/reference/tables/{table}.csv" for table in CELL_TABLES],
    log:
        "results/reproduced/logs/reproduce.log",
    conda:
        "../../envs/vimpo.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    shell:
        "python -m vimpo reproduce tests/reference > {log} 2>&1"
        " && cat {log} || (cat {log} >&2; exit 1)"


localrules:
    reproduce,
