r"""Formulas within Markdown, as models write them: `$…$`, `$$…$$`, `\(…\)`, `\[…\]`.

Two rules for markdown-it find a formula and keep its source, delimiters and all, from being read as Markdown; `typeset`
makes MathML of it, which every browser draws without a script. Every pattern is bounded, so a text that opens formulas
and never closes them costs linear time. (mdit-py-plugins has `texmath` for this: its patterns are tried on a copy of
the rest of the text at each backslash, which is quadratic, and no dollar is money.)
"""

from __future__ import annotations

import re
from functools import cache
from itertools import accumulate

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from math_core import LatexError, LatexToMathML

MAX_LINES = 40
# A dollar is money unless it touches what it encloses (pandoc's rule): `$5 and $10` is no formula.
INLINE = re.compile(
    r"\$\$(?P<display>[^$]{1,2000})\$\$"
    r"|\\\[(?P<brackets>(?:(?!\\[\[\]]).){1,2000})\\\]"
    r"|\\\((?P<round>(?:(?!\\[()]).){1,1000})\\\)"
    r"|(?<![A-Za-z0-9$])\$(?![\s$])(?P<dollar>(?:[^$\\\n]|\\.){1,500})(?<!\s)\$(?![0-9$])",
    re.DOTALL,
)
CLOSING = {"$$": "$$", r"\[": r"\]"}

MAX_TYPESET_LENGTH = 2_000
# Of elements; no formula that somebody reads has as many, and browsers flatten what is nested deeper than 512.
MAX_DEPTH = 50
TAG = re.compile(r"</?(\w+)[^>]*>")
# What could hide text, cover it, or grow without end is shown as it is written: an annotator judges what a reader sees.
TRICK = re.compile(
    r"\\(?:[hv]?phantom|(?:text|math)?color|colorbox|fcolorbox|definecolor|math[rlc]lap|[rlc]lap|smash|raisebox"
    r"|[hm]?kern|[hm]skip|[hm]space|rule|url|href|includegraphics|html\w*|tiny|[gx]?def|edef|(?:re)?newcommand"
    r"|providecommand|let|futurelet|csname|char|above|genfrac|eqref|ref|label)(?![A-Za-z])"
)
# Of the MathML that comes back: letters that nobody sees stand for a thin space, or for nothing.
UNSEEN_OPERATOR = re.compile("<mo( lspace)?[^>]*>(?:[\u2061-\u2064]|&ApplyFunction;)</mo>")
THIN_SPACE = '<mspace width="0.1667em"/>'
# The font's prime is raised by itself; as a superscript it would float above the line.
PRIME = re.compile("(<mo[^>]*>[\u2032-\u2034\u2057]</mo>)(?=</msu(?:bsu)?p>)")
STYLE = re.compile(r' style="([^"]*)"')
# The policy of our pages takes no style in an attribute: what a table needs is a class.
CLASSES = {
    "text-align: left": "from-start",
    "text-align: right": "to-end",
    "padding-left: 0": "joins-before",
    "padding-right: 0": "joins-after",
    "padding-left:1em": "apart",
    "border-top": "line-above",
    "border-right": "line-after",
}
TAGS = {"math", "menclose", "mfrac", "mi", "mn", "mo", "mover", "mpadded", "mroot", "mrow", "mspace", "msqrt", "msub"}
TAGS |= {"msubsup", "msup", "mtable", "mtd", "mtext", "mtr", "munder", "munderover"}
STYLED = {"displaystyle", "scriptlevel"}
ATTRIBUTES = {
    "math": {"display"},
    "menclose": {"notation"},
    "mfrac": {"linethickness"} | STYLED,
    "mi": {"mathvariant"},
    "mo": {"form", "lspace", "maxsize", "minsize", "rspace", "stretchy"},
    "mover": {"accent"},
    "mpadded": {"voffset"},
    "mrow": STYLED,
    "mspace": {"width"},
    "mtable": STYLED,
    "munder": {"accentunder"},
    "span": {"title", "data-tex"},
}
# What models write and the library does not know, in words that it does.
MACROS = {"mbox": r"\text{#1}", "pmb": r"\boldsymbol{#1}", "tag": r"\qquad\text{(#1)}"}
MACROS["substack"] = r"\begin{gathered}#1\end{gathered}"
# Our pages number no equations.
ENVIRONMENT = re.compile(r"\\(begin|end)\{(align|eqnarray|split|gather|equation|multline|smallmatrix)\*?\}")
KNOWN = {"gather": "gathered", "equation": "gathered", "multline": "gathered", "smallmatrix": "matrix"}


