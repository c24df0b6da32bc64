"""Hostile Markdown: nothing runs, is fetched, hides or is slow; and honest Markdown reads well."""

from __future__ import annotations

import re
import time
from html import escape, unescape
from html.parser import HTMLParser

import pytest

from app.markdown import ALLOWED_TAGS, MAX_COLOURED_CODE, MAX_MARKDOWN_LENGTH, render

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![beacon](https://evil.example/pixel.png)",
    "![beacon][ref]\n\n[ref]: https://evil.example/pixel.png",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1))",
    "[click](java\nscript:alert(1))",
    "[click](&#x6A;avascript:alert(1))",
    "[click](data:text/html;base64,PHNjcmlwdD4=)",
    "[click](vbscript:msgbox)",
    "<javascript:alert(1)>",
    '[a](https://example.org "onmouseover=alert(1)")',
    '[a](https://example.org"onclick="alert(1))',
    "<a href='javascript:alert(1)'>x</a>",
    "<svg><script>alert(1)</script></svg>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    '<div style="background:url(https://evil.example)">x</div>',
    "<form action=https://evil.example><button>x</button></form>",
    "<base href=https://evil.example>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "```<script>alert(1)</script>\ncode\n```",
    "```html\n</code></pre><script>alert(1)</script>\n```",
    '```"><img src=x onerror=alert(1)>\ncode\n```',
    "`</code><script>alert(1)</script>`",
    "| a |\n|---|\n| <script>alert(1)</script> |",
    "# <img src=x onerror=alert(1)>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\\<script>alert(1)\\</script>",
    "<https://example.org/\"onmouseover='alert(1)'>",
    "[x]: javascript:alert(1)\n\n[x]",
    "\u202e<script>alert(1)</script>",
    "<scr\u200bipt>alert(1)</scr\u200bipt>",
    "{{ 7 * 7 }} {% include 'x' %}",
]

BOMBS = {
    "brackets": "[" * 100_000,
    "brackets within the limits": "[" * 1_000,
    "links that never close": "[a](" * 700,
    "emphasis": "*a_" * 900,
    "quotes": "> " * 2_900,
    "nested lists": "\n".join(" " * depth + "- a" for depth in range(190)),
    "wide table": "|a" * 900 + "|\n" + "|-" * 900 + "|\n",
    "ticks": "".join("`" * length + " " for length in range(75)),
    "words": "word " * 20_000,
    "invisible": "\u200b" * 19_000,
    "newlines": "a\n" * 50_000,
    "code": "```python\n" + "a=1;" * 480 + "\n```",
    "dollars": "$a " * 1_400,
    "formulas that never close": "\\(" * 1_400 + "x" * 15_000,
    "displays that never close": "$$\nx\n" * 990,
    "displays in lists": "- $$\n" * 990,
    "many fences": "".join(f"```python\na{number}=1\n```\n" for number in range(300)),
}


