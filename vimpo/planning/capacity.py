"""Capacity as `plan` and `check` print it: measured, or not known yet, and never a guess."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vimpo.config import Capacity, Study
from vimpo.storage.continued import taken_over
from vimpo.storage.manifests import BASE_SURPRISAL
from vimpo.storage.surprisal import Surprisal, betas_at, read_surprisal
from vimpo.text import aligned

NOT_YET = "not measured yet"


def measured(study: Study) -> dict[str, Surprisal]:
    """Surprisal of the study's base policies, by size, where it is known."""
    taken = taken_over(study).manifests
    found = {}
    for size in study.used_sizes():
        record = taken.get(f"base/{size}", {}).get(BASE_SURPRISAL)
        surprisal = Surprisal.from_json(record) if record else read_surprisal(study, size)
        if surprisal is not None:
            found[size] = surprisal
    return found


def capacity_lines(study: Study, found: Mapping[str, Surprisal] | None = None) -> Iterator[str]:
    """A table of surprisal by size, and of beta and capacity of each algorithm that has a beta.

    found: what :func:`measured` says, if it was already asked.
    """
    found = measured(study) if found is None else found
    names = list(dict.fromkeys(n for size in study.used_sizes() for n in betas_at(study, size)))
    yield "Capacity: beta times mean surprisal of base responses, over the range of rewards"
    rows = [["size", "surprisal, nats", "of right ones", "tokens", *names]]
    for size in study.used_sizes():
        surprisal, betas = found.get(size), betas_at(study, size)
        row = [size, *(_nats(surprisal) if surprisal else [NOT_YET, "-", "-"])]
        for name in names:
            beta = betas.get(name)
            if beta is None:
                row.append("-")
            elif surprisal is None:
                row.append(str(beta) if isinstance(beta, Capacity) else f"beta {beta:g}")
            else:
                number = surprisal.beta(beta, size)
                row.append(f"{surprisal.capacity(number):.3g} (beta {number:.4g})")
        rows.append(row)
    yield from aligned(rows, left=1)
    if missing := [size for size in study.used_sizes() if size not in found]:
        yield (
            f"not known before a base policy is there, for: {', '.join(missing)}; `snakemake` or "
            f"`python -m vimpo surprisal --size {missing[0]}` measures it"
        )


def _nats(found: Surprisal) -> list[str]:
    right = "-" if found.right is None else f"{found.right.mean:.3g}"
    error = "" if found.all.stderr is None else f" +- {found.all.stderr:.2g}"
    return [f"{found.all.mean:.3g}{error}", right, f"{found.all.tokens:.3g}"]
