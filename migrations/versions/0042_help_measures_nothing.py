"""What is held out for validation is ranked without help: it measures the reward model that would be followed."""

from alembic import op

revision = "0042"
down_revision = "0041"
branch_labels = None
depends_on = None

# As it was made in 0031.
HELD_OUT_TOO = """
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
# Which tasks of which people are without help is drawn by lot, and the same however often one asks. Gold measures
# people, validation prompts measure reward models, and comparisons measure versions: none of them is ever helped with
# (the latter have no judged order).
WHERE = "where t.id = new.task_id"
NOT_HELD_OUT = HELD_OUT_TOO.replace(WHERE, f"join prompts a on a.id = t.prompt_id and a.split <> 'validation' {WHERE}")


def upgrade() -> None:
    op.execute(f"create or replace function assist_lease() returns trigger language plpgsql as $${NOT_HELD_OUT}$$")


def downgrade() -> None:
    op.execute(f"create or replace function assist_lease() returns trigger language plpgsql as $${HELD_OUT_TOO}$$")
