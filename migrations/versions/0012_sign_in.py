"""Passwords, limits on guessing them, invitations, sessions that their owners see, an OpenID provider, erased people;
and a log that nobody shortens.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

ROLES = "role in ('annotator', 'reviewer', 'trainer', 'admin')"
METHODS = "method in ('link', 'password', 'invitation', 'provider')"


def moment(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    default = None if nullable else sa.text("now()")
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def person(
    table: str, name: str = "user_id", *, nullable: bool = False
) -> list[sa.Column[Any] | sa.ForeignKeyConstraint]:
    action = "SET NULL" if nullable else "CASCADE"
    return [
        sa.Column(name, sa.Uuid(), nullable=nullable),
        sa.ForeignKeyConstraint([name], ["users.id"], name=op.f(f"fk_{table}_{name}"), ondelete=action),
    ]


def upgrade() -> None:
    op.add_column("users", moment("erased_at", nullable=True))
    op.create_check_constraint(
        op.f("ck_users_erased"), "users", "erased_at is null or (email is null and disabled_at is not null)"
    )
    op.add_column("sessions", sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False))
    op.add_column("sessions", sa.Column("method", sa.Text(), server_default="link", nullable=False))
    op.add_column("sessions", sa.Column("device", sa.Text(), server_default="", nullable=False))
    op.create_unique_constraint(op.f("uq_sessions_id"), "sessions", ["id"])
    op.create_check_constraint(op.f("ck_sessions_method"), "sessions", METHODS)
    op.create_table(
        "passwords",
        *person("passwords"),
        sa.Column("hash", sa.Text(), nullable=False),
        moment("changed_at"),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_passwords")),
    )
    op.create_table(
        "sign_in_attempts",
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("num", sa.Integer(), nullable=False),
        moment("since"),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_sign_in_attempts")),
    )
    op.create_table(
        "invitations",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("max_uses", sa.Integer(), nullable=False),
        sa.Column("num_used", sa.Integer(), server_default=sa.text("0"), nullable=False),
        *person("invitations", "created_by", nullable=True),
        moment("created_at"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        moment("revoked_at", nullable=True),
        sa.CheckConstraint(ROLES, name=op.f("ck_invitations_role")),
        sa.CheckConstraint("num_used between 0 and max_uses", name=op.f("ck_invitations_uses")),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_invitations_project_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invitations")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_invitations_token_hash")),
    )
    op.create_index(op.f("ix_invitations_project_id"), "invitations", ["project_id"])
    op.create_table(
        "identities",
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        *person("identities"),
        moment("created_at"),
        sa.PrimaryKeyConstraint("issuer", "subject", name=op.f("pk_identities")),
    )
    op.create_index(op.f("ix_identities_user_id"), "identities", ["user_id"])
    op.create_table(
        "provider_visits",
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("data", sa.dialects.postgresql.JSONB(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_provider_visits")),
    )
    # People are erased by emptying their row, never by deleting it, so the log needs no exception any more.
    op.execute("drop trigger audit_log_immutable on audit_log")
    op.execute(
        "create trigger audit_log_immutable before update or delete on audit_log"
        " for each row execute function refuse_change()"
    )
    op.execute(
        "create trigger audit_log_kept before truncate on audit_log for each statement execute function refuse_change()"
    )


def downgrade() -> None:
    op.execute("drop trigger audit_log_kept on audit_log")
    op.execute("drop trigger audit_log_immutable on audit_log")
    op.execute(
        "create trigger audit_log_immutable before update of action, subject, detail, at or delete on audit_log"
        " for each row execute function refuse_change()"
    )
    for table in ("provider_visits", "identities", "invitations", "sign_in_attempts", "passwords"):
        op.drop_table(table)
    op.drop_constraint(op.f("ck_sessions_method"), "sessions")
    op.drop_constraint(op.f("uq_sessions_id"), "sessions")
    for column in ("device", "method", "id"):
        op.drop_column("sessions", column)
    op.drop_constraint(op.f("ck_users_erased"), "users")
    op.drop_column("users", "erased_at")
