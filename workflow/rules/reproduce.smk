# Do the committed results still come out? Trains the six cells of tests/reference/ again, compares, and
# fails if they differ; `python -m vimpo reproduce` does this for any finished study.
#
# After a deliberate change of results, make the reference again:
#
#   snakemake --cores all --configfile workflow/config/reference.yaml
#   python -m vimpo publish --cells --config workflow/config/reference.yaml --published tests

from vimpo.storage.columns import CELL_TABLES


# No output (a benchmark would be one), so it always trains.
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
    params:
        python=interpreter,
    shell:
        "{params.python} -m vimpo reproduce tests/reference > {log} 2>&1"
        " && cat {log} || (cat {log} >&2; exit 1)"


localrules:
    reproduce,
