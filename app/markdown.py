"""Hostile Markdown to safe HTML: no raw HTML, no images, no scripts, nothing fetched, invisible letters made visible.

Owns the renderer and its cache by content; what the marks look like is the style sheet's. What a page shows goes
through `app.rendering`, which has dear texts rendered elsewhere.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from html import escape

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup
from pygments import highlight  # type: ignore[import-untyped]
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]
from pygments.token import STANDARD_TYPES  # type: ignore[import-untyped]

from app import markdown_math
from app.remembering import Remembered

# Longer texts, and texts built to make a parser slow, are shown as they are written.
MAX_MARKDOWN_LENGTH = 20_000
MAX_SPECIAL_CHARACTERS = 3_000
# Each bracket that opens is looked for a partner from again: 2,900 of them took 32 ms, a thousand take 4.
MAX_OPEN_BRACKETS = 1_000
# How much code of one text is coloured, and in which languages: the lexers of the others are not known to be fast.
MAX_COLOURED_CODE = 2_000
# To begin with a block costs as much as so many letters of it.
LETTERS_A_BLOCK = 100
# A name after the fence -> pygments' lexer.
LEXERS = {name: name for name in ("bash", "c", "cpp", "css", "diff", "go", "html", "ini", "javascript", "json", "php")}
LEXERS |= {name: name for name in ("python", "ruby", "rust", "sql", "toml", "xml", "yaml")}
LEXERS |= {
    "js": "javascript",
    "ts": "javascript",
    "typescript": "javascript",
    "py": "python",
    "sh": "bash",
    "shell": "bash",
}
HEADING_OFFSET = 3
# Of HTML and what it was made of, in letters: some twenty megabytes.
CACHE_SIZE = 10_000_000
# What a character that means something costs at most, in plain letters; and what a letter does in a text that is shown
# as it is written. A plain letter takes a third of a microsecond.
EFFORT_OF_SPECIAL = 30
EFFORT_AS_WRITTEN = 0.25
AS_WRITTEN = '<pre class="plain" dir="auto">'

ALLOWED_TAGS = {"p", "br", "hr", "h4", "h5", "h6", "strong", "em", "s", "a", "span", "div", "code", "pre", "blockquote"}
ALLOWED_TAGS |= {"ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td"} | markdown_math.TAGS
ALLOWED_ATTRIBUTES = {"a": {"href", "target"}, "ol": {"start"}, "*": {"dir"}} | markdown_math.ATTRIBUTES
# Each outermost block finds its own direction, so that an Arabic answer reads from the right beside an English one;
# what is inside follows it. Tables run as the page does, their cells as their words do.
DIRECTED = {"paragraph_open", "heading_open", "blockquote_open", "bullet_list_open", "ordered_list_open"}
CELLS = {"th_open", "td_open"}
TOKEN_CLASS = re.compile(r"[a-z0-9]{1,3}")
SPECIAL_CHARACTERS = re.compile(r"[\[\]*_`~<>|!&$\\\n]")

# Bidirectional controls, zero-width characters, tag characters and other letters that nobody can see.
INVISIBLE = "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
INVISIBLE += "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
INVISIBLE_LETTER = re.compile(f"[{INVISIBLE}]")
TAG_OR_INVISIBLE = re.compile(f"<[^>]*>|[{INVISIBLE}]+")
MAX_NAMED_IN_RUN = 3
# Of the runs of one text: a name is sixty letters for one.
MAX_NAMED_RUNS = 1_000
UNNAMED = "\u25af"
# A joiner inside a word of a script that needs it, or inside an emoji, is spelling and not a trick.
JOINERS = "\u200c\u200d"
JOINED_SCRIPTS = re.compile("[\u0600-\u06ff\u0900-\u0dff\u1780-\u17ff\ufe0f\u2190-\u2bff\U0001f000-\U0001faff]")


KEPT: Remembered[str, Markup] = Remembered(CACHE_SIZE, size=lambda text, html: len(text) + len(html))


def render(text: str) -> Markup:
    """`text` as HTML that is safe to put on a page. The same text is rendered once."""
    known = KEPT.get(text)
    return KEPT.keep(text, _rendered(text)) if known is None else known


def _rendered(text: str) -> Markup:
    if _is_too_costly(text):
        return as_written(text)
    html = _cleaner().clean(_parser().render(text))
    return Markup(mark_invisible(html))  # noqa: S704 - cleaned by the allow-list above


def as_written(text: str) -> Markup:
    """`text` with nothing in it taken for Markdown."""
    return Markup(mark_invisible(f"{AS_WRITTEN}{escape(text)}</pre>"))  # noqa: S704 - escaped right here


def effort(text: str) -> float:
    """What it costs at most to render a text, in plain letters; nothing where it is kept."""
    if KEPT.get(text) is not None:
        return 0
    if len(text) > MAX_MARKDOWN_LENGTH:
        return EFFORT_AS_WRITTEN * len(text)
    num_special = len(SPECIAL_CHARACTERS.findall(text)) + len(INVISIBLE_LETTER.findall(text))
    return len(text) + EFFORT_OF_SPECIAL * num_special


def _is_too_costly(text: str) -> bool:
    if len(text) > MAX_MARKDOWN_LENGTH or text.count("[") > MAX_OPEN_BRACKETS:
        return True
    return len(SPECIAL_CHARACTERS.findall(text)) > MAX_SPECIAL_CHARACTERS


def mark_invisible(html: str) -> str:
    """`html` with every run of invisible characters outside its tags replaced by a visible mark that names them; of
    many, the first are named.
    """
    num_named = 0

    def mark(match: re.Match[str]) -> str:
        nonlocal num_named
        run = match[0]
        if run[0] == "<" or (len(run) == 1 and _is_spelling(html, match.start())):
            return run
        if num_named == MAX_NAMED_RUNS:
            return UNNAMED
        num_named += 1
        more = f" +{len(run) - MAX_NAMED_IN_RUN:,}" if len(run) > MAX_NAMED_IN_RUN else ""
        codes = " ".join(f"U+{ord(character):04X}" for character in run[:MAX_NAMED_IN_RUN])
        name = unicodedata.name(run[0], "CONTROL CHARACTER").title()
        return f'<mark class="invisible" title="{name}">{codes}{more}</mark>'

    return TAG_OR_INVISIBLE.sub(mark, html)


def _is_spelling(html: str, position: int) -> bool:
    around = html[position - 1 : position] + html[position + 1 : position + 2]
    return html[position] in JOINERS and len(around) == 2 and all(JOINED_SCRIPTS.match(letter) for letter in around)


@cache
def _cleaner() -> nh3.Cleaner:
    """The allow-list, read once: to read it takes seven times as long as to clean an answer."""
    return nh3.Cleaner(
        tags=ALLOWED_TAGS,
        attributes=ALLOWED_ATTRIBUTES,
        allowed_classes={
            "span": _token_classes() | {"formula", "display"},
            "div": {"scroll"},
            "code": {"math"},
            "mtd": set(markdown_math.CLASSES.values()),
        },
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener nofollow noreferrer",
    )


@cache
def _token_classes() -> set[str]:
    return {name for name in STANDARD_TYPES.values() if TOKEN_CLASS.fullmatch(name)}


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 20})
    parser.enable(["table", "strikethrough"]).disable(["image", "html_block", "html_inline"])
    parser.core.ruler.push("direction", _direct)
    markdown_math.install(parser)
    rules = {
        "heading_open": _render_heading,
        "heading_close": _render_heading,
        "link_open": _render_link,
        "fence": _render_code,
        "code_block": _render_code,
        "table_open": _render_table_open,
        "table_close": _render_table_close,
        "math": _render_math,
    }
    for name, rule in rules.items():
        parser.add_render_rule(name, rule)
    return parser


def _direct(state: StateCore) -> None:
    depth = 0
    for token in state.tokens:
        if token.type in CELLS or (depth == 0 and token.type in DIRECTED):
            token.attrSet("dir", "auto")
        if token.type in DIRECTED or token.type.replace("_close", "_open") in DIRECTED:
            depth += token.nesting


def _render_heading(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    """A heading below those of the page that it stands on."""
    token = tokens[index]
    level = min(6, int(token.tag[1]) + HEADING_OFFSET)
    return f'<h{level} dir="auto">' if token.nesting == 1 else f"</h{level}>\n"


def _render_math(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    """A formula as MathML, with its source for who points at it or searches; else as it is written."""
    token = tokens[index]
    source = escape(token.content)
    mathml = None if INVISIBLE_LETTER.search(token.content) else markdown_math.typeset(token.content)
    kind = "formula display" if token.content.startswith(("$$", "\\[")) else "formula"
    html = (
        f'<span class="{kind}" title="{source}" data-tex="{source}">{mathml}</span>'
        if mathml
        else f'<code class="math">{source}</code>'
    )
    return f"<p>{html}</p>\n" if token.block else html


def _render_link(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    return f'<a href="{escape(str(tokens[index].attrs.get("href", "")))}" target="_blank">'


def _render_code(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    token = tokens[index]
    language = LEXERS.get((token.info.split(maxsplit=1) or [""])[0].lower())
    coloured = env.get("coloured", 0) + LETTERS_A_BLOCK + len(token.content)
    if language is None or coloured > MAX_COLOURED_CODE:
        return f'<pre dir="ltr"><code>{escape(token.content)}</code></pre>\n'
    env["coloured"] = coloured
    return f'<pre dir="ltr"><code>{_colour(token.content, language)}</code></pre>\n'


def _render_table_open(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    return '<div class="scroll"><table>\n'


def _render_table_close(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    return "</table></div>\n"


def _colour(code: str, language: str) -> str:
    html: str = highlight(code, get_lexer_by_name(language), HtmlFormatter(nowrap=True))
    return html
