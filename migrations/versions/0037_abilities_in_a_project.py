"""What people can be asked in one project, as its admins know it: more skills, and perhaps fewer languages."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None

# Skills of the project come on top of those of the site. Languages that it names hold beside those of the person.
IS_IN_AUDIENCE = """
    select (cardinality(u.languages) = 0 or a.language = '' or a.language = any (u.languages))
        and (coalesce(cardinality(m.languages), 0) = 0 or a.language = '' or a.language = any (m.languages))
        and a.skills <@ (u.skills || coalesce(m.skills, '{}'))"""
OLD_IS_IN_AUDIENCE = """
    select (cardinality(u.languages) = 0 or a.language = '' or a.language = any (u.languages))
        and a.skills <@ u.skills"""
MEMBER = "left join memberships m on m.user_id = u.id and m.project_id = in_project"
# The audiences of a project to which somebody belongs: pages ask, too.
AUDIENCES_OF = f"""
    select a.id from users u {MEMBER} join audiences a on a.project_id = in_project
    where u.id = person and is_in_audience(a, u, m)"""  # noqa: S608 (no value is put in)

# As in 0026, and with the membership beside the person.
OLD_AUDIENCES = """
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
AUDIENCES = OLD_AUDIENCES.replace("(a, u)", "(a, u, m)").replace("users u left", f"users u {MEMBER} left")
GOLD = """
    select t.id from tasks t
    where t.project_id = in_project and t.withdrawn_at is null and t.is_gold and t.is_qualifying = is_test
    and not exists (select from leases l where l.task_id = t.id and l.annotator_id = person)
    and t.audience_id in (select audiences_of(in_project, person))
    order by md5(t.id::text || person) limit 1 for no key update skip locked"""
OLD_GOLD = GOLD.replace(
    "t.audience_id in (select audiences_of(in_project, person))",
    "exists (select from audiences a, users u where a.id = t.audience_id and u.id = person and is_in_audience(a, u))",
)


def replace(audiences: str, gold: str) -> None:
    """Other bodies of the two functions that ask who belongs to an audience."""
    person = "in_project uuid, person uuid"
    head = f"create or replace function audiences_in_turn({person}) returns bigint[] language plpgsql"
    op.execute(f"{head} as $${audiences}$$")
    op.execute(
        f"create or replace function gold_task({person}, is_test boolean) returns uuid language sql as $${gold}$$"
    )


def upgrade() -> None:
    for name in ("languages", "skills"):
        op.add_column("memberships", sa.Column(name, postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False))
    op.execute(
        "create function is_in_audience(a audiences, u users, m memberships) returns boolean language sql stable"
        f" as $${IS_IN_AUDIENCE}$$"
    )
    op.execute(
        "create function audiences_of(in_project uuid, person uuid) returns setof bigint language sql stable"
        f" as $${AUDIENCES_OF}$$"
    )
    replace(AUDIENCES, GOLD)
    op.execute("drop function is_in_audience(audiences, users)")


def downgrade() -> None:
    head = "create function is_in_audience(a audiences, u users) returns boolean language sql stable"
    op.execute(f"{head} as $${OLD_IS_IN_AUDIENCE}$$")
    replace(OLD_AUDIENCES, OLD_GOLD)
    op.execute("drop function audiences_of(uuid, uuid)")
    op.execute("drop function is_in_audience(audiences, users, memberships)")
    op.drop_column("memberships", "skills")
    op.drop_column("memberships", "languages")
