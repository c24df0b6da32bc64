"""The claim of a task, in one question to the database.

Whoever takes a task first waits for their own other requests, and then has to see what those did: each step needs a
look at the tables that is younger than the step before. Within a function every statement has one, and the way to
the web process and back is gone once instead of eight times, each of which cost more than the statement itself.

What may never happen is still refused by constraints and triggers (0002, 0008), whoever claims.
"""

from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

# A number from 0 to below 1, the same for the same words: the first 48 bits of their SHA-256.
DRAW = """
    select ('x' || encode(substr(sha256(convert_to(told, 'UTF8')), 1, 6), 'hex'))::bit(48)::bigint / 2::float8 ^ 48"""

# Others could have these: taken back, unless their holder is at work on them at this very moment. Not those that this
# person has or had: who holds the lock of a task must be able to take it, or two could wait for each other's.
EXPIRE = """
    begin
        if not exists (select from leases where state = 'open' and expires_at <= at) then
            return;
        end if;
        with overdue as materialized (
            select l.id from leases l join tasks t on t.id = l.task_id
            where l.state = 'open' and l.expires_at <= at
            and t.project_id = in_project and t.withdrawn_at is null
            and not exists (select from leases own
                where own.task_id = t.id and own.annotator_id = person and own.state <> 'expired')
            order by l.expires_at limit 20 for update skip locked)
        update leases set state = 'expired' from overdue where leases.id = overdue.id;
    end"""

# Their own expired lease, the last one first, with its order and draft, while its task has a place.
LEFT = """
    select l.id from leases l join tasks t on t.id = l.task_id
    where l.annotator_id = person and l.state = 'expired'
    and t.project_id = in_project and t.withdrawn_at is null
    and (t.num_taken < t.overlap or t.is_gold) and t.is_qualifying = is_test
    order by l.expires_at desc, l.id limit 1 for update skip locked"""

# The audiences in which to look, one after the other: that whose first task comes first leads. Null stands for all.
AUDIENCES = """
    declare
        mine bigint[];
        is_all boolean;
    begin
        select coalesce(array_agg(a.id) filter (where is_in_audience(a, u)), '{}'),
            coalesce(bool_and(is_in_audience(a, u)), true)
        into mine, is_all from users u left join audiences a on a.project_id = in_project where u.id = person;
        if is_all then
            return array[null::bigint];
        elsif cardinality(mine) < 2 then
            return mine;
        end if;
        return array(
            select a.id from unnest(mine) a (id), lateral (
                select t.priority, t.number from tasks t
                where t.audience_id = a.id and t.num_taken < t.overlap and t.withdrawn_at is null and not t.is_gold
                and not exists (select from leases l where l.task_id = t.id and l.annotator_id = person)
                order by t.priority desc, t.number limit 1
            ) first_task order by first_task.priority desc, first_task.number);
    end"""
IS_IN_AUDIENCE = """
    select (cardinality(u.languages) = 0 or a.language = '' or a.language = any (u.languages))
        and a.skills <@ u.skills"""

# The first waiting task for this purpose that nobody else is taking at this moment; others' locks are never waited
# for. Each of the two questions has an index that begins as it asks.
WAITING = """
    declare
        audience bigint;
        found uuid;
    begin
        foreach audience in array audiences_in_turn(in_project, person) loop
            if audience is null then
                select t.id into found from tasks t
                where t.project_id = in_project and t.withdrawn_at is null and t.num_taken < t.overlap
                and not t.is_gold and t.purpose = wanted
                and not exists (select from leases l where l.task_id = t.id and l.annotator_id = person)
                order by t.priority desc, t.number limit 1 for no key update skip locked;
            else
                select t.id into found from tasks t
                where t.audience_id = audience and t.withdrawn_at is null and t.num_taken < t.overlap
                and not t.is_gold and t.purpose = wanted
                and not exists (select from leases l where l.task_id = t.id and l.annotator_id = person)
                order by t.priority desc, t.number limit 1 for no key update skip locked;
            end if;
            exit when found is not null;
        end loop;
        return found;
    end"""

