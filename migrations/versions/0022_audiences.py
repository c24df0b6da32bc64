"""Languages and skills: of people, and of the tasks that ask for them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

# What a prompt asks of whoever ranks its answers: the language (of zh-Hans, zh) and the tags in its `meta`.
ASKED = """
        select lower(split_part(p.language, '-', 1)), array(
            select distinct lower(skill) from jsonb_array_elements_text(
                case jsonb_typeof(p.meta -> 'skills') when 'array' then p.meta -> 'skills' else '[]' end
            ) skill order by 1
        )"""
# Every task has its audience, however it was made.
SET = """
        declare asked record;
        begin
            select a.* into asked from prompts p cross join asked_by(p) a where p.id = new.prompt_id;
            select id into new.audience_id from audiences a
            where (a.project_id, a.language, a.skills) = (new.project_id, asked.language, asked.skills);
            if new.audience_id is null then
                insert into audiences (project_id, language, skills)
                values (new.project_id, asked.language, asked.skills)
                on conflict (project_id, language, skills) do update set language = excluded.language
                returning id into new.audience_id;
            end if;
            return new;
        end"""
FILL_AUDIENCES = """
        insert into audiences (project_id, language, skills)
        select distinct t.project_id, asked.language, asked.skills
        from tasks t join prompts p on p.id = t.prompt_id cross join asked_by(p) asked"""
FILL_TASKS = """
        update tasks t set audience_id = a.id
        from prompts p cross join asked_by(p) asked, audiences a
        where p.id = t.prompt_id
        and (a.project_id, a.language, a.skills) = (t.project_id, asked.language, asked.skills)"""


def upgrade() -> None:
    for name in ("languages", "skills"):
        op.add_column("users", sa.Column(name, postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False))
    op.create_table(
        "audiences",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column("skills", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_audiences_project_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audiences")),
        sa.UniqueConstraint("project_id", "language", "skills", name=op.f("uq_audiences_project_id_language_skills")),
    )
    op.add_column("tasks", sa.Column("audience_id", sa.BigInteger(), nullable=True))
    op.create_foreign_key(op.f("fk_tasks_audience_id"), "tasks", "audiences", ["audience_id"], ["id"])
    op.execute(
        "create function asked_by(p prompts) returns table (language text, skills text[]) language sql stable"
        f" as $${ASKED}$$"
    )
    op.execute(f"create function set_audience() returns trigger language plpgsql as $${SET}$$")
    op.execute("create trigger tasks_set_audience before insert on tasks for each row execute function set_audience()")
    op.execute(FILL_AUDIENCES)
    op.execute(FILL_TASKS)
    op.create_index(
        "ix_tasks_audience",
        "tasks",
        ["audience_id", sa.text("priority desc"), "number"],
        postgresql_where=sa.text("num_taken < overlap"),
    )


def downgrade() -> None:
    op.drop_index("ix_tasks_audience", table_name="tasks", postgresql_where=sa.text("num_taken < overlap"))
    op.execute("drop trigger tasks_set_audience on tasks")
    op.execute("drop function set_audience()")
    op.execute("drop function asked_by(prompts)")
    op.drop_column("tasks", "audience_id")
    op.drop_table("audiences")
    op.drop_column("users", "skills")
    op.drop_column("users", "languages")
