r"""Formulas within Markdown, as models write them: `$…$`, `$$…$$`, `\(…\)`, `\[…\]`.

Two rules for markdown-it. They only find a formula and keep its source, delimiters and all, from being read as
Markdown; `static/prose.js` typesets it, and without a script the source is what one reads. Every pattern is bounded, so
a text that opens formulas and never closes them costs linear time. (mdit-py-plugins has `texmath` for this: its
patterns are tried on a copy of the rest of the text at each backslash, which is quadratic, and no dollar is money.)
"""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

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