def install(parser: MarkdownIt) -> None:
    """Teach the parser both rules; their tokens are called `math`."""
    parser.inline.ruler.before("escape", "math", take_inline)
    parser.inline.add_terminator_char("$")
    parser.block.ruler.before("fence", "math", take_block, {"alt": ["paragraph", "reference", "blockquote", "list"]})


def take_inline(state: StateInline, silent: bool) -> bool:
    """A formula within a line of text."""
    if state.src[state.pos] not in "$\\":
        return False
    match = INLINE.match(state.src, state.pos)
    if match is None or not match[match.lastgroup or 0].strip():
        return False
    if not silent:
        state.push("math", "code", 0).content = match[0]
    state.pos = match.end()
    return True


def take_block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """A formula on lines of its own; what its lines begin with (`-`, `#`, `>`) is no Markdown."""
    first = state.getLines(start_line, start_line + 1, state.blkIndent, False).strip()
    closing = CLOSING.get(first[:2])
    if closing is None or state.is_code_block(start_line):
        return False
    for line in range(start_line, min(end_line, start_line + MAX_LINES)):
        text = state.getLines(line, line + 1, state.blkIndent, False).rstrip()
        after = text.find(closing, 2 + len(text) - len(text.lstrip()) if line == start_line else 0)
        if after >= 0:
            return _push(state, start_line, line, silent) if after + 2 == len(text) else False
    return False


def _push(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    source = state.getLines(first, last + 1, state.blkIndent, False).strip()
    if not source[2:-2].strip():
        return False
    if not silent:
        token = state.push("math", "div", 0)
        token.content = source
        token.block = True
        state.line = last + 1
    return True


def typeset(source: str) -> str | None:
    """A formula, delimiters and all, as MathML; none when it can't be typeset, or is better read as it is written."""
    if len(source) > MAX_TYPESET_LENGTH or TRICK.search(source):
        return None
    is_display = source.startswith(("$$", r"\["))
    width = 1 if source.startswith("$") and not is_display else 2
    plain = ENVIRONMENT.sub(lambda found: rf"\{found[1]}{{{KNOWN.get(found[2], 'aligned')}}}", source[width:-width])
    try:
        mathml = _converter().convert_with_local_state(plain, displaystyle=is_display)
    except LatexError:
        return None
    if "voffset" in mathml or not set(TAG.findall(mathml)) <= TAGS or _depth(mathml) > MAX_DEPTH:
        return None
    seen = UNSEEN_OPERATOR.sub(lambda found: THIN_SPACE if found[1] else "", mathml)
    return STYLE.sub(_as_class, PRIME.sub(r'<mpadded voffset="-0.4em">\1</mpadded>', seen))


@cache
def _converter() -> LatexToMathML:
    return LatexToMathML(macros=MACROS, fancy_error=False, allow_unreliable_rendering=True)


def _depth(mathml: str) -> int:
    return max(accumulate(-1 if found[0][1] == "/" else found[0][-2] != "/" for found in TAG.finditer(mathml)))


def _as_class(style: re.Match[str]) -> str:
    names = [name for written, name in CLASSES.items() if written in style[1]]
    return f' class="{" ".join(names)}"' if names else ""
