r"""What must not be read as a formula, although a parser would make something of it.

Parsers of LaTeX are built to find a meaning; a grader needs to know that it was the writer's. Each rule here stands for texts that were
read as something else: `A1` as A times 1, `not 0` as n o t 0, `\infty + 1` as infinity, `f'` as f.
"""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\d+(?:\.\d*)?|\.\d+|[A-Za-z]|\S")
_SYMBOLS = _words(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi varphi chi "
    "psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar imath jmath rfloor rceil rvert rangle rbrace %"
)
"""Commands that end a factor."""
_OPERATORS = _words("sum prod int iint oint lim max min sup inf log ln lg exp sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan")
"""Commands whose bounds, base or power a factor may follow."""
_LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_WORDS = _words(
    "no or if to so not and the for but yes any all nor per than then when where about approx above below over under less more most least "
    "plus minus times only both none each some such that this with from into"
)
_PRIME = re.compile(r"([A-Za-z])(?: ?\^ ?\{? ?\\prime ?\}?|('{1,3}))")
_DERIVATIVE = re.compile(r"\\frac ?\{ ?d(?: ?\^ ?\{? ?(\d) ?\}?)? ?([A-Za-z]) ?\} ?\{ ?d ?([A-Za-z])(?: ?\^ ?\{? ?(\d) ?\}?)? ?\}")
_REFUSED = re.compile(
    r"!!|[$'\"?;#&@~]|\\[$]|\\[lcd]?dots(?![A-Za-z])|\\(?:partial|prime|nabla|neg|lnot|sim)(?![A-Za-z])|\\infty[A-Za-z]|\.\."
    r"|\^ ?\{? ?(?:T|\\top|\\dagger|\\intercal|\*) ?\}?(?![A-Za-z])"  # a parser takes the transpose of a letter for the letter
    r"|(?:[A-Z]|\\(?:vec|hat|text|mathbf) ?\{[^{}]*\}) ?\\times(?= ?(?:[A-Z]|\\(?:vec|hat|text|mathbf)))"  # no order, no product of numbers
)
_ROWS = re.compile(r"\\begin\{[a-z]*matrix\}.*?\\end\{[a-z]*matrix\}", re.DOTALL)


def with_names(text: str) -> str:
    r"""Give derivatives names of their own: `y'` is no `y`, and `\frac{dy}{dx}` no quotient."""
    text = _DERIVATIVE.sub(lambda found: f"{found[2]}_{{{'d' * int(found[1] or 1)}{found[3] * int(found[4] or 1)}}}", text)
    return _PRIME.sub(lambda found: f"{found[1]}_{{{'p' * len(found[2] or '1')}}}", text)


def with_bars(text: str) -> str:
    """Tell the bars that open an absolute value from those that close one, where none are nested: a parser pairs them as it likes."""
    pieces = text.split("|")
    inner = pieces[1::2]
    if len(pieces) < 3 or len(pieces) % 2 == 0 or not all(map(str.strip, inner)):
        return text
    return "".join(piece + ("\\lvert " if at % 2 == 0 else "\\rvert ") * (at + 1 < len(pieces)) for at, piece in enumerate(pieces))


def is_letters(word: str) -> bool:
    """Whether a run of letters is a product such as `abc` or `xyz`, and not a word: neighbours in the alphabet, in any order."""
    codes = sorted(map(ord, word.casefold()))
    return codes == list(range(codes[0], codes[0] + len(codes)))


def refusal(text: str) -> str:
    """Why a normalized formula may mean something else than a parser would take it for; empty where nothing speaks against it."""
    if found := _REFUSED.search(_ROWS.sub("", text)):
        return f"{found[0]!r} has no place in a formula here"
    for word in _LETTERS.findall(text):
        if word.lower() in _WORDS or (len(word) > 3 and not is_letters(word) and not _inside_command(text, word)):
            return f"{word!r} is a word"
    return _misplaced(_TOKEN.findall(text))


def _inside_command(text: str, word: str) -> bool:
    r"""Whether a word only stands in `\text{...}`, `\begin{...}` or as an index, where it is one name."""
    return not re.search(rf"(?<![\\A-Za-z]){word}(?![A-Za-z])", re.sub(r"(?:\\[A-Za-z]+ ?|_ ?)\{[A-Za-z ]*\}", "", text))


def _misplaced(tokens: list[str]) -> str:
    depth = 0
    for at, token in enumerate(tokens):
        depth += {"{": 1, "}": -1}.get(token, 0)
        if token == "^" and at and tokens[at - 1] == "}" and _before_group(tokens, at - 1) == "^":
            return "a power is raised once more without brackets"
        if token == "\\infty" and depth == 0 and not _stands_alone(tokens, at):
            return "infinity is no number to calculate with"
        if (
            token == "/"
            and tokens[at + 1 : at + 2] != ["("]
            and _starts_a_factor(tokens, at + 1)
            and _starts_a_factor(tokens, at + 2)
            and tokens[at + 2][0] not in "0123456789"
        ):
            return f"it is not clear what is below the line of {token}{tokens[at + 1]}{tokens[at + 2]}"
        factorials = tokens[at - 1 : at] == tokens[at + 1 : at + 2] == ["!"]
        if token[0] in "0123456789." and at and not factorials and _ends_a_factor(tokens, at - 1):
            return f"{token} follows {tokens[at - 1]} without an operator"
    return ""


def _stands_alone(tokens: list[str], at: int) -> bool:
    """Whether infinity is all there is but for its sign, or a bound that it may be."""
    return (tokens[:at] in ([], ["+"], ["-"]) and at == len(tokens) - 1) or tokens[at - 1] in ("^", "_", "\\to", "\\rightarrow")


def _ends_a_factor(tokens: list[str], at: int) -> bool:
    """Whether a number right behind a place would be a factor that nobody writes there."""
    token, before = tokens[at], tokens[at - 1] if at else ""
    if token == "}":
        return _before_group(tokens, at) not in ("\\frac", "\\binom", "\\begin") and not _belongs_to_operator(tokens, at)
    if token == "|":
        return tokens[: at + 1].count("|") % 2 == 0
    if token.startswith("\\"):
        return token[1:] in _SYMBOLS
    return token in (")", "!") or (token.isalpha() and not (before in ("_", "^") and _belongs_to_operator(tokens, at)))


def _starts_a_factor(tokens: list[str], at: int) -> bool:
    token = tokens[at] if at < len(tokens) else "="
    return token[0].isalnum() or token == "(" or token[1:] in _SYMBOLS or token in ("\\sqrt", "\\frac")


def _opening(tokens: list[str], at: int) -> int:
    """Place of the brace that a closing one belongs to; -1 where there is none."""
    depth = 0
    for place in range(at, -1, -1):
        depth += {"}": 1, "{": -1}.get(tokens[place], 0)
        if depth == 0:
            return place
    return -1


def _before_group(tokens: list[str], at: int) -> str:
    """What stands before the group that ends at a place."""
    opening = _opening(tokens, at)
    return tokens[opening - 1] if opening > 0 else ""


def _belongs_to_operator(tokens: list[str], at: int) -> bool:
    """Whether the group that ends at a place is a bound, base or power of a sum, logarithm or the like."""
    while at > 0:
        start = _opening(tokens, at) if tokens[at] == "}" else at
        if start < 2 or tokens[start - 1] not in ("_", "^"):
            return False
        at = start - 2
        if tokens[at][1:] in _OPERATORS and tokens[at].startswith("\\"):
            return True
    return False
