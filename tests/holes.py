"""Plants one hole after another in a copy of the app, and shows which test turns red: `make mutants`.

Each hole is one that a well-known tool of this kind had, or the lack of what keeps a promise (docs/security.md). A hole
that no test notices, or whose place is no longer in the code, fails the command.
"""

from __future__ import annotations

import sys

from tests import planting
from tests.planting import Mutant

ACCESS, REQUESTS = "tests/app/test_access.py", "tests/security/test_requests.py"
SIGNING_IN, TOKENS = "tests/app/accounts/test_signing_in.py", "tests/app/accounts/test_tokens.py"
GUARDS = "app/accounts/guards.py"
IMPORTS = "tests/app/formats/test_imports.py"

HOLES = (
    # Attacks
    Mutant(
        "templates that escape nothing",
        "app/web.py",
        "select_autoescape(default=True, default_for_string=True)",
        "False",
        ["tests/security/test_stored_text.py"],
    ),
    Mutant(
        "a link that tells where its reader came from",
        "app/markdown.py",
        'link_rel="noopener nofollow noreferrer"',
        'link_rel="nofollow"',
        ["tests/app/test_markdown.py"],
    ),
    Mutant(
        "images in answers, which call home",
        "app/markdown.py",
        '.disable(["image", "html_block", "html_inline"])',
        '.disable(["html_block", "html_inline"])',
        ["tests/app/test_markdown.py"],
    ),
    Mutant(
        "scripts allowed on the page",
        "app/security.py",
        "script-src 'self';",
        "script-src 'self' 'unsafe-inline';",
        [ACCESS, REQUESTS],
    ),
    Mutant(
        "answers to errors without headers",
        "app/security.py",
        "headers.setdefault(name, value)",
        'message["status"] < 500 and headers.setdefault(name, value)',
        [REQUESTS, "tests/app/test_logs.py"],
    ),
    Mutant(
        "Markdown of any length is parsed",
        "app/markdown.py",
        'if len(text) > MAX_MARKDOWN_LENGTH or text.count("[") > MAX_OPEN_BRACKETS:',
        "if False:",
        ["tests/app/test_markdown.py"],
    ),
    Mutant(
        "bodies of any size",
        "app/bodies.py",
        "if size > self._most:",
        "if size > 10**12:",
        ["tests/app/test_bodies.py"],
    ),
    Mutant(
        "a row of Parquet takes all memory",
        "app/formats/parquet_lines.py",
        "    limit_memory(MEMORY_BYTES)\n",
        "",
        [f"{IMPORTS}::test_a_row_of_parquet_that_takes_all_memory_ends_the_process_that_opened_it"],
    ),
    Mutant(
        "Parquet that counts as it is packed",
        "app/formats/sources.py",
        "read_lines(lines, max_bytes=max_bytes):",
        "read_lines(lines, max_bytes=2**63):",
        [f"{IMPORTS}::test_a_value_that_parquet_names_again_and_again_counts_each_time"],
    ),
    Mutant(
        "every wrong field explained",
        "app/main.py",
        "items[:MAX_FIELD_ERRORS]",
        "items",
        [f"{REQUESTS}::test_of_many_wrong_fields_a_hundred_are_named_and_the_rest_counted"],
    ),
    Mutant(
        "slow clients are waited for",
        "app/slow_clients.py",
        "self._timer = self.loop.call_later(seconds, self._end)",
        "pass",
        ["tests/security/test_slow_clients.py"],
    ),
    Mutant(
        "webhooks to private addresses",
        "app/webhooks/guarded.py",
        "refused = [address for address in addresses if not is_public(address)]",
        "refused = []",
        ["tests/app/webhooks/test_webhooks.py"],
    ),
    Mutant(
        "an IPv4 address dressed as IPv6 is public",
        "app/webhooks/guarded.py",
        "return (is_given_out or bool(inner)) and all(is_public(str(each)) for each in inner)",
        "return is_given_out or bool(inner)",
        ["tests/app/webhooks/test_webhooks.py"],
    ),
    Mutant(
        "a thing of another project by its id",
        GUARDS,
        "if project is None or not person.roles.scopes_in(project.id):",
        "if project is None:",
        [ACCESS, "tests/app/test_matrix.py"],
    ),
    Mutant(
        "pages for admins open to all roles",
        GUARDS,
        "        if scope not in access.scopes:\n            raise Forbidden(FORBIDDEN[scope])\n",
        "",
        ["tests/app/test_matrix.py"],
    ),
    Mutant(
        "a token that may what its scopes do not say",
        GUARDS,
        "else scopes.intersection(self.token.scopes)",
        "else scopes",
        [TOKENS, ACCESS],
    ),
    Mutant(
        "a token bound to one project reaches all",
        GUARDS,
        "        if self.token and self.token.project_ids is not None and project_id not in self.token.project_ids:\n"
        "            return frozenset()\n",
        "",
        [TOKENS, ACCESS],
    ),
    Mutant(
        "secrets stored in clear",
        "app/accounts/credentials.py",
        "return hashlib.sha256(secret.encode()).digest()",
        "return secret.encode()",
        [TOKENS, "tests/app/accounts/test_service.py"],
    ),
    Mutant(
        "a worker that was given up may write",
        "app/runs/service.py",
        "if run.state != RunState.RUNNING or run.fence != fence or run.claimed_token_id != token_id:",
        "if run.state != RunState.RUNNING:",
        ["tests/app/runs", "tests/contract/test_runs.py::test_a_worker_that_was_given_up_can_not_write"],
    ),
    Mutant(
        "a form from another site",
        "app/security.py",
        'return site in {"same-origin", "none"}',
        'return site != "cross-site"',
        [REQUESTS, ACCESS],
    ),
    Mutant(
        "a form whose origin is null",
        "app/security.py",
        'return urlsplit(origin).netloc == headers.get("host", "")',
        'return origin == "null" or urlsplit(origin).netloc == headers.get("host", "")',
        [REQUESTS, ACCESS],
    ),
    Mutant(
        "a way back that leads to another site",
        "app/web.py",
        'or url.startswith("//") or "\\\\" in url',
        'or url.startswith("//")',
        [ACCESS, REQUESTS],
    ),
    Mutant(
        "names of files that climb out of their folder",
        "app/runs/artifacts.py",
        "if not NAME.fullmatch(name):",
        'if name.startswith("/"):',
        ["tests/app/runs/test_artifacts.py", REQUESTS],
    ),
    Mutant(
        "a damaged upload is kept",
        "app/runs/artifacts.py",
        "if file_sha256(upload.partial) != upload.sha256:",
        "if False:",
        ["tests/app/runs/test_artifacts.py"],
    ),
    Mutant(
        "attention code from a hub is run",
        "trainer/weights.py",
        'if any("/" in str(name) for name in named):',
        "if False:",
        ["tests/security/test_unsafe_files.py"],
    ),
    Mutant(
        "formulas in CSV",
        "app/spreadsheets.py",
        'FORMULA = ("=", "+", "-", "@", "\\t", "\\r")',
        'FORMULA = ("=",)',
        ["tests/app/datasets/test_exports.py"],
    ),
    Mutant(
        "guesses of passwords that the refusal's rollback forgets",
        "app/accounts/attempts.py",
        "        if num > limits[key]:\n",
        "        if num > 10 * limits[key]:\n",
        [SIGNING_IN],
    ),
    Mutant(
        "an account that is not there is refused sooner",
        "app/accounts/passwords.py",
        "return HASHER.verify(password, stored or hash_of_nobody()) and stored is not None",
        "return stored is not None and HASHER.verify(password, stored)",
        [SIGNING_IN],
    ),
    Mutant(
        "a session that outlives signing in",
        "app/accounts/sessions.py",
        "    if replaces:\n        await sign_out(session, replaces)\n",
        "",
        [SIGNING_IN],
    ),
    Mutant(
        "people who spoil the data are not flagged",
        "app/quality/detectors.py",
        "passed = np.flatnonzero(course >= threshold(level))",
        "passed = np.flatnonzero(course >= 3 * threshold(level))",
        ["tests/app/quality/test_detectors.py"],
    ),
    Mutant(
        "letters that nobody sees",
        "app/markdown.py",
        "    return TAG_OR_INVISIBLE.sub(mark, html)\n",
        "    return html\n",
        ["tests/app/test_markdown.py"],
    ),
    Mutant(
        "a log that tells what people wrote",
        "app/logs.py",
        "        return super().formatException(ei) if self._has_words else told(ei[1])\n",
        "        return super().formatException(ei)\n",
        ["tests/app/test_logs.py"],
    ),
    # Faults
    Mutant(
        "a database that may forget is used",
        "app/db.py",
        'unsafe = sorted(name for name, value in settings.items() if value == "off")',
        "unsafe: list[str] = []",
        ["tests/app/test_db.py", "tests/app/test_serve.py", "tests/app/operations"],
    ),
    Mutant(
        "two take the last place of a task",
        "migrations/versions/0018_gold_tasks.py",
        "NEW_GUARD = OLD_GUARD.replace(",
        "NEW_GUARD = 'begin return new; end' or OLD_GUARD.replace(",
        ["tests/app/tasks/test_leases.py"],
    ),
    Mutant(
        "one key for two different requests",
        "app/idempotency.py",
        "    if found.request_hash != request_hash:\n        raise KeyUsedOtherwise\n",
        "",
        ["tests/app/test_idempotency.py"],
    ),
    Mutant(
        "the same request twice is done twice",
        "app/idempotency.py",
        "            if kept is not None:\n                return replay(kept)\n",
        "",
        ["tests/app/test_idempotency.py"],
    ),
    Mutant(
        "a draft that the device forgets",
        "static/rank/drafts.js",
        "const keep = (found) => store.set(key(desk.lease), JSON.stringify(found));",
        "const keep = () => {};",
        ["tests/browser/test_ranking_flow.py"],
    ),
    Mutant(
        "exports that hold a connection while they are read",
        "app/datasets/pieces.py",
        "        for stored in found:\n            yield await asyncio.to_thread(opened, stored)\n",
        "            for stored in found:\n                yield await asyncio.to_thread(opened, stored)\n",
        ["tests/faults/test_slow_readers.py"],
    ),
    Mutant(
        "a full disk is a bug of ours",
        "app/main.py",
        "    app.add_exception_handler(OSError, handle_full_disk)\n",
        "",
        ["tests/faults/test_full_disk.py"],
    ),
    Mutant(
        "a migration that can't be taken back",
        "migrations/versions/0033_when_people_differ.py",
        '    op.drop_column("projects", "review_above")\n',
        "",
        ["tests/app/test_migrations.py"],
    ),
    Mutant(
        "a damaged backup is restored",
        "app/operations/backup.py",
        '    if wrong:\n        raise BackupRefused(f"{folder} is damaged',
        '    if False:\n        raise BackupRefused(f"{folder} is damaged',
        ["tests/app/operations/test_backup.py"],
    ),
    Mutant(
        "a damaged checkpoint is loaded",
        "trainer/checkpoints.py",
        "if not (folder / name).is_file() or sha256_file(folder / name) != expected:",
        "if not (folder / name).is_file():",
        ["tests/trainer/test_checkpoints.py"],
    ),
    Mutant(
        "a step on a loss that is no number",
        "trainer/fitting.py",
        "if not (math.isfinite(loss) and math.isfinite(norm)):",
        "if False:",
        ["tests/trainer/test_reward.py", "tests/trainer/test_sft.py"],
    ),
    Mutant(
        "a gate that looks at the mean",
        "app/loop/gates.py",
        "return self.estimate.low > TOLERANCE",
        "return self.estimate.value > TOLERANCE",
        ["tests/app/loop/test_gates.py"],
    ),
    Mutant(
        "one pseudonym in all data sets",
        "app/datasets/snapshots.py",
        '(bytes(byte ^ pad for byte in key.ljust(HMAC_BLOCK, b"\\0")) for pad in (0x36, 0x5C))',
        '(bytes(byte ^ pad for byte in b"".ljust(HMAC_BLOCK, b"\\0")) for pad in (0x36, 0x5C))',
        ["tests/app/datasets/test_datasets.py"],
    ),
    Mutant(
        "an erased person whose address stays",
        "app/accounts/erasing.py",
        'user.name, user.email, user.role = f"Erased {user.id.hex[:8]}", None, None',
        'user.name, user.role = f"Erased {user.id.hex[:8]}", None',
        ["tests/app/accounts/test_erasing.py"],
    ),
)

if __name__ == "__main__":
    sys.exit(planting.main(HOLES, __doc__ or ""))
