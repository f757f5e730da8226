r"""Is this answer the gold answer? Equivalence of two mathematical answers, by math-verify.

Only :mod:`vimpo.tasks.verifier_worker` calls this, inside a guarded process: sympy may need
unlimited time or memory. Answers are read by math-verify's LaTeX grammar alone; its reader of plain
expressions ends in Python's `eval` and is not used, and sympy's own is replaced. Added to
math-verify are readings that leave the value unchanged: another dummy variable of a function, names
before an equals sign, an interval written as an inequality, a column vector as a tuple, degrees as
radians, a percentage, and an exact value that rounds to a decimal gold.
"""

from __future__ import annotations

import logging
import re
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from itertools import product

import sympy
import sympy.parsing.sympy_parser
import sympy.physics.units  # parses texts while it is imported, so before parse_expr is replaced
from math_verify import LatexExtractionConfig, parse, verify

logging.getLogger("math_verify").setLevel(logging.CRITICAL)
logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)

NUMERAL = re.compile(r"\s*[+-]?(\d+|\d*\.\d+|\d+\.\d*)\s*")


def number(text: str, *_args, **_options) -> sympy.Number:
    """A numeral as sympy's number; raises SympifyError for all other text."""
    match = NUMERAL.fullmatch(text)
    if not match:
        raise sympy.SympifyError(text)
    return sympy.Integer(int(text)) if match[1].isdigit() else sympy.Float(text.strip())


# sympy turns every text into a number, even the grammar's own digits, by evaluating it as Python.
# In a process that imports this module no text is ever evaluated; reading is also faster.
sympy.parsing.sympy_parser.parse_expr = number

UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ",
        "∞": r"\infty ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "°": r"^\circ ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}",
        "％": "%", "（": "(", "）": ")", "，": ",", "\u00a0": " ", "\t": " ", "\n": " ", "\r": " ",
    }
)  # fmt: skip
SPACING = re.compile(r"\\[,;:]|\\q?quad\b|~|\\(?:big|Big|bigg|Bigg)[lr]?(?![a-zA-Z])")
# A name before an equals sign: x, a_{n}, m_{\max}, f(x), T(10), (k, \ell), \angle ABC.
NAME = re.compile(
    r"\s*(?:\\?[A-Za-z]+(?:_(?:\{[^{}]*\}|\w))?\s*(?:\([^()=]{1,20}\))?"
    r"|\([A-Za-z\\, ]{1,24}\)|\\(?:angle|triangle)\s*\w+)\s*"
)
FUNCTION = re.compile(r"\s*([A-Za-z])\s*\(\s*([a-z])\s*\)\s*=(.*)")
SET_BUILDER = re.compile(r"\\\{\s*\(?\s*([A-Za-z])\s*\)?\s*(?:\\mid|\\?\||:)(.*)\\\}")
MEMBER = re.compile(r"^\s*[A-Za-z]\s*\\in(?![a-z])\s*")
COLUMN = re.compile(r"\\begin\{([pbBv]?matrix)\}([^&]*?)\\end\{\1\}")
TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|textit)\s*\{([^{}]*)\}")
DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b")
PERCENT = re.compile(r"\\?%")
TRAILING_WORDS = re.compile(r"^(-?\$?\s*[\d.,]*\d)\s*(?:st|nd|rd|th)?\s+[A-Za-z][A-Za-z .]*$")
MONEY = re.compile(r"\\\$|\$")
DECIMAL = re.compile(r"-?\d+\.(\d{1,12})")
CONJUNCTION = re.compile(r"\b(?:and|or)\b|,")
ONE_SIDED = re.compile(r"[a-z]\s*(<|>|\\leq?|\\geq?)\s*([^<>=a-z]+|[^<>=]*\\[a-z]+[^<>=]*)")
TWO_SIDED = re.compile(r"([^<>=]+?)\s*(<|\\leq?)\s*[a-z]\s*(<|\\leq?)\s*([^<>=]+)")
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
MOST_WORDS = 3  # of a gold answer that is not prose: `2 stuffed goats`
PROSE = re.compile(r"[a-z]{3,}", re.IGNORECASE)


