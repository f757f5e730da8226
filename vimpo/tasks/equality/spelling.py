r"""One spelling for what can be written in many ways; the value stays the same.

The result is LaTeX in which every word is quoted: `5\text{ cm}`, `5 cm` and `$5\ \mathrm{cm}$` all
become `5 "cm"`. Whatever is not quoted is mathematics.
"""

from __future__ import annotations

import re
import unicodedata

from vimpo.tasks.equality.units import KNOWN_WORDS, NUMBERS

SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "*": r"\cdot ",
    "÷": r"\div ", "∞": r"\infty ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "≈": r"\approx ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "°": r"^\circ ", "∅": r"\emptyset ", "±": r"\pm ",
    "∠": r"\angle ", "△": r"\triangle ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "≡": r"\equiv ",
    "⁄": "/", "。": ".", "、": ",", "…": r"\ldots ", '"': "", "\x00": "", "∣": "|",
    "∖": r"\setminus ",
    "€": ' "euro" ', "£": ' "pound" ', "¥": ' "yen" ', "¢": ' "cent" ', "√": r"\sqrt ",
}  # fmt: skip
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
RULES = [(re.compile(pattern), new) for pattern, new in (
    (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|rm|it|bf)(?![A-Za-z])\.?", " "),
    (r"\\[!]\s*", ""),
    (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~|\\\(|\\\)|(?<!\\)\\[\[\]]|[\r\n\t]", " "),
    (r"\{,\}", ","),
    (r"\\(?:text)?color\s*\{[^{}]*\}", " "),
    (r"\\\$", ' "dollar" '),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\varnothing|\\empty(?![A-Za-z])", r"\\emptyset"),
    (r"\\var(?=epsilon|phi|theta|rho)", r"\\"),
    (r"\\le(?:q|qslant)?(?![A-Za-z])|<=", r"\\leq "),
    (r"\\ge(?:q|qslant)?(?![A-Za-z])|>=", r"\\geq "),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\\ne(?![A-Za-z])|!=", r"\\neq "),
    (r"\\(?:approx|simeq|sim)(?![A-Za-z])", r"\\approx "),
    (r"\\(?:l?dots|cdots|dotsc|dotsb)(?![A-Za-z])|\.\.\.", r"\\ldots "),
    (r"\\(?:lbrace|lbrack)(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\(?:mid|vert|lvert|rvert)(?![A-Za-z])|\\\|", "|"),
    (r"\\(?:cdotp|ast)(?![A-Za-z])", r"\\cdot "),
    (r"\\pmod\s*(?:\{([^{}]*)\}|(\w))|\(\s*\\?mod\s+(\w+)\s*\)", r"\\pmod{\1\2\3}"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])", ' "degree" '),
    (r"(?i)(?<![A-Za-z\\])([ap])\. ?m\.?(?![A-Za-z])", r"\1m "),
    (r"\\?%", ' "percent" '),
    (r"(?<!\\)\\(?=\d)", ""),
    (r"\^\s*\(([^()]*)\)", r"^{\1}"),
    (r"(?<=\d)(?:\s*\^?\s*\{?\s*\\(?:text|mathrm)\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}?"
     r"|(?:st|nd|rd|th)(?![A-Za-z]))", " "),
)]  # fmt: skip
TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mbox|hbox|math(?:rm|bf|it|sf|tt)|boldsymbol|bm|operatorname"
    r"|boxed|fbox)\*?\s*\{([^{}]*)\}"
)
GEOMETRY = re.compile(
    r"\\(angle|triangle|overline|overrightarrow|overleftrightarrow|widehat|vec)\s*\{?\s*"
    r"([A-Z]{2,4})(?![A-Za-z])\s*\}?"
)
# What a variable ranges over says nothing of the value.
RANGE = re.compile(
    r',?\s*(?:"(?:for|where)"|\\forall)\s*(?:"(?:all|any|every|each|some|integers?|real|numbers?)"\s*)*'
    r"[A-Za-z](?:\s*,\s*[A-Za-z])*\s*"
    r'(?:\\in\s*\\mathbb\s*\{?\s*[A-Z]\s*\}?(?:\s*[_^]\s*(?:\{[^{}]*\}|\S))*|(?:"(?:is|an|any|integer|real|number)"\s*)+)?(?=,|$)'
)
NAMED_BASE = re.compile(r'_ ?\{? ?"([a-z]+)" ?\}?')  # 101_{\text{two}}
NAMES = re.compile(r"[A-Z](?: [A-Z])+")  # letters apart: no product, whose order would not matter
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
ROOT = re.compile(r"\\sqrt\s*(\w)")
FRACTION = re.compile(r"\\frac\s*(?:(\{(?:[^{}]|\{[^{}]*\})*\})|(\w))\s*(?:(\{)|(\w))")
METRES = re.compile(r'(?<=\d) ([mgshL])(?=(?: ?/ ?"?[a-z]+"?)?(?: ?\^ ?\{? ?[23] ?\}?)?$)')
THOUSANDS = re.compile(r"(?<![\d,.(\[])(?<!\\\{)(\d{1,3}(?:,\d{3})+)(?![\d,]*\d)")
RUN = re.compile(
    r'(?<![\\A-Za-z"])(?:[A-Za-z]{3,}(?:[\'-][A-Za-z]{3,})+|[A-Za-z]{2,})(?![A-Za-z"])'
)
OPERATOR = re.compile(r"[+*^_=<>|/]|\\[a-z]{2,}|\d[a-z]")
_FUNCTIONS = """
sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp max min gcd lcm det lim
pi theta alpha beta gamma lambda omega phi sqrt infty
"""
FUNCTIONS = frozenset(_FUNCTIONS.split())


