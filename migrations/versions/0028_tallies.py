"""How much a project holds, counted as it comes in: a page that shows a number reads a few rows, not all it counts.

Triggers append what changed; `app.projects.tallies` sums it up, and now and then puts the rows of a project together.
No row is ever updated, so that nobody waits for anybody who ranks in the same project.
"""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

COUNTS = ("num_prompts", "num_tasks", "num_places", "num_ranked", "num_rankings", "num_learnable")

# What each task adds; the one place that says what these numbers mean.
VIEW = """
create view task_tallies as
select
    t.id as task_id, t.prompt_id, t.project_id, t.round, p.split,
    0 as num_prompts,
    1 as num_tasks,
    case when t.withdrawn_at is null and not t.is_gold then t.overlap else 0 end as num_places,
    case when t.withdrawn_at is null and not t.is_gold then r.num_current else 0 end as num_ranked,
    case when t.purpose = 'learn' and not t.is_gold then r.num_current else 0 end as num_rankings,
    case when t.purpose = 'learn' and not t.is_gold and t.withdrawn_at is null and p.withdrawn_at is null
        and p.split <> 'test' then r.num_kept else 0 end as num_learnable
from tasks t
join prompts p on p.id = t.prompt_id
cross join lateral (
    select
        count(*) as num_current,
        count(*) filter (where not exists (select from rejections x where x.ranking_id = r.id)) as num_kept
    from rankings r
    where r.task_id = t.id and not r.is_surplus
        and not exists (select from rankings newer where newer.supersedes_id = r.id)
) r"""

FUNCTIONS = {
    "tally_new_prompts": """
        begin
            insert into tallies (project_id, split, num_prompts)
                select project_id, split, count(*) from added group by project_id, split;
            return null;
        end""",
    "tally_new_tasks": """
        begin
            insert into tallies (project_id, round, split, num_tasks, num_places)
                select t.project_id, t.round, p.split, count(*),
                    coalesce(sum(t.overlap) filter (where not t.is_gold), 0)
                from added t join prompts p on p.id = t.prompt_id
                group by t.project_id, t.round, p.split;
            return null;
        end""",
    "tally_overlap": """
        begin
            insert into tallies (project_id, round, split, num_places)
                select new.project_id, new.round, split, new.overlap - old.overlap
                from prompts where id = new.prompt_id;
            return null;
        end""",
    # As the view says of one ranking more. A change of mind counts nothing anew, but for what was rejected before.
    # The tasks are locked (by most who store a ranking they are already), so that none of them changes meanwhile:
    # what the second statement reads, it reads after that.
    "tally_new_rankings": """
        begin
            perform from tasks where id in (select task_id from added) order by id for share;
            insert into tallies (project_id, round, split, num_ranked, num_rankings, num_learnable)
                select t.project_id, t.round, p.split,
                    count(*) filter (where r.supersedes_id is null and t.withdrawn_at is null and not t.is_gold),
                    count(*) filter (where r.supersedes_id is null and t.purpose = 'learn' and not t.is_gold),
                    count(*) filter (where t.purpose = 'learn' and not t.is_gold and t.withdrawn_at is null
                        and p.withdrawn_at is null and p.split <> 'test')
                from added r join tasks t on t.id = r.task_id join prompts p on p.id = t.prompt_id
                where not r.is_surplus and (r.supersedes_id is null
                    or exists (select from rejections x where x.ranking_id = r.supersedes_id))
                group by t.project_id, t.round, p.split;
            return null;
        end""",
    # What tasks count for is taken out before something about them changes, and put in again afterwards.
    "tally_again": """
        declare
            tasks_of uuid[];
            sign int := case tg_when when 'BEFORE' then -1 else 1 end;
        begin
            if tg_table_name = 'tasks' then
                tasks_of := array[new.id];
            elsif tg_table_name = 'prompts' then
                tasks_of := array(select id from tasks where prompt_id = new.id);
            else
                tasks_of := array(select task_id from rankings where id = new.ranking_id);
            end if;
            perform from tasks where id = any (tasks_of) order by id for no key update;
            insert into tallies
                (project_id, round, split, num_tasks, num_places, num_ranked, num_rankings, num_learnable)
                select project_id, round, split, sign * num_tasks, sign * num_places, sign * num_ranked,
                    sign * num_rankings, sign * num_learnable
                from task_tallies where task_id = any (tasks_of);
            return new;
        end""",
}
ADDED = "referencing new table as added for each statement execute function"
TASK_TURNS = """for each row when (old.round is distinct from new.round or old.is_gold <> new.is_gold
    or (old.withdrawn_at is null) <> (new.withdrawn_at is null)) execute function tally_again()"""
PROMPT_TURNS = """for each row when ((old.withdrawn_at is null) <> (new.withdrawn_at is null))
    execute function tally_again()"""
TRIGGERS = {
    ("prompts", "tally_new"): f"after insert on prompts {ADDED} tally_new_prompts()",
    ("prompts", "tally_before"): f"before update of withdrawn_at on prompts {PROMPT_TURNS}",
    ("prompts", "tally_after"): f"after update of withdrawn_at on prompts {PROMPT_TURNS}",
    ("tasks", "tally_new"): f"after insert on tasks {ADDED} tally_new_tasks()",
    ("tasks", "tally_before"): f"before update of round, is_gold, withdrawn_at on tasks {TASK_TURNS}",
    ("tasks", "tally_after"): f"after update of round, is_gold, withdrawn_at on tasks {TASK_TURNS}",
    ("tasks", "tally_overlap"): """after update of overlap on tasks for each row
        when (old.overlap <> new.overlap and old.round is not distinct from new.round and not old.is_gold
            and not new.is_gold and old.withdrawn_at is null and new.withdrawn_at is null)
        execute function tally_overlap()""",
    ("rankings", "tally_new"): f"after insert on rankings {ADDED} tally_new_rankings()",
    ("rejections", "tally_before"): "before insert on rejections for each row execute function tally_again()",
    ("rejections", "tally_after"): "after insert on rejections for each row execute function tally_again()",
}


def upgrade() -> None:
    op.create_table(
        "tallies",
        # No key to projects: rows are written by triggers of tables that have one.
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=True),
        sa.Column("split", sa.Text(), nullable=False),
        *[sa.Column(name, sa.BigInteger(), server_default="0", nullable=False) for name in COUNTS],
    )
    op.create_index("ix_tallies_project", "tallies", ["project_id"])
    op.execute(VIEW)
    sums = ", ".join(f"sum({name})" for name in COUNTS)
    op.execute(
        f"insert into tallies (project_id, round, split, {', '.join(COUNTS)})"  # noqa: S608 (names of columns)
        f" select project_id, round, split, {sums} from task_tallies group by project_id, round, split"
    )
    op.execute(
        "insert into tallies (project_id, split, num_prompts)"
        " select project_id, split, count(*) from prompts group by project_id, split"
    )
    for name, body in FUNCTIONS.items():
        op.execute(f"create function {name}() returns trigger language plpgsql as $${body}$$")
    for (table, name), definition in TRIGGERS.items():
        op.execute(f"create trigger {table}_{name} {definition}")


def downgrade() -> None:
    for table, name in reversed(TRIGGERS):
        op.execute(f"drop trigger {table}_{name} on {table}")
    for name in FUNCTIONS:
        op.execute(f"drop function {name}()")
    op.execute("drop view task_tallies")
    op.drop_table("tallies")