def is_equivalent(gold: str, answer: str) -> bool:
    """Does `answer`, the content of a box, say the same as `gold`? LaTeX or plain text."""
    gold, answer = clean(gold), clean(answer)
    if not gold or not answer:
        return False
    if same_text(gold, answer):
        return True
    for one, other in readings(gold, answer):
        left, right = read(one), read(other)
        # Degrees against relations, intervals against inequalities: in both directions.
        if (
            left
            and right
            and verify(left, right, timeout_seconds=None, allow_set_relation_comp=True)
        ):
            return True
        if left and right and rounds_to(one, right):
            return True
    return False


def is_readable(gold: str) -> bool:
    """Can this gold answer be judged: is it an expression, not prose or a fragment?"""
    gold = clean(gold)
    if not gold or len(WORD.findall(TEXT.sub(r" \1 ", gold))) > MOST_WORDS:
        return False
    forms = [gold, *_forms(gold), *_percentages(gold), *_without_names(gold)]
    return any(not isinstance(value, str) for form in forms for value in read(form))


def read(text: str) -> list:
    """math-verify's reading of a LaTeX answer: sympy values, and the text as a last resort."""
    config = LatexExtractionConfig(boxed_match_priority=-1)
    return parse(f"${text}$", extraction_config=[config], parsing_timeout=None)


def clean(text: str) -> str:
    """One line of LaTeX without dollars, spacing commands and final punctuation."""
    text = text.translate(UNICODE).replace("\x00", "")
    text = re.sub(r"\\!\s*", "", text).replace("{,}", ",")
    text = re.sub(r"(?<!\\)\\ ", " ", MONEY.sub("", SPACING.sub(" ", text)))
    text = re.sub(r"(?<!\\)\\(?=\d)", "", text)
    text = PERCENT.sub(r"\\%", text)
    text = text.replace("infinitely many", r"\infty").replace(r"\text{\infty}", r"\infty")
    return re.sub(r"\s+", " ", text).strip().rstrip(".;,").strip()


def same_text(gold: str, answer: str) -> bool:
    """Equal but for spaces, case of words, `and` for a comma, and \\text{}."""

    def plain(text: str) -> str:
        text = TEXT.sub(r" \1 ", text)
        if PROSE.search(text) and "\\" not in text:
            text = text.lower()
        text = re.sub(r"\s*(?:,|\band\b)\s*", ",", text)
        return re.sub(r"\s+", "", text).strip(".")

    return plain(gold) == plain(answer) != ""


def readings(gold: str, answer: str):
    """Pairs of texts with the meaning of the two answers, the answers themselves first."""
    yield gold, answer
    golds, answers = _forms(gold), _forms(answer)
    answers += _renamed(gold, answer)
    if r"\cup" in gold + answer:
        golds += _union(gold)
        answers += _union(answer)
    if "=" in gold and "=" not in answer:
        golds += _without_names(gold)
    if "=" in answer and "=" not in gold:
        answers += _without_names(answer)
    if r"\{" not in gold and answer.count(r"\{") > 1:
        answers.append(answer.replace(r"\{", " ").replace(r"\}", " "))
    if DEGREES.search(answer) and not DEGREES.search(gold) and r"\pi" in gold:
        answers.append(rf"\frac{{\pi}}{{180}} \cdot ({DEGREES.sub('', answer)})")
    if r"\%" in gold + answer:  # 9 % is 0.09, or 9 if the other side leaves out the sign
        golds += _percentages(gold)
        answers += _percentages(answer)
    seen = {(gold, answer)}
    for pair in product([gold, *golds], [answer, *answers]):
        if pair not in seen:
            seen.add(pair)
            yield pair


