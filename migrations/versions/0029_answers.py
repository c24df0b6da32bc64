"""The answer to a lease, in one question to the database: locked, judged and stored, as the claim of a task is (0026).
And what a lease shows, so that a claim tells it at once.

A column that rankings get later has to be written by `store_ranking`, too.
"""

from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

RANKING = (
    "id, project_id, task_id, lease_id, annotator_id, source, supersedes_id, is_surplus, rationale, confidence,"
    " all_bad, strength, body_hash, shown_at, first_action_at, submitted_at, active_seconds, device, num_undos, inputs,"
    " is_preloaded, is_offline"
)
SAID = (
    "number bigint, transaction_id bigint, created_at timestamptz, is_surplus boolean, is_preloaded boolean,"
    " is_offline boolean"
)

# A ranking and its places, as JSON with the names of their columns.
STORE = f"""
    #variable_conflict use_column
    begin
        return query insert into rankings ({RANKING})
            select {RANKING} from jsonb_populate_record(null::rankings, given)
            returning number, transaction_id, created_at, is_surplus, is_preloaded, is_offline;
        insert into ranking_places (ranking_id, task_id, completion_id, place, rating, labels, denied)
            select (given ->> 'id')::uuid, (given ->> 'task_id')::uuid, p.completion_id, p.place, p.rating, p.labels,
                p.denied from jsonb_populate_recordset(null::ranking_places, placed) p;
    end"""  # noqa: S608 (names of columns)

# Locks as everywhere: the person, the lease, its task. No row: the lease is not theirs, or was answered or given back.
# An answer counts where its lease kept its place, or a place is free; else it is surplus. That takes no place, and its
# annotator does not get the task again: that is a released lease.
ANSWER = """
    declare
        held leases;
        asked tasks;
        has_place boolean;
    begin
        perform from users where id = person for no key update;
        select * into held from leases where id = answered and annotator_id = person for no key update;
        select * into asked from tasks where id = held.task_id for no key update;
        if held.id is null or held.state not in ('open', 'expired') then
            return;
        end if;
        has_place := held.state = 'open'
            or (asked.withdrawn_at is null and (asked.is_gold or asked.num_taken < asked.overlap));
        update leases set state = case when has_place then 'answered' else 'released' end, draft = null
            where id = answered;
        return query select * from store_ranking(given || jsonb_build_object('is_surplus', not has_place,
            'is_preloaded', held.was_preloaded, 'is_offline', held.pack_id is not null), placed);
    end"""


# The conversation and the answers' texts. A look of its own, younger than that of the statement that claims: the task
# may have been made while that one waited.
SHEET = """
    begin
        return (select jsonb_build_object('project_id', t.project_id, 'messages', p.messages, 'texts',
                (select jsonb_object_agg(c.id, c.text) from completions c where c.id = any (completions)))
            from tasks t join prompts p on p.id = t.prompt_id where t.id = task);
    end"""


def upgrade() -> None:
    op.execute(f"create function sheet_of(task uuid, completions uuid[]) returns jsonb language plpgsql as $${SHEET}$$")
    for head, body in (
        ("store_ranking(given jsonb, placed jsonb)", STORE),
        ("answer_lease(answered uuid, person uuid, given jsonb, placed jsonb)", ANSWER),
    ):
        op.execute(f"create function {head} returns table ({SAID}) language plpgsql as $${body}$$")


def downgrade() -> None:
    op.execute("drop function sheet_of(uuid, uuid[])")
    op.execute("drop function answer_lease(uuid, uuid, jsonb, jsonb)")
    op.execute("drop function store_ranking(jsonb, jsonb)")
