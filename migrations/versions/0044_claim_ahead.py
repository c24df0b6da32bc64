"""The task after the one in hand, in one question to the database.

The ranking page's script asks for it at every ranking. Step by step that was six questions, each of which cost the web
process a millisecond: the annotator, what they hold, whether it is of this project, whether it still waits for them,
that it is in hand now, and the claim.
"""

from alembic import op

revision = "0044"
down_revision = "0043"
branch_labels = None
depends_on = None

# What is in hand, and what comes after it. Nothing: something is out of the ordinary (nothing in hand, a pack, what is
# overdue, another project's task, a task that waits for this person no more), and nothing was changed.
CLAIM_AHEAD = """
    declare
        in_hand leases;
        ahead leases;
    begin
        -- One person's requests take turns, as in claim_task.
        perform from users where id = person for no key update;
        if exists (select from leases l join tasks t on t.id = l.task_id
            where l.annotator_id = person and l.state = 'open'
            and (l.kind = 'offline' or l.expires_at <= at or t.project_id <> in_project)) then
            return;
        end if;
        select * into in_hand from leases
            where annotator_id = person and state = 'open' and kind = 'active' for update;
        select * into ahead from leases
            where annotator_id = person and state = 'open' and kind = 'preloaded' for update;
        if in_hand.id is null then
            if ahead.id is null or (ahead.draft is null and not exists (
                select from tasks where id = ahead.task_id and (is_gold or num_taken <= overlap))) then
                return;
            end if;
            update leases set kind = 'active' where id = ahead.id returning * into in_hand;
            ahead := null;
        end if;
        return next in_hand;
        if ahead.id is not null then
            return next ahead;
        else
            return query select * from claim_task(
                in_project, person, at, until, 'preloaded', null, false, false, drawn, shuffled);
        end if;
    end"""


def upgrade() -> None:
    op.execute(
        "create function claim_ahead(in_project uuid, person uuid, at timestamptz, until timestamptz, drawn bigint, "
        f"shuffled integer[]) returns setof leases language plpgsql as $${CLAIM_AHEAD}$$"
    )


def downgrade() -> None:
    op.execute("drop function claim_ahead")