def _forms(text: str) -> list[str]:
    """The same answer without units, set-builder notation and membership; a column as a tuple."""
    found = []
    if match := SET_BUILDER.fullmatch(text):
        found.append(match[2].strip())
    if MEMBER.match(text):
        found.append(MEMBER.sub("", text))
    if match := COLUMN.fullmatch(text):
        entries = [entry.strip() for entry in re.split(r"\\\\", match[2])]
        found.append(f"({','.join(filter(None, entries))})")
    bare = TEXT.sub(lambda m: "," if CONJUNCTION.search(m[1]) else " ", text)
    if bare != text and re.search(r"\d|\\pi|[a-z]\b", bare):
        found.append(re.sub(r"\\ ", " ", bare).strip(" ,"))
    if match := TRAILING_WORDS.match(TEXT.sub(r" \1", text)):
        found.append(match[1])
    return found


def _percentages(text: str) -> list[str]:
    """`9\\%` -> `9` and `9/100`; a text without the sign has no other form."""
    bare = text.replace(r"\%", "").strip()
    return [bare, rf"\frac{{{bare}}}{{100}}"] if r"\%" in text else []


def _union(text: str) -> list[str]:
    r"""`x < 1 \text{ or } 2 \leq x < 3` -> `(-\infty,1) \cup [2,3)`; else nothing."""
    intervals = []
    parts = re.split(r"\\text\s*\{\s*or\s*\}|\bor\b|,", text)
    for part in map(str.strip, parts):
        if match := TWO_SIDED.fullmatch(part):
            low, left, right, high = match.groups()
            intervals.append(f"{'(['['l' in left]}{low},{high}{')]'['l' in right]}")
        elif match := ONE_SIDED.fullmatch(part):
            sign, end = match.groups()
            closed = "e" in sign
            less = sign in ("<", r"\le", r"\leq")
            intervals.append(
                rf"(-\infty,{end}{')]'[closed]}" if less else rf"{'(['[closed]}{end},\infty)"
            )
        else:
            return []
    return [r" \cup ".join(intervals)] if len(intervals) > 1 else []


def _renamed(gold: str, answer: str) -> list[str]:
    """f(y) = y + 1 as f(x) = x + 1 if the gold says f(x): the variable is a dummy."""
    mine, theirs = FUNCTION.fullmatch(gold), FUNCTION.fullmatch(answer)
    if not mine or not theirs or mine[1] != theirs[1] or mine[2] == theirs[2]:
        return []
    if re.search(rf"(?<![a-zA-Z\\]){mine[2]}(?![a-zA-Z])", theirs[3]):
        return []  # it would be captured
    body = re.sub(rf"(?<![a-zA-Z\\]){theirs[2]}(?![a-zA-Z])", mine[2], theirs[3])
    return [f"{mine[1]}({mine[2]})={body}"]


def _without_names(text: str) -> list[str]:
    """`a = 1, b = 2` -> `1, 2`; nothing if a left side is more than a name."""
    parts = re.split(r",(?![^()\[\]{}]*[)\]}])", text)
    bare = []
    for part in parts:
        left, equals, right = part.partition("=")
        if equals and (not NAME.fullmatch(TEXT.sub("", left)) or "=" in right):
            return []
        bare.append(right if equals else left)
    return [",".join(bare)]


def rounds_to(gold: str, values: list) -> bool:
    """Is one of the values exact, and does it round to the gold at the gold's decimal places?

    At least two decimal places, or a percentage: a gold of 0.5 is exact, not rounded.
    """
    percent = gold.endswith(r"\%")
    decimal = gold.removesuffix(r"\%").strip()
    match = DECIMAL.fullmatch(decimal)
    if not match or (len(match[1]) < 2 and not percent):
        return False
    step = Decimal(1).scaleb(-len(match[1]))
    for value in values:
        if not isinstance(value, sympy.Expr) or value.has(sympy.Float) or not value.is_number:
            continue
        exact = sympy.N(value * (100 if percent else 1), 30)
        if exact.is_real:
            written = Decimal(str(exact))
            for mode in (ROUND_HALF_UP, ROUND_HALF_EVEN):
                if written.quantize(step, mode) == Decimal(decimal):
                    return True
    return False
