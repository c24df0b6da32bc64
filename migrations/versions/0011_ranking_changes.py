"""A log of what happened to rankings, written by triggers and followed by trainers."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

FUNCTIONS = {
    "log_ranking_stored": """
        begin
            if new.supersedes_id is not null then
                insert into ranking_changes (project_id, ranking_id, kind)
                    values (new.project_id, new.supersedes_id, 'superseded');
            end if;
            insert into ranking_changes (project_id, ranking_id, kind) values (new.project_id, new.id, 'stored');
            return null;
        end""",
    # Of a task, or of all tasks of a prompt. `restored` where it was taken back.
    "log_rankings_withdrawn": """
        declare
            what text := case when new.withdrawn_at is null then 'restored' else 'withdrawn' end;
        begin
            if tg_table_name = 'tasks' then
                insert into ranking_changes (project_id, ranking_id, kind)
                    select project_id, id, what from rankings where task_id = new.id order by number;
            else
                insert into ranking_changes (project_id, ranking_id, kind)
                    select r.project_id, r.id, what from tasks t join rankings r on r.task_id = t.id
                    where t.prompt_id = new.id order by r.number;
            end if;
            return null;
        end""",
}
CHANGED = "when ((old.withdrawn_at is null) <> (new.withdrawn_at is null)) execute function log_rankings_withdrawn()"
TRIGGERS = {
    ("rankings", "log_stored"): "after insert on rankings for each row execute function log_ranking_stored()",
    ("tasks", "log_withdrawn"): f"after update of withdrawn_at on tasks for each row {CHANGED}",
    ("prompts", "log_withdrawn"): f"after update of withdrawn_at on prompts for each row {CHANGED}",
    ("ranking_changes", "immutable"): "before update or delete on ranking_changes"
    " for each row execute function refuse_change()",
}


def upgrade() -> None:
    op.create_table(
        "ranking_changes",
        sa.Column("number", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "transaction_id",
            sa.BigInteger(),
            server_default=sa.text("(pg_current_xact_id()::text)::bigint"),
            nullable=False,
        ),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("ranking_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "kind in ('stored', 'superseded', 'withdrawn', 'restored', 'rejected', 'approved')",
            name=op.f("ck_ranking_changes_kind"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_ranking_changes_project_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["ranking_id"], ["rankings.id"], name=op.f("fk_ranking_changes_ranking_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_ranking_changes")),
    )
    # What is there already happened, too.
    op.execute(
        "insert into ranking_changes (transaction_id, project_id, ranking_id, kind, at)"
        " select r.transaction_id, r.project_id, what.id, what.kind, r.created_at from rankings r"
        " cross join lateral (values (r.supersedes_id, 'superseded', 1), (r.id, 'stored', 2)) as what (id, kind, place)"
        " where what.id is not null order by r.number, what.place"
    )
    op.create_index("ix_ranking_changes_stream", "ranking_changes", ["project_id", "transaction_id", "number"])
    op.create_index("ix_ranking_changes_ranking", "ranking_changes", ["ranking_id"])
    for name, body in FUNCTIONS.items():
        op.execute(f"create function {name}() returns trigger language plpgsql as $${body}$$")
    for (table, name), definition in TRIGGERS.items():
        op.execute(f"create trigger {table}_{name} {definition}")


def downgrade() -> None:
    for table, name in reversed(TRIGGERS):
        op.execute(f"drop trigger {table}_{name} on {table}")
    for name in FUNCTIONS:
        op.execute(f"drop function {name}()")
    op.drop_table("ranking_changes")
