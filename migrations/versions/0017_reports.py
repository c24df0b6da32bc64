"""Why a task was skipped; reports of broken prompts; and no change of a ranking that a reviewer has settled."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

KINDS = "skip_kind in ('language', 'same', 'harmful', 'broken', 'other')"
# Who settles a review locks the task, so that no change slips in between.
REFUSE_SETTLED = """
    declare settled bigint;
    begin
        select settled_number into settled from tasks where id = new.task_id for key share;
        if exists (select from rankings where id = new.supersedes_id and number <= settled) then
            raise exception 'ranking % was settled by a reviewer', new.supersedes_id
                using errcode = 'check_violation', constraint = 'ck_rankings_settled';
        end if;
        return new;
    end"""
SETTLED_SO_FAR = """
    update tasks set settled_number = found.number from (
        select task_id, max(last_number) as number from reviews where state <> 'open' group by task_id
    ) found where found.task_id = tasks.id"""


def upgrade() -> None:
    op.add_column("leases", sa.Column("skip_kind", sa.Text(), nullable=True))
    op.add_column("leases", sa.Column("report_closed_at", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(op.f("ck_leases_skip_kind"), "leases", KINDS)
    op.create_check_constraint(op.f("ck_leases_skip_reason"), "leases", "skip_kind <> 'other' or skip_reason <> ''")
    op.create_index(
        "ix_leases_reports",
        "leases",
        ["task_id"],
        postgresql_where=sa.text("skip_kind = 'broken' and report_closed_at is null"),
    )
    op.add_column("tasks", sa.Column("settled_number", sa.BigInteger(), nullable=True))
    op.execute(SETTLED_SO_FAR)
    op.execute(f"create function refuse_settled() returns trigger language plpgsql as $${REFUSE_SETTLED}$$")
    op.execute(
        "create trigger rankings_settled before insert on rankings for each row"
        " when (new.supersedes_id is not null) execute function refuse_settled()"
    )


def downgrade() -> None:
    op.execute("drop trigger rankings_settled on rankings")
    op.execute("drop function refuse_settled()")
    op.drop_column("tasks", "settled_number")
    op.drop_index("ix_leases_reports", table_name="leases")
    for name in ("skip_kind", "skip_reason"):
        op.drop_constraint(op.f(f"ck_leases_{name}"), "leases", type_="check")
    op.drop_column("leases", "report_closed_at")
    op.drop_column("leases", "skip_kind")
