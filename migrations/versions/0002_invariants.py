"""Rules that the database keeps by itself (docs/design.md, section 3)."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

FUNCTIONS = {
    # Rule 1: the counter grows up to the overlap and not beyond; an overlap that is lowered later keeps what was taken.
    "guard_task_places": """
        begin
            if new.num_taken > old.num_taken and new.num_taken > new.overlap then
                raise exception 'task % has no free place', new.id
                    using errcode = 'check_violation', constraint = 'ck_tasks_exact_overlap';
            end if;
            return new;
        end""",
    # Rule 1: no code has to remember to count. An open or answered lease takes a place.
    "count_lease_places": """
        declare
            before int := 0;
            after int := 0;
        begin
            if tg_op <> 'INSERT' then before := (old.state in ('open', 'answered'))::int; end if;
            if tg_op <> 'DELETE' then after := (new.state in ('open', 'answered'))::int; end if;
            if after <> before then
                update tasks set num_taken = num_taken + after - before where id = coalesce(new.task_id, old.task_id);
            end if;
            return null;
        end""",
    # Rule 1: a ranking that was made elsewhere takes a place without a lease.
    "count_imported_places": """
        begin
            update tasks set num_taken = num_taken + 1 where id = new.task_id;
            return null;
        end""",
    # Rules 2 and 5: rows that people and datasets rest on stay as they were written.
    "refuse_change": """
        begin
            raise exception '% rows are never changed or deleted', tg_table_name
                using errcode = 'restrict_violation', constraint = 'immutable_' || tg_table_name;
        end""",
    # Rule 3: every completion of the task is named, places are 1, 2, 3 ... without gaps, and the project's rules hold.
    "check_ranking_is_whole": """
        declare
            named int; placed int; cells int; worst int; expected int; ties boolean; partial boolean;
        begin
            select count(*), count(place), count(distinct place), max(place) into named, placed, cells, worst
                from ranking_places where ranking_id = new.id;
            select count(*) into expected from task_completions where task_id = new.task_id;
            if named <> expected or placed < 2 or worst <> cells then
                raise exception 'ranking % does not order the completions of its task', new.id
                    using errcode = 'check_violation', constraint = 'ck_rankings_whole';
            end if;
            if new.source <> 'import' then
                select ties_allowed, partial_allowed into ties, partial from projects where id = new.project_id;
                if (placed < named and not partial) or (cells < placed and not ties) then
                    raise exception 'ranking % has ties or gaps that its project does not allow', new.id
                        using errcode = 'check_violation', constraint = 'ck_rankings_allowed';
                end if;
            end if;
            return null;
        end""",
    # Rule 7: whatever asks for them, test prompts go to sampling and evaluation only, and to no other project's run.
    "check_run_prompt": """
        begin
            if not exists (
                select from runs r join prompts p on p.project_id = r.project_id
                where r.id = new.run_id and p.id = new.prompt_id
                    and (p.split <> 'test' or r.kind in ('sample', 'evaluate'))
            ) then
                raise exception 'prompt % may not go to run %', new.prompt_id, new.run_id
                    using errcode = 'check_violation', constraint = 'ck_run_prompts_allowed';
            end if;
            return new;
        end""",
    # Rules 2 and 7: no test prompt and no surplus ranking is ever learned from.
    "check_dataset_row": """
        begin
            if exists (
                select from rankings r join tasks t on t.id = r.task_id join prompts p on p.id = t.prompt_id
                where r.id = new.ranking_id and (p.split = 'test' or r.is_surplus)
            ) then
                raise exception 'ranking % may not go to a dataset', new.ranking_id
                    using errcode = 'check_violation', constraint = 'ck_dataset_rows_allowed';
            end if;
            return new;
        end""",
    # Completions of a task answer its prompt.
    "check_task_completion": """
        begin
            if not exists (
                select from tasks t join completions c on c.prompt_id = t.prompt_id
                where t.id = new.task_id and c.id = new.completion_id
            ) then
                raise exception 'completion % does not answer the prompt of task %', new.completion_id, new.task_id
                    using errcode = 'check_violation', constraint = 'ck_task_completions_same_prompt';
            end if;
            return new;
        end""",
}

TRIGGERS = {
    ("tasks", "guard_places"): "before update of num_taken on tasks for each row execute function guard_task_places()",
    ("leases", "count_places"): "after insert or update of state or delete on leases"
    " for each row execute function count_lease_places()",
    ("rankings", "count_places"): "after insert on rankings for each row"
    " when (new.lease_id is null and new.supersedes_id is null and not new.is_surplus)"
    " execute function count_imported_places()",
    ("rankings", "immutable"): "before delete on rankings for each row execute function refuse_change()",
    # Erasing a person empties `annotator_id`, and nothing else ever changes.
    ("rankings", "immutable_update"): "before update on rankings for each row"
    " when ((to_jsonb(old) - 'annotator_id') is distinct from (to_jsonb(new) - 'annotator_id')"
    " or (new.annotator_id is not null and new.annotator_id is distinct from old.annotator_id))"
    " execute function refuse_change()",
    ("ranking_places", "immutable"): "before update or delete on ranking_places"
    " for each row execute function refuse_change()",
    (
        "completions",
        "immutable",
    ): "before update of prompt_id, text, content_hash, run_id, index, version_id on completions"
    " for each row execute function refuse_change()",
    ("prompts", "immutable"): "before update of project_id, messages, split, root_hash, content_hash on prompts"
    " for each row execute function refuse_change()",
    ("task_completions", "same_prompt"): "before insert or update on task_completions"
    " for each row execute function check_task_completion()",
    (
        "run_prompts",
        "allowed",
    ): "before insert or update on run_prompts for each row execute function check_run_prompt()",
    ("dataset_rows", "allowed"): "before insert on dataset_rows for each row execute function check_dataset_row()",
    ("dataset_rows", "immutable"): "before update or delete on dataset_rows"
    " for each row execute function refuse_change()",
    (
        "datasets",
        "immutable",
    ): "before update of project_id, number, filter, counts, num_rows, sha256 or delete on datasets"
    " for each row execute function refuse_change()",
    ("audit_log", "immutable"): "before update of action, subject, detail, at or delete on audit_log"
    " for each row execute function refuse_change()",
}


# Whose lease is it, and what came after the cursor: asked on every page, so never by reading the whole table.
INDEXES = {
    "ix_leases_annotator": ("leases", ["annotator_id", "state"]),
    "ix_rankings_stream": ("rankings", ["project_id", "transaction_id", "number"]),
}


def upgrade() -> None:
    for name, (table, columns) in INDEXES.items():
        op.create_index(name, table, columns)
    for name, body in FUNCTIONS.items():
        op.execute(f"create function {name}() returns trigger language plpgsql as $${body}$$")
    for (table, name), definition in TRIGGERS.items():
        op.execute(f"create trigger {table}_{name} {definition}")
    # Checked at the commit, when the ranking and its places are both there.
    op.execute(
        "create constraint trigger rankings_whole after insert on rankings deferrable initially deferred"
        " for each row execute function check_ranking_is_whole()"
    )


def downgrade() -> None:
    op.execute("drop trigger rankings_whole on rankings")
    for table, name in reversed(TRIGGERS):
        op.execute(f"drop trigger {table}_{name} on {table}")
    for name in reversed(FUNCTIONS):
        op.execute(f"drop function {name}()")
    for name, (table, _) in INDEXES.items():
        op.drop_index(name, table_name=table)
