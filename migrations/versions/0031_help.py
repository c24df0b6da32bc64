"""Help that does not lead: cards in a reward model's order, where the project allows it, but for a control share."""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None

# Which tasks of which people are without help is drawn by lot, and the same however often one asks. Gold measures
# people, and comparisons measure versions: neither is ever helped with (the latter have no judged order).
ASSIST = """
    declare
        judged uuid[];
    begin
        select t.judged_order into judged from tasks t join projects p on p.id = t.project_id
            where t.id = new.task_id and p.help = 'presort' and not t.is_gold
                and t.judged_order @> new.display_order and t.judged_order <@ new.display_order
                and draw(concat_ws('|', p.seed, 'help', t.id, new.annotator_id)) >= p.unassisted_share;
        if judged is not null then
            new.display_order := judged;
            new.is_assisted := true;
        end if;
        return new;
    end"""


def upgrade() -> None:
    op.add_column("projects", sa.Column("help", sa.Text(), server_default="none", nullable=False))
    op.add_column("projects", sa.Column("unassisted_share", sa.Double(), server_default="0.25", nullable=False))
    op.create_check_constraint(op.f("ck_projects_help"), "projects", "help in ('none', 'presort')")
    op.create_check_constraint(op.f("ck_projects_unassisted_share"), "projects", "unassisted_share between 0.1 and 1")
    op.add_column("leases", sa.Column("is_assisted", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.execute(f"create function assist_lease() returns trigger language plpgsql as $${ASSIST}$$")
    op.execute("create trigger assist before insert on leases for each row execute function assist_lease()")
    op.execute(
        "create trigger assisted_for_ever before update of is_assisted on leases for each row "
        "when (old.is_assisted is distinct from new.is_assisted) execute function refuse_change()"
    )


def downgrade() -> None:
    op.execute("drop trigger assisted_for_ever on leases")
    op.execute("drop trigger assist on leases")
    op.execute("drop function assist_lease()")
    op.drop_column("leases", "is_assisted")
    op.drop_column("projects", "unassisted_share")
    op.drop_column("projects", "help")