class Page(HTMLParser):
    """What a browser would see: tags with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize("text", ATTACKS)
def test_only_harmless_tags_and_attributes_come_out(text: str) -> None:
    for tag, attributes in Page(render(text)).tags:
        assert tag in ALLOWED_TAGS | {"mark"}
        assert set(attributes) <= {"href", "target", "rel", "class", "start", "title", "dir"}
        assert attributes.get("dir", "auto") in {"auto", "ltr"}
        assert (attributes.get("href") or "https:").startswith(("https:", "http:", "mailto:"))


def test_an_image_is_a_link_and_is_not_fetched() -> None:
    html = render("![beacon](https://evil.example/pixel.png)")
    assert [tag for tag, _ in Page(html).tags] == ["p", "a"]


def test_a_link_tells_nothing_to_where_it_leads() -> None:
    attributes = dict(Page(render("[a](https://example.org)")).tags)["a"]
    assert attributes == {"href": "https://example.org", "target": "_blank", "rel": "noopener nofollow noreferrer"}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_cheap(name: str) -> None:
    render("```python\nx = 1\n```")
    start = time.process_time()
    render(BOMBS[name])
    # Seconds of CPU; the worst of them takes 0.03.
    assert time.process_time() - start < 0.5


def test_a_long_text_is_shown_as_it_is_written() -> None:
    html = render("# not a heading\n" + "a" * MAX_MARKDOWN_LENGTH)
    assert html.startswith('<pre class="plain" dir="auto"># not a heading')


def test_a_right_to_left_override_is_named() -> None:
    html = render("invoice\u202efdp.exe")
    assert "\u202e" not in html
    assert '<mark class="invisible" title="Right-To-Left Override">U+202E</mark>' in html


def test_a_control_that_markdown_decodes_is_named_too() -> None:
    assert "U+202E</mark>" in render("invoice&#x202e;fdp.exe")


def test_a_run_of_invisible_characters_is_one_mark() -> None:
    assert ">U+200B U+200C U+200D +2</mark>" in render("a\u200b\u200c\u200d\u200b\u200bb")


def test_tag_characters_can_not_smuggle_text() -> None:
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "ignore")
    assert hidden not in render(f"hello{hidden}")


@pytest.mark.parametrize("text", ["👩\u200d💻", "❤\ufe0f\u200d🔥", "می\u200cخواهم", "क्\u200dष"])
def test_joiners_that_are_spelling_stay(text: str) -> None:
    assert text in render(text)


def test_a_joiner_between_latin_letters_is_named() -> None:
    assert "U+200D</mark>" in render("ig\u200dnore")


def test_code_is_coloured_by_classes() -> None:
    assert '<span class="k">for</span>' in render("```python\nfor row in rows:\n    pass\n```")


def test_code_over_the_limit_is_plain() -> None:
    assert "<span" not in render("```python\n" + "x = 1\n" * (MAX_COLOURED_CODE // 6 + 1) + "```")


def test_code_in_an_unknown_language_is_plain() -> None:
    assert render("```nonsense\n1 < 2\n```") == '<pre dir="ltr"><code>1 &lt; 2\n</code></pre>\n'


def test_headings_stand_below_those_of_the_page() -> None:
    assert render("# A\n\n###### F") == '<h4 dir="auto">A</h4>\n<h6 dir="auto">F</h6>\n'


def test_a_table_can_be_scrolled() -> None:
    html = render("| a | b |\n|---|---|\n| 1 | 2 |")
    assert html.startswith('<div class="scroll"><table>')
    assert '<td dir="auto">2</td>' in html


def test_a_single_line_break_is_kept() -> None:
    assert render("Roses are red\nviolets are blue") == '<p dir="auto">Roses are red<br>\nviolets are blue</p>\n'


def test_strikethrough_and_lists_are_read() -> None:
    assert (
        render("~~no~~\n\n3. three")
        == '<p dir="auto"><s>no</s></p>\n<ol start="3" dir="auto">\n<li>three</li>\n</ol>\n'
    )


def test_an_empty_text_is_empty() -> None:
    assert render("") == ""


def formulas(html: str) -> list[str]:
    """The sources of formulas, typeset or not."""
    found = re.findall(r'<code class="math">(.*?)</code>|data-tex="(.*?)"', html, re.DOTALL)
    return [unescape(written or typeset) for written, typeset in found]


@pytest.mark.parametrize(
    "source",
    [
        "$x$",
        "$a_1*b*c$",
        "$x < y$",
        "$\\$5$",
        "$$x$$",
        "\\(x_1 + [y](z)\\)",
        "\\[x\\]",
        "$$\n- a\n= b\n# c\n$$",
        "\\[\n> x\n\\]",
    ],
)
def test_a_formula_keeps_its_source(source: str) -> None:
    """Nothing in it is Markdown; who points at it, searches or compares gets it whole."""
    assert formulas(render(source)) == [source]
    assert formulas(render(f"Let it be:\n{source}")) == [source]
    if "\n" not in source:
        assert formulas(render(f"函数{source}是")) == [source]


@pytest.mark.parametrize(
    "text",
    [
        "$5 and $10",
        "US$5 or A$6",
        "$5/$10",
        "\\$x\\$",
        "$ x $",
        "$$",
        "$$\n\n$$",
        "`$x$`",
        "```\n$x$\n```",
        "\\\\(x\\\\)",
        "$x\ny$",
    ],
)
def test_money_and_code_are_no_formulas(text: str) -> None:
    assert formulas(render(text)) == []


def test_formulas_stand_in_lists_and_tables() -> None:
    html = render("- one\n  \\[\n  z\n  \\]\n\n| a |\n|---|\n| $y$ |\n\n> $$\n> x\n> $$")
    assert formulas(html) == ["\\[\nz\n\\]", "$y$", "$$\nx\n$$"]


def test_a_formula_is_mathml() -> None:
    assert render(r"$\frac{1}{x}$") == (
        '<p dir="auto"><span class="formula" title="$\\frac{1}{x}$" data-tex="$\\frac{1}{x}$">'
        "<math><mfrac><mn>1</mn><mi>x</mi></mfrac></math></span></p>\n"
    )
    table = render("$$\\begin{align}a&<b\\\\&=c\\tag{1}\\end{align}$$")
    assert '<math display="block"><mtable' in table
    assert '<mtd class="to-end joins-after"><mi>a</mi></mtd><mtd class="from-start joins-before"><mo>&lt;</mo>' in table
    assert "(1)" in table
    assert " style=" not in table


@pytest.mark.parametrize(
    "source",
    [
        r"$\phantom{hidden}$",
        r"$\color{white}{hidden}$",
        r"$\def\x{\x\x}\x$",
        r"$\rlap{over}$",
        r"$\kern-9em over$",
        r"$\raisebox{9em}{over}$",
        r"$\genfrac(]{9em}{0}{a}{b}$",
        r"$\eqref{other}$",
        r"$\href{https://evil.example}{x}$",
        r"\(\unknowncommand{1}\)",
        "$" + r"\sqrt{" * 80 + "x" + "}" * 80 + "$",
        "$a" + "^{a" * 120 + "}" * 120 + "$",
        "$$" + "{" * 1990 + "$$",
    ],
)
def test_a_formula_that_hides_covers_or_grows_is_shown_as_written(source: str) -> None:
    assert f'<code class="math">{escape(source)}</code>' in render(source)


def test_letters_that_nobody_sees_are_named_in_a_formula_too() -> None:
    assert '<code class="math">$a<mark class="invisible"' in render("$a\u202eb$")
    assert "invisible" not in render(r"$\lim_{h \to 0} f'(h) = \max_i \sin x_i$")
    assert "invisible" not in render(r"$\left.\frac{a}{b}\right|_{x=0}$ and $\begin{cases}a\end{cases}$")


def test_html_in_a_formula_is_text() -> None:
    html = render(r"$\text{<img src=x onerror=alert(1)>} < y$")
    assert "<img" not in html
    assert "<mtext>&lt;img" in html


def test_a_formula_that_never_closes_swallows_nothing() -> None:
    html = render("$$\nx\n\n# Heading\n\n\\[ y")
    assert formulas(html) == []
    assert "<h4" in html


def test_each_outermost_block_finds_its_own_direction() -> None:
    html = render("مرحبا\n\nHello\n\n- مرحبا\n  - a\n\n> مرحبا\n>\n> x")
    found = [(tag, attributes.get("dir")) for tag, attributes in Page(html).tags]
    assert found == [
        *[("p", "auto"), ("p", "auto"), ("ul", "auto"), ("li", None), ("ul", None), ("li", None)],
        *[("blockquote", "auto"), ("p", None), ("p", None)],
    ]
