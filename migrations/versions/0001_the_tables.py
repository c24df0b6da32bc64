"""The tables."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("is_simulated", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("role in ('annotator', 'trainer', 'admin')", name=op.f("ck_users_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
    )
    op.create_index("uq_users_email", "users", [sa.literal_column("lower(email)")], unique=True)
    op.create_table(
        "api_tokens",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("project_ids", postgresql.ARRAY(sa.Uuid()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_api_tokens_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_tokens")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_api_tokens_token_hash")),
    )
    op.create_index(op.f("ix_api_tokens_user_id"), "api_tokens", ["user_id"], unique=False)
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.ForeignKeyConstraint(["actor_id"], ["users.id"], name=op.f("fk_audit_log_actor_id"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_table(
        "projects",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("guidelines", sa.Text(), server_default="", nullable=False),
        sa.Column("model_alias", sa.Text(), nullable=False),
        sa.Column("k", sa.Integer(), server_default="4", nullable=False),
        sa.Column("ties_allowed", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("partial_allowed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("labels", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False),
        sa.Column("overlap", sa.Integer(), server_default="1", nullable=False),
        sa.Column("lease_minutes", sa.Integer(), server_default="60", nullable=False),
        sa.Column("sampling", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("training", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("train_threshold", sa.Integer(), nullable=True),
        sa.Column("validation_share", sa.Double(), server_default="0.15", nullable=False),
        sa.Column("test_share", sa.Double(), server_default="0.1", nullable=False),
        sa.Column("seed", sa.BigInteger(), server_default="17", nullable=False),
        sa.Column("is_paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("k between 2 and 9", name=op.f("ck_projects_k")),
        sa.CheckConstraint("lease_minutes between 1 and 1440", name=op.f("ck_projects_lease_minutes")),
        sa.CheckConstraint("overlap between 1 and 100", name=op.f("ck_projects_overlap")),
        sa.CheckConstraint("train_threshold is null or train_threshold > 0", name=op.f("ck_projects_train_threshold")),
        sa.CheckConstraint(
            "validation_share >= 0 and test_share >= 0 and validation_share + test_share < 1",
            name=op.f("ck_projects_shares"),
        ),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name=op.f("fk_projects_created_by"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
        sa.UniqueConstraint("slug", name=op.f("uq_projects_slug")),
    )
    op.create_table(
        "sessions",
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"], unique=False)
    op.create_table(
        "sign_in_links",
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sign_in_links_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_sign_in_links")),
    )
    op.create_index(op.f("ix_sign_in_links_user_id"), "sign_in_links", ["user_id"], unique=False)
    op.create_table(
        "datasets",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("filter", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("counts", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("num_rows", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("pseudonym_key", sa.LargeBinary(), nullable=True),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name=op.f("fk_datasets_created_by"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_datasets_project_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("project_id", "number", name=op.f("uq_datasets_project_id_number")),
    )
    op.create_table(
        "prompts",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("number", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("messages", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("kind", sa.Text(), server_default="plain", nullable=False),
        sa.Column("language", sa.Text(), server_default="en", nullable=False),
        sa.Column("source", sa.Text(), server_default="", nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("root_hash", sa.LargeBinary(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("meta", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "jsonb_array_length(messages) > 0 and messages -> -1 ->> 'role' = 'user'",
            name=op.f("ck_prompts_ends_with_user"),
        ),
        sa.CheckConstraint("kind in ('plain', 'few_shot', 'user')", name=op.f("ck_prompts_kind")),
        sa.CheckConstraint("split in ('train', 'validation', 'test')", name=op.f("ck_prompts_split")),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_prompts_project_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prompts")),
        sa.UniqueConstraint("project_id", "content_hash", name=op.f("uq_prompts_project_id_content_hash")),
    )
    op.create_index("ix_prompts_project_split", "prompts", ["project_id", "split", "number"], unique=False)
    op.create_table(
        "runs",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column("config", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("is_triggered", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("fence", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("claimed_token_id", sa.Uuid(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("progress", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(state = 'running') = (lease_expires_at is not null)", name=op.f("ck_runs_running_is_leased")
        ),
        sa.CheckConstraint("state <> 'failed' or error is not null", name=op.f("ck_runs_failure_has_cause")),
        sa.CheckConstraint(
            "state in ('queued', 'running', 'finished', 'failed', 'cancelled')", name=op.f("ck_runs_state")
        ),
        sa.ForeignKeyConstraint(
            ["claimed_token_id"], ["api_tokens.id"], name=op.f("fk_runs_claimed_token_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name=op.f("fk_runs_created_by"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_runs_project_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index("ix_runs_project", "runs", ["project_id", sa.literal_column("created_at desc")], unique=False)
    op.create_index(
        "ix_runs_queue",
        "runs",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("state in ('queued', 'running')"),
    )
    op.create_index(
        "uq_runs_triggered",
        "runs",
        ["project_id", "kind"],
        unique=True,
        postgresql_where=sa.text("is_triggered and state in ('queued', 'running')"),
    )
    op.create_table(
        "artifacts",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("size >= 0", name=op.f("ck_artifacts_size")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_artifacts_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifacts")),
        sa.UniqueConstraint("run_id", "name", name=op.f("uq_artifacts_run_id_name")),
    )
    op.create_table(
        "run_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_log_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run_log")),
    )
    op.create_index(op.f("ix_run_log_run_id"), "run_log", ["run_id"], unique=False)
    op.create_table(
        "run_metrics",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_metrics_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "name", "step", name=op.f("pk_run_metrics")),
    )
    op.create_table(
        "run_prompts",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("prompt_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["prompt_id"], ["prompts.id"], name=op.f("fk_run_prompts_prompt_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_prompts_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "position", name=op.f("pk_run_prompts")),
    )
    op.create_index("ix_run_prompts_prompt", "run_prompts", ["prompt_id"], unique=False)
    op.create_table(
        "tasks",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("number", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("prompt_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column("round", sa.Integer(), nullable=True),
        sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("overlap", sa.Integer(), nullable=False),
        sa.Column("num_taken", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("num_taken >= 0", name=op.f("ck_tasks_num_taken")),
        sa.CheckConstraint("overlap between 1 and 100", name=op.f("ck_tasks_overlap")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_tasks_project_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompts.id"], name=op.f("fk_tasks_prompt_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_tasks_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
    )
    op.create_index("ix_tasks_prompt", "tasks", ["prompt_id"], unique=False)
    op.create_index(
        "ix_tasks_waiting",
        "tasks",
        ["project_id", sa.literal_column("priority desc"), "number"],
        unique=False,
        postgresql_where=sa.text("num_taken < overlap"),
    )
    op.create_table(
        "versions",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("reward_version_id", sa.Uuid(), nullable=True),
        sa.Column("dataset_id", sa.Uuid(), nullable=True),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("is_live", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("kind in ('policy', 'reward')", name=op.f("ck_versions_kind")),
        sa.CheckConstraint("run_id is not null or parent_id is null", name=op.f("ck_versions_has_run")),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_versions_dataset_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["versions.id"], name=op.f("fk_versions_parent_id")),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_versions_project_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["reward_version_id"], ["versions.id"], name=op.f("fk_versions_reward_version_id")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_versions_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("project_id", "number", name=op.f("uq_versions_project_id_number")),
        sa.UniqueConstraint("run_id", name=op.f("uq_versions_run_id")),
    )
    op.create_index(op.f("ix_versions_dataset_id"), "versions", ["dataset_id"], unique=False)
    op.create_index(
        "uq_versions_live", "versions", ["project_id", "kind"], unique=True, postgresql_where=sa.text("is_live")
    )
    op.create_table(
        "completions",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("prompt_id", sa.Uuid(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column("index", sa.Integer(), nullable=True),
        sa.Column("version_id", sa.Uuid(), nullable=True),
        sa.Column("author_id", sa.Uuid(), nullable=True),
        sa.Column("model_name", sa.Text(), nullable=True),
        sa.Column("sampling", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("num_tokens", sa.Integer(), nullable=True),
        sa.Column("is_demonstration", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "finish_reason is null or finish_reason in ('stop', 'length')", name=op.f("ck_completions_finish_reason")
        ),
        sa.CheckConstraint("(run_id is null) = (index is null)", name=op.f("ck_completions_index_within_run")),
        sa.ForeignKeyConstraint(
            ["author_id"], ["users.id"], name=op.f("fk_completions_author_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["prompt_id"], ["prompts.id"], name=op.f("fk_completions_prompt_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_completions_run_id")),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_completions_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_completions")),
        sa.UniqueConstraint("run_id", "prompt_id", "index", name=op.f("uq_completions_run_id_prompt_id_index")),
    )
    op.create_index("ix_completions_prompt", "completions", ["prompt_id"], unique=False)
    op.create_index("ix_completions_version", "completions", ["version_id"], unique=False)
    op.create_table(
        "leases",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("annotator_id", sa.Uuid(), nullable=True),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("display_order", postgresql.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("skip_reason", sa.Text(), nullable=True),
        sa.Column("draft", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("draft_saved_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state in ('open', 'answered', 'released', 'expired')", name=op.f("ck_leases_state")),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["users.id"], name=op.f("fk_leases_annotator_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_leases_task_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leases")),
        sa.UniqueConstraint("task_id", "annotator_id", name=op.f("uq_leases_task_id_annotator_id")),
    )
    op.create_index(
        "ix_leases_expiry", "leases", ["expires_at"], unique=False, postgresql_where=sa.text("state = 'open'")
    )
    op.create_index(
        "uq_leases_open", "leases", ["annotator_id"], unique=True, postgresql_where=sa.text("state = 'open'")
    )
    op.create_table(
        "rounds",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("policy_version_id", sa.Uuid(), nullable=False),
        sa.Column("sample_run_id", sa.Uuid(), nullable=True),
        sa.Column("dataset_id", sa.Uuid(), nullable=True),
        sa.Column("reward_run_id", sa.Uuid(), nullable=True),
        sa.Column("policy_run_id", sa.Uuid(), nullable=True),
        sa.Column("next_version_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_rounds_dataset_id")),
        sa.ForeignKeyConstraint(["next_version_id"], ["versions.id"], name=op.f("fk_rounds_next_version_id")),
        sa.ForeignKeyConstraint(["policy_run_id"], ["runs.id"], name=op.f("fk_rounds_policy_run_id")),
        sa.ForeignKeyConstraint(["policy_version_id"], ["versions.id"], name=op.f("fk_rounds_policy_version_id")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_rounds_project_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["reward_run_id"], ["runs.id"], name=op.f("fk_rounds_reward_run_id")),
        sa.ForeignKeyConstraint(["sample_run_id"], ["runs.id"], name=op.f("fk_rounds_sample_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rounds")),
        sa.UniqueConstraint("project_id", "number", name=op.f("uq_rounds_project_id_number")),
    )
    op.create_table(
        "rankings",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("number", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "transaction_id",
            sa.BigInteger(),
            server_default=sa.text("(pg_current_xact_id()::text)::bigint"),
            nullable=False,
        ),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("lease_id", sa.Uuid(), nullable=True),
        sa.Column("annotator_id", sa.Uuid(), nullable=True),
        sa.Column("annotator_name", sa.Text(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("supersedes_id", sa.Uuid(), nullable=True),
        sa.Column("is_surplus", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("rationale", sa.Text(), server_default="", nullable=False),
        sa.Column("body_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("(lease_id is null) = (source = 'import')", name=op.f("ck_rankings_has_lease")),
        sa.CheckConstraint("source in ('page', 'api', 'import')", name=op.f("ck_rankings_source")),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["users.id"], name=op.f("fk_rankings_annotator_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.id"], name=op.f("fk_rankings_lease_id")),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_rankings_project_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["supersedes_id"], ["rankings.id"], name=op.f("fk_rankings_supersedes_id")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_rankings_task_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rankings")),
        sa.UniqueConstraint("id", "task_id", name=op.f("uq_rankings_id_task_id")),
        sa.UniqueConstraint("number", name=op.f("uq_rankings_number")),
        sa.UniqueConstraint("supersedes_id", name=op.f("uq_rankings_supersedes_id")),
    )
    op.create_index("ix_rankings_annotator", "rankings", ["annotator_id"], unique=False)
    op.create_index("ix_rankings_project", "rankings", ["project_id", "number"], unique=False)
    op.create_index("ix_rankings_task", "rankings", ["task_id"], unique=False)
    op.create_index(
        "uq_rankings_lease", "rankings", ["lease_id"], unique=True, postgresql_where=sa.text("supersedes_id is null")
    )
    op.create_table(
        "task_completions",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("completion_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.CheckConstraint("position between 0 and 8", name=op.f("ck_task_completions_position")),
        sa.ForeignKeyConstraint(["completion_id"], ["completions.id"], name=op.f("fk_task_completions_completion_id")),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("fk_task_completions_task_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task_id", "completion_id", name=op.f("pk_task_completions")),
        sa.UniqueConstraint("task_id", "position", name=op.f("uq_task_completions_task_id_position")),
    )
    op.create_table(
        "dataset_rows",
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("ranking_id", sa.Uuid(), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("fk_dataset_rows_dataset_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["ranking_id"], ["rankings.id"], name=op.f("fk_dataset_rows_ranking_id")),
        sa.PrimaryKeyConstraint("dataset_id", "position", name=op.f("pk_dataset_rows")),
    )
    op.create_index("ix_dataset_rows_ranking", "dataset_rows", ["ranking_id"], unique=False)
    op.create_table(
        "ranking_places",
        sa.Column("ranking_id", sa.Uuid(), nullable=False),
        sa.Column("completion_id", sa.Uuid(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=True),
        sa.Column("rating", sa.Integer(), nullable=True),
        sa.Column("labels", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.CheckConstraint("place is null or place between 1 and 9", name=op.f("ck_ranking_places_place")),
        sa.CheckConstraint("rating is null or rating between 1 and 7", name=op.f("ck_ranking_places_rating")),
        sa.ForeignKeyConstraint(
            ["ranking_id", "task_id"],
            ["rankings.id", "rankings.task_id"],
            name=op.f("fk_ranking_places_ranking_id_task_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["task_id", "completion_id"],
            ["task_completions.task_id", "task_completions.completion_id"],
            name=op.f("fk_ranking_places_task_id_completion_id"),
        ),
        sa.PrimaryKeyConstraint("ranking_id", "completion_id", name=op.f("pk_ranking_places")),
    )
    op.create_index("ix_ranking_places_completion", "ranking_places", ["completion_id"], unique=False)


def downgrade() -> None:

    op.drop_index("ix_ranking_places_completion", table_name="ranking_places")
    op.drop_table("ranking_places")
    op.drop_index("ix_dataset_rows_ranking", table_name="dataset_rows")
    op.drop_table("dataset_rows")
    op.drop_table("task_completions")
    op.drop_index("uq_rankings_lease", table_name="rankings", postgresql_where=sa.text("supersedes_id is null"))
    op.drop_index("ix_rankings_task", table_name="rankings")
    op.drop_index("ix_rankings_project", table_name="rankings")
    op.drop_index("ix_rankings_annotator", table_name="rankings")
    op.drop_table("rankings")
    op.drop_table("rounds")
    op.drop_index("uq_leases_open", table_name="leases", postgresql_where=sa.text("state = 'open'"))
    op.drop_index("ix_leases_expiry", table_name="leases", postgresql_where=sa.text("state = 'open'"))
    op.drop_table("leases")
    op.drop_index("ix_completions_version", table_name="completions")
    op.drop_index("ix_completions_prompt", table_name="completions")
    op.drop_table("completions")
    op.drop_index("uq_versions_live", table_name="versions", postgresql_where=sa.text("is_live"))
    op.drop_index(op.f("ix_versions_dataset_id"), table_name="versions")
    op.drop_table("versions")
    op.drop_index("ix_tasks_waiting", table_name="tasks", postgresql_where=sa.text("num_taken < overlap"))
    op.drop_index("ix_tasks_prompt", table_name="tasks")
    op.drop_table("tasks")
    op.drop_index("ix_run_prompts_prompt", table_name="run_prompts")
    op.drop_table("run_prompts")
    op.drop_table("run_metrics")
    op.drop_index(op.f("ix_run_log_run_id"), table_name="run_log")
    op.drop_table("run_log")
    op.drop_table("artifacts")
    op.drop_index(
        "uq_runs_triggered",
        table_name="runs",
        postgresql_where=sa.text("is_triggered and state in ('queued', 'running')"),
    )
    op.drop_index("ix_runs_queue", table_name="runs", postgresql_where=sa.text("state in ('queued', 'running')"))
    op.drop_index("ix_runs_project", table_name="runs")
    op.drop_table("runs")
    op.drop_index("ix_prompts_project_split", table_name="prompts")
    op.drop_table("prompts")
    op.drop_table("datasets")
    op.drop_index(op.f("ix_sign_in_links_user_id"), table_name="sign_in_links")
    op.drop_table("sign_in_links")
    op.drop_index(op.f("ix_sessions_user_id"), table_name="sessions")
    op.drop_table("sessions")
    op.drop_table("projects")
    op.drop_table("audit_log")
    op.drop_index(op.f("ix_api_tokens_user_id"), table_name="api_tokens")
    op.drop_table("api_tokens")
    op.drop_index("uq_users_email", table_name="users")
    op.drop_table("users")
