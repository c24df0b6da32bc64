"""The two looks at an answer when it is committed are one; tables that change at every ranking are tidied up sooner.

What is refused stays the same (0002, 0006): an answer orders all of its task's completions, and has what its project
requires. It is read once for both, and the project's labels only where there are any.
"""

from alembic import context, op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None

CHECK = """
    declare
        named int; placed int; cells int; worst int; expected int; is_torn boolean;
        asked record;
        required text[];
    begin
        select count(*), count(place), count(distinct place), max(place), bool_or(labels && denied)
            into named, placed, cells, worst, is_torn from ranking_places where ranking_id = new.id;
        select count(*) into expected from task_completions where task_id = new.task_id;
        if named <> expected or placed < 2 or worst <> cells then
            raise exception 'ranking % does not order the completions of its task', new.id
                using errcode = 'check_violation', constraint = 'ck_rankings_whole';
        end if;
        if new.strength is not null and (named <> 2 or (new.strength = 0) <> (cells = 1)) then
            raise exception 'ranking % has a strength that its order contradicts', new.id
                using errcode = 'check_violation', constraint = 'ck_rankings_strength_of_order';
        end if;
        if is_torn then
            raise exception 'ranking % says yes and no to a label', new.id
                using errcode = 'check_violation', constraint = 'ck_rankings_labels_once';
        end if;
        if new.source = 'import' then
            return null;
        end if;
        select ties_allowed, partial_allowed, labels, confidence, rationale, min_rationale into asked
            from projects where id = new.project_id;
        if (placed < named and not asked.partial_allowed) or (cells < placed and not asked.ties_allowed) then
            raise exception 'ranking % has ties or gaps that its project does not allow', new.id
                using errcode = 'check_violation', constraint = 'ck_rankings_allowed';
        end if;
        select array_agg(label ->> 'key') into required from jsonb_array_elements(asked.labels) label
            where (label ->> 'required')::boolean and not coalesce((label ->> 'removed')::boolean, false);
        if (asked.confidence = 'required' and new.confidence is null)
            or (asked.rationale = 'required' and char_length(new.rationale) < greatest(1, asked.min_rationale))
            or (required is not null and exists (
                select from ranking_places where ranking_id = new.id and not (labels || denied) @> required))
        then
            raise exception 'ranking % lacks an answer that its project requires', new.id
                using errcode = 'check_violation', constraint = 'ck_rankings_answered';
        end if;
        return null;
    end"""
OLD = {"whole": ("0002", "check_ranking_is_whole"), "answered": ("0006", "check_ranking_answers")}
# Each ranking leaves a dead row of its task and of its lease behind, at the front of the index of what waits: by the
# usual fifth of a million rows, who takes a task would pass 200,000 of them.
OFTEN = ("tasks", "leases")


def upgrade() -> None:
    for name, (_, function) in OLD.items():
        op.execute(f"drop trigger rankings_{name} on rankings")
        op.execute(f"drop function {function}()")
    op.execute(f"create function check_ranking() returns trigger language plpgsql as $${CHECK}$$")
    watch("checked", "check_ranking")
    for table in OFTEN:
        op.execute(f"alter table {table} set (autovacuum_vacuum_scale_factor = 0.01)")


def watch(name: str, function: str) -> None:
    """Have a function look at each new ranking when it is committed."""
    op.execute(
        f"create constraint trigger rankings_{name} after insert on rankings deferrable initially deferred"
        f" for each row execute function {function}()"
    )


def downgrade() -> None:
    for table in OFTEN:
        op.execute(f"alter table {table} reset (autovacuum_vacuum_scale_factor)")
    op.execute("drop trigger rankings_checked on rankings")
    op.execute("drop function check_ranking()")
    for name, (revision, function) in OLD.items():
        module = context.script.get_revision(revision).module
        body = module.FUNCTIONS[function] if revision == "0002" else module.CHECK_ANSWERS
        op.execute(f"create function {function}() returns trigger language plpgsql as $${body}$$")
        watch(name, function)
