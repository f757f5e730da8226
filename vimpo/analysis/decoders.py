"""Would the verdicts on accuracy be others if answers were drawn in another way?

Every test of accuracy is made again under each decoder of the study. Its p value is corrected as if
the whole study had been judged by that decoder: over the same tests, those of accuracy under it and
the others as they are. The rows have the kind `decoder` and the part of the test with `@` and the
decoder's name, that of the test itself among them; they enter neither the verdicts nor their
correction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vimpo.analysis.hypotheses import Comparison, Parts, described
from vimpo.analysis.scores import Tables
from vimpo.analysis.verdicts import DECODER, TEST, judge
from vimpo.config import Study
from vimpo.config.hypotheses import OF_ANSWERS, Asked
from vimpo.config.shipped import shipped_claims


def decoder_rows(
    study: Study, tables: Tables, params: Mapping[str, float], parts: Parts
) -> list[dict]:
    """Rows of claims.csv for the tests among `parts` that are of accuracy; none for one decoder."""
    questions = _questions(study)
    tests = [(part, found) for part, found in parts if part.kind == TEST]
    rows: dict[str, list[dict]] = {part.id: [] for part, _ in tests if part.id in questions}
    for decoder in study.decoders() if len(study.decoders()) > 1 else ():
        family: Parts = []
        for part, found in tests:
            asked = questions.get(part.id)
            if asked and asked.where.decoder != decoder:
                asked = asked.model_copy(
                    update={"where": asked.where.model_copy(update={"decoder": decoder})}
                )
                comparison = Comparison.of(asked, study, tables)
                part = replace(part, metric=described(asked, comparison))
                found = comparison.found(params)
            family.append((part, found))
        for row in judge(family, study.statistics.confidence, study.claims.power):
            if row["part"] in rows:
                again = {"part": f"{row['part']}@{decoder}", "kind": DECODER}
                rows[row["part"]].append(row | again)
    return [row for found in rows.values() for row in found]


def _questions(study: Study) -> dict[str, Asked]:
    """What is asked of accuracy, by the id of its part."""
    claims = {
        f"{name}.{asked.part}": asked
        for name, claim in shipped_claims().items()
        for asked in claim.parts
    }
    own = {f"{asked.id}.{asked.measure.name}": asked for asked in study.hypotheses}
    return {k: asked for k, asked in (claims | own).items() if asked.measure.name in OF_ANSWERS}
