"""The catalogue of Chinese sentences, kept in step with the pages: `make messages` adds what is new and drops what is
gone.

A sentence is looked for where it is written: in `_("…")` and `n_("…", "…", n)` of templates and code. What code says by
another way (a refusal is the docstring of its class, a rule is an argument) is not added by itself: write it into the
catalogue by hand, where it stays as long as that text stands anywhere in `app/`.
"""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po
from jinja2 import Environment, nodes

ROOT = Path(__file__).resolve().parents[1]
CATALOGUE = ROOT / "app" / "locale" / "zh" / "LC_MESSAGES" / "messages.po"
# No dates and no names of tools: two people who add sentences would always collide in them.
HEADER = """\
# Rankloop in Simplified Chinese. The English sentence is the key. `make messages` keeps the file in order.
msgid ""
msgstr ""
"Language: zh\\n"
"Plural-Forms: nplurals=1; plural=0;\\n"
"MIME-Version: 1.0\\n"
"Content-Type: text/plain; charset=utf-8\\n"
"Content-Transfer-Encoding: 8bit\\n"

"""
# A sentence, or one and many of it.
Sentence = str | tuple[str, str]


def read_catalogue() -> Catalog:
    """The catalogue as it is in its file."""
    with CATALOGUE.open("rb") as file:
        return read_po(file, locale="zh", abort_invalid=True)


def catalogue_text(catalogue: Catalog) -> str:
    """The text of a catalogue's file: sorted, one line a sentence, so that two changes seldom meet."""
    file = io.BytesIO()
    write_po(file, catalogue, width=0, sort_output=True, omit_header=True, ignore_obsolete=True)
    return HEADER + file.getvalue().decode().strip() + "\n"


def sentences() -> dict[Sentence, str]:
    """Every sentence that `_` or `n_` is called with, and a file that it stands in."""
    return dict([*_sentences_of_templates(), *_sentences_of_code()])


def _sentences_of_templates() -> Iterator[tuple[Sentence, str]]:
    for file, tree in templates():
        for call in tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name in {"_", "n_"}:
                texts = [arg.value if isinstance(arg, nodes.Const) else None for arg in call.args[:2]]
                yield from _as_sentence(call.node.name, texts, file)


def _sentences_of_code() -> Iterator[tuple[Sentence, str]]:
    for file, tree in sources():
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and (name := _called_word(call.func)):
                texts = [arg.value if isinstance(arg, ast.Constant) else None for arg in call.args[:2]]
                yield from _as_sentence(name, texts, file)


def _called_word(function: ast.expr) -> str | None:
    """`_` or `n_`, called by its name or as `words["_"]`."""
    found = function.id if isinstance(function, ast.Name) else None
    if isinstance(function, ast.Subscript) and isinstance(function.slice, ast.Constant):
        found = str(function.slice.value)
    return found if found in {"_", "n_"} else None


def _as_sentence(name: str, texts: list[object], file: str) -> Iterator[tuple[Sentence, str]]:
    wanted = texts[: 1 if name == "_" else 2]
    if wanted and all(isinstance(text, str) for text in wanted):
        yield (str(wanted[0]) if name == "_" else (str(wanted[0]), str(wanted[1]))), file


def texts_anywhere() -> set[str]:
    """Every text that stands in a template's expression or in the app's code, a class's docstring among them."""
    of_templates = {node.value for _, tree in templates() for node in tree.find_all(nodes.Const)}
    of_code = {node.value for _, tree in sources() for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return {" ".join(text.split()) for text in of_templates | of_code if isinstance(text, str)}


def templates() -> Iterator[tuple[str, nodes.Template]]:
    """(file name, what is in it) of every template."""
    environment = Environment(autoescape=True)
    for file in sorted((ROOT / "templates").rglob("*.html")):
        yield file.name, environment.parse(file.read_text(encoding="utf-8"))


def sources() -> Iterator[tuple[str, ast.Module]]:
    """(file name, what is in it) of every module of the app."""
    for file in sorted((ROOT / "app").rglob("*.py")):
        yield file.name, ast.parse(file.read_text(encoding="utf-8"))


def updated(catalogue: Catalog) -> Catalog:
    """The catalogue with every sentence of today, the new ones untranslated, and without those that are gone."""
    anywhere = texts_anywhere()
    today = sentences()
    new = Catalog(locale="zh")
    for message in catalogue:
        if message.id and (message.id in today or _first(message.id) in anywhere):
            new.add(message.id, message.string)
    for sentence in today:
        if sentence not in new:
            new.add(sentence)
    return new


def _first(sentence: Sentence | list[str]) -> str:
    return sentence if isinstance(sentence, str) else sentence[0]


def main() -> None:
    """Write the catalogue anew, and name what waits for its Chinese."""
    catalogue = updated(read_catalogue())
    CATALOGUE.write_text(catalogue_text(catalogue), encoding="utf-8")
    waiting = [message.id for message in catalogue if message.id and not any(message.string or ())]
    print(f"{len(catalogue)} sentences, {len(waiting)} without Chinese", *waiting, sep="\n  ")


if __name__ == "__main__":
    main()