def spelled(text: str) -> str:
    """The one spelling of an answer; empty if it says nothing."""
    text = _unicode(text)
    if TRIGONOMETRY.search(text):  # the reader takes 30^\circ for 30
        text = re.sub(r"([\d.]+)\s*\^\s*\{?\s*\\circ\s*\}?", r"(\\frac{\1\\pi}{180})", text)
    for pattern, new in RULES:
        text = pattern.sub(new, text)
    text = _dollars(text)
    for _ in range(4):  # texts within texts; the innermost first
        text, found = TEXT.subn(_words_of, text)
        if not found:
            break
    text = GEOMETRY.sub(r'"\1\2"', text)
    text = FRACTION.sub(_braced, ROOT.sub(r"\\sqrt{\1}", text))
    text = THOUSANDS.sub(lambda m: m[1].replace(",", ""), text)
    letters = re.fullmatch(r"[A-Za-z\s.,;:'\"()-]*", text) is not None
    parts = re.split(r'("[^"]*")', text)
    crowded = OPERATOR.search(text) is not None
    parts[::2] = [RUN.sub(lambda m: _word(m, letters, crowded), part) for part in parts[::2]]
    text = re.sub(r"\s+", " ", "".join(parts)).strip()
    text = re.sub('"infinitely" +"many"', r"\\infty ", text)
    text = re.sub(r'(" ?/ ?)([smh])(?= ?\^|$)', r'\1"\2"', METRES.sub(r' "\1"', text))
    text = re.sub(r"\\sqrt *\(([^()]*)\)", r"\\sqrt{\1}", re.sub("^= *", "", text))
    text = NAMED_BASE.sub(lambda m: f"_{{{NUMBERS[m[1]]}}}" if m[1] in NUMBERS else m[0], text)
    if NAMES.fullmatch(text):
        text = re.sub(r"[A-Z]", r'"\g<0>"', text)
    text = RANGE.sub("", text)
    return re.sub(r"(?<!\\)[\s.,;:]+$", "", text)


def tokens(text: str) -> list[str]:
    """The tokens of a spelled answer, for comparing it as a text; the case of words is ignored."""
    text = re.sub(r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2", text)
    found = re.findall(r'"[^"]*"|\\[A-Za-z]+|\\.|\d+(?:\.\d+)?|\S', text)
    found = [t.strip('"').lower() if len(t) > 3 and t[0] == '"' else t.strip('"') for t in found]
    return [",", *found] if found[:1] == ["\\"] else found


def _unicode(text: str) -> str:
    """Without invisible characters, and LaTeX for symbols, powers, fractions and Greek letters."""
    text = re.sub(r"(?<=\w)\*\*(?=[\w({])", "^", text)
    text = re.sub("[⁰¹²³⁴-⁻ⁿ]+", lambda m: f"^{{{m[0].translate(RAISED)}}}", text)
    text = re.sub("[₀-₉]+", lambda m: f"_{{{m[0].translate(LOWERED)}}}", text)
    written = []
    for character in text:
        name = unicodedata.name(character, "")
        if unicodedata.category(character) in ("Cf", "Mn"):
            continue
        # NFKC would make ℝ a letter like any other
        plain = SYMBOLS.get(character) or unicodedata.normalize("NFKC", character)
        if name.startswith("VULGAR FRACTION") and "⁄" in plain:
            top, _, bottom = plain.partition("⁄")
            plain = rf"\frac{{{top}}}{{{bottom}}}"
        elif name.startswith(("GREEK SMALL LETTER ", "GREEK CAPITAL LETTER ")):
            letter = name.split()[-1].lower()
            plain = rf"\{letter if 'SMALL' in name else letter.capitalize()} "
        written.append("".join(SYMBOLS.get(c, c) for c in plain))
    return "".join(written)


def _dollars(text: str) -> str:
    """Pairs of dollars delimit mathematics; one alone is money."""
    new = ' "dollar" ' if text.count("$") == 1 and re.search(r"\$\s*\d|\d\s*\$", text) else " "
    return text.replace("$", new)


def _words_of(match: re.Match) -> str:
    """The content of a text command: its words quoted, its numbers and signs as they are."""
    command, content = match[0], match[1]
    if not command.startswith((r"\text", r"\mbox", r"\hbox")):
        if not re.fullmatch(r"\s*[A-Za-z]{2,}\s*", content) or command.startswith(
            (r"\box", r"\fb")
        ):
            return f" {content} "
        if content.strip() in FUNCTIONS:
            return rf"\{content.strip()} "
    found = r"(\"[^\"]*\"|\\[A-Za-z]+)|((?:[^\W\d_]|['-](?=[^\W\d_]))+)"
    return " " + re.sub(found, lambda m: m[1] or f'"{m[2]}"', content) + " "


def _braced(match: re.Match) -> str:
    r"""`\frac12` -> `\frac{1}{2}`."""
    return rf"\frac{match[1] or '{' + match[2] + '}'}" + (match[3] or "{" + match[4] + "}")


def _word(match: re.Match, letters: bool, crowded: bool) -> str:
    """A run of letters: a word, the name of a function, or a product of variables."""
    run, before = match[0], match.string[: match.start()]
    lower = run.lower()
    if lower in ("infinity", "inf"):
        return r"\infty "
    if run in FUNCTIONS:
        return rf"\{run} "
    if letters:
        word = len(run) > 2 or run != lower or lower in KNOWN_WORDS
    elif lower in KNOWN_WORDS:
        word = len(run) > 1 and (len(run) > 2 or before.endswith((" ", *"0123456789})")))
    elif re.search(r"[\d_^{}]$", before):
        word = False  # a product, as in 2abc
    else:
        word = len(run) > 3 or (len(run) == 3 and not crowded)
    return f' "{run}" ' if word else run