# A gold task that this person has not had: one of the qualification, or one of those that come between. Everybody gets
# them in an order of their own: two who sit side by side do not meet the same ones.
GOLD = """
    select t.id from tasks t
    where t.project_id = in_project and t.withdrawn_at is null and t.is_gold and t.is_qualifying = is_test
    and not exists (select from leases l where l.task_id = t.id and l.annotator_id = person)
    and exists (select from audiences a, users u where a.id = t.audience_id and u.id = person and is_in_audience(a, u))
    order by md5(t.id::text || person) limit 1 for no key update skip locked"""

# A task that this person has not had: what waits; and between the others, where it is time for one, a task of a
# comparison or gold. Nobody can tell them, and asking again changes nothing. Gold comes only where another task waits:
# the last tasks of a project would else be gold.
NEW = """
    declare
        shares record;
        num_had bigint := 0;
        is_compared boolean;
        found uuid;
    begin
        if is_test then
            return gold_task(in_project, person, true);
        end if;
        select seed, gold_share, compare_share into shares from projects where id = in_project;
        is_compared := exists (select from tasks where project_id = in_project and purpose = 'compare'
            and withdrawn_at is null and num_taken < overlap and not is_gold);
        if is_compared or shares.gold_share > 0 then
            select count(*) into num_had from leases where annotator_id = person;
        end if;
        if is_compared and draw(concat_ws('|', shares.seed, 'compare', person, num_had)) < shares.compare_share then
            found := coalesce(waiting_task(in_project, person, 'compare'), waiting_task(in_project, person, 'learn'));
        else
            found := waiting_task(in_project, person, 'learn');
            if found is null and is_compared then
                found := waiting_task(in_project, person, 'compare');
            end if;
        end if;
        if found is not null and draw(concat_ws('|', shares.seed, 'gold', person, num_had)) < shares.gold_share then
            found := coalesce(gold_task(in_project, person, false), found);
        end if;
        return found;
    end"""

CLAIM = """
    declare
        found uuid;
    begin
        -- One person's requests take turns, in however many tabs, to the end of their transactions.
        perform from users where id = person for no key update;
        if is_empty_handed and exists (select from leases where annotator_id = person and state = 'open') then
            return;
        end if;
        if not is_test then
            perform expire_for(in_project, person, at);
        end if;
        found := left_lease(in_project, person, is_test);
        if found is not null then
            return query update leases set state = 'open', kind = as_kind, expires_at = until,
                was_preloaded = was_preloaded or as_kind = 'preloaded', pack_id = coalesce(in_pack, pack_id)
                where id = found returning *;
            return;
        end if;
        found := new_task(in_project, person, is_test);
        return query insert into leases
            (task_id, annotator_id, state, kind, was_preloaded, pack_id, seed, expires_at, display_order)
            select found, person, 'open', as_kind, as_kind = 'preloaded', in_pack, drawn, until, array(
                select completion_id from unnest(shuffled) with ordinality s (position, turn)
                join task_completions using (position) where task_id = found order by turn)
            where found is not null returning *;
    end"""

PERSON = "in_project uuid, person uuid"
FUNCTIONS = {
    "draw(told text) returns double precision": ("sql immutable", DRAW),
    "is_in_audience(a audiences, u users) returns boolean": ("sql stable", IS_IN_AUDIENCE),
    f"audiences_in_turn({PERSON}) returns bigint[]": ("plpgsql", AUDIENCES),
    f"waiting_task({PERSON}, wanted text) returns uuid": ("plpgsql", WAITING),
    f"gold_task({PERSON}, is_test boolean) returns uuid": ("sql", GOLD),
    f"new_task({PERSON}, is_test boolean) returns uuid": ("plpgsql", NEW),
    f"left_lease({PERSON}, is_test boolean) returns uuid": ("sql", LEFT),
    f"expire_for({PERSON}, at timestamptz) returns void": ("plpgsql", EXPIRE),
    f"claim_task({PERSON}, at timestamptz, until timestamptz, as_kind text, in_pack uuid, is_test boolean,"
    " is_empty_handed boolean, drawn bigint, shuffled integer[]) returns setof leases": ("plpgsql", CLAIM),
}


def upgrade() -> None:
    for head, (language, body) in FUNCTIONS.items():
        op.execute(f"create function {head} language {language} as $${body}$$")


def downgrade() -> None:
    for head in reversed(FUNCTIONS):
        op.execute(f"drop function {head.partition('(')[0]}")
