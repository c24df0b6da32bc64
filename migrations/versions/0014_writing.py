"""Writing: ideal answers and prompts by people, with every step of their review."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

SWITCHES = ["writes_demonstrations", "writes_prompts", "allows_self_review"]
OPEN = "state in ('draft', 'submitted', 'rejected')"
# Whoever wrote it doesn't approve it, unless an admin of the project says that they may.
CHECK_STEP = """
    begin
        if new.step = 'approved' and exists (
            select from writings w join projects p on p.id = w.project_id
            where w.id = new.writing_id and w.author_id = new.by_id and not p.allows_self_review
        ) then
            raise exception 'writing % was approved by its author', new.writing_id
                using errcode = 'check_violation', constraint = 'ck_writing_steps_other_reviewer';
        end if;
        return new;
    end"""


def upgrade() -> None:
    for name in SWITCHES:
        op.add_column("projects", sa.Column(name, sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_table(
        "writings",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("number", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="draft", nullable=False),
        sa.Column("author_id", sa.Uuid(), nullable=True),
        sa.Column("prompt_id", sa.Uuid(), nullable=True),
        sa.Column("began_from_id", sa.Uuid(), nullable=True),
        sa.Column("body", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("completion_id", sa.Uuid(), nullable=True),
        sa.Column("written_prompt_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("saved_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("kind in ('demonstration', 'prompt')", name=op.f("ck_writings_kind")),
        sa.CheckConstraint(
            "state in ('draft', 'submitted', 'rejected', 'approved', 'withdrawn')", name=op.f("ck_writings_state")
        ),
        sa.CheckConstraint(
            "(kind = 'demonstration') = (prompt_id is not null)", name=op.f("ck_writings_answers_a_prompt")
        ),
        sa.CheckConstraint(
            "(state = 'approved') = (coalesce(completion_id, written_prompt_id) is not null)",
            name=op.f("ck_writings_approved_is_stored"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_writings_project_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["author_id"], ["users.id"], name=op.f("fk_writings_author_id"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompts.id"], name=op.f("fk_writings_prompt_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["began_from_id"], ["completions.id"], name=op.f("fk_writings_began_from_id")),
        sa.ForeignKeyConstraint(["completion_id"], ["completions.id"], name=op.f("fk_writings_completion_id")),
        sa.ForeignKeyConstraint(["written_prompt_id"], ["prompts.id"], name=op.f("fk_writings_written_prompt_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_writings")),
    )
    op.create_index(
        "uq_writings_open", "writings", ["prompt_id", "author_id"], unique=True, postgresql_where=sa.text(OPEN)
    )
    op.create_index("ix_writings_author", "writings", ["author_id", "project_id", "number"])
    op.create_index(
        "ix_writings_queue", "writings", ["project_id", "number"], postgresql_where=sa.text("state = 'submitted'")
    )
    op.create_index("ix_writings_prompt", "writings", ["prompt_id"])
    op.create_table(
        "writing_steps",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("writing_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("by_id", sa.Uuid(), nullable=True),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("body", postgresql.JSONB(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "step in ('submitted', 'corrected', 'approved', 'rejected')", name=op.f("ck_writing_steps_step")
        ),
        sa.CheckConstraint("step <> 'rejected' or reason <> ''", name=op.f("ck_writing_steps_rejected_with_a_reason")),
        sa.ForeignKeyConstraint(
            ["writing_id"], ["writings.id"], name=op.f("fk_writing_steps_writing_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["by_id"], ["users.id"], name=op.f("fk_writing_steps_by_id"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_writing_steps")),
    )
    op.create_index("ix_writing_steps_writing", "writing_steps", ["writing_id", "id"])
    op.execute(f"create function check_writing_step() returns trigger language plpgsql as $${CHECK_STEP}$$")
    op.execute(
        "create trigger writing_steps_other_reviewer before insert on writing_steps"
        " for each row execute function check_writing_step()"
    )
    # Erasing a person empties `by_id`, and nothing else ever changes.
    op.execute(
        "create trigger writing_steps_immutable before update on writing_steps for each row"
        " when ((to_jsonb(old) - 'by_id') is distinct from (to_jsonb(new) - 'by_id')"
        " or (new.by_id is not null and new.by_id is distinct from old.by_id)) execute function refuse_change()"
    )


def downgrade() -> None:
    op.drop_table("writing_steps")
    op.drop_table("writings")
    op.execute("drop function check_writing_step()")
    for name in SWITCHES:
        op.drop_column("projects", name)
