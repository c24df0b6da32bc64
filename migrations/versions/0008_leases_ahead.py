"""Leases ahead: the next task fetched early, or a pack of tasks taken offline. And an overlap that changes at once."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# One task in hand and one fetched ahead, or one device's pack. The person is locked first, as the service does it, so
# that two transactions cannot both find room.
CHECK_OPEN_LEASES = """
    declare
        num_packed int;
        num_in_the_way int;
    begin
        perform from users where id = new.annotator_id for no key update;
        select count(*) filter (where is_same), count(*) filter (where not is_same) into num_packed, num_in_the_way
            from (
                select new.kind = 'offline' and kind = 'offline' and pack_id = new.pack_id as is_same
                from leases where annotator_id = new.annotator_id and state = 'open' and id <> new.id
                and (kind = 'offline' or new.kind = 'offline')
            ) held;
        if num_in_the_way > 0 then
            raise exception 'annotator % holds tasks in a pack, or on another device', new.annotator_id
                using errcode = 'check_violation', constraint = 'ck_leases_one_pack';
        end if;
        if num_packed >= 25 then
            raise exception 'pack % is full', new.pack_id
                using errcode = 'check_violation', constraint = 'ck_leases_pack_size';
        end if;
        return new;
    end"""
# Tasks that were made for people to rank follow their project's overlap; imported ones hold what was imported.
FOLLOW_OVERLAP = """
    begin
        update tasks set overlap = new.overlap
            where project_id = new.id and overlap = old.overlap and run_id is not null and withdrawn_at is null;
        return null;
    end"""


def upgrade() -> None:
    op.add_column("leases", sa.Column("kind", sa.Text(), server_default="active", nullable=False))
    op.add_column("leases", sa.Column("was_preloaded", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("leases", sa.Column("pack_id", sa.Uuid(), nullable=True))
    op.create_check_constraint(op.f("ck_leases_kind"), "leases", "kind in ('active', 'preloaded', 'offline')")
    op.create_check_constraint(op.f("ck_leases_pack"), "leases", "kind <> 'offline' or pack_id is not null")
    for kind in ("active", "preloaded"):
        condition = sa.text(f"state = 'open' and kind = '{kind}'")
        op.create_index(f"uq_leases_{kind}", "leases", ["annotator_id"], unique=True, postgresql_where=condition)
    op.drop_index("uq_leases_open", table_name="leases")
    for name, body in (("check_open_leases", CHECK_OPEN_LEASES), ("follow_overlap", FOLLOW_OVERLAP)):
        op.execute(f"create function {name}() returns trigger language plpgsql as $${body}$$")
    op.execute(
        "create trigger leases_ahead before insert or update of state, kind, pack_id, annotator_id on leases"
        " for each row when (new.state = 'open') execute function check_open_leases()"
    )
    op.execute(
        "create trigger projects_overlap after update of overlap on projects for each row"
        " when (new.overlap <> old.overlap) execute function follow_overlap()"
    )


def downgrade() -> None:
    op.execute("drop trigger projects_overlap on projects")
    op.execute("drop trigger leases_ahead on leases")
    op.execute("drop function follow_overlap()")
    op.execute("drop function check_open_leases()")
    # A person held one open lease before.
    op.execute("update leases set state = 'expired' where state = 'open' and kind <> 'active'")
    op.create_index(
        "uq_leases_open", "leases", ["annotator_id"], unique=True, postgresql_where=sa.text("state = 'open'")
    )
    for kind in ("preloaded", "active"):
        op.drop_index(f"uq_leases_{kind}", table_name="leases")
    for name in ("pack", "kind"):
        op.drop_constraint(op.f(f"ck_leases_{name}"), "leases", type_="check")
    for name in ("pack_id", "was_preloaded", "kind"):
        op.drop_column("leases", name)
