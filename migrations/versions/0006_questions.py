"""Questions of a project beside the order: reasons, confidence, all bad, required labels, strength of a preference."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

PROJECT_COLUMNS: list[sa.Column[Any]] = [
    sa.Column("rationale", sa.Text(), server_default="optional", nullable=False),
    sa.Column("min_rationale", sa.Integer(), server_default="0", nullable=False),
    sa.Column("confidence", sa.Text(), server_default="off", nullable=False),
    sa.Column("asks_all_bad", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    sa.Column("examples", postgresql.JSONB(), server_default="[]", nullable=False),
    sa.Column("layout", sa.Text(), server_default="grid", nullable=False),
    sa.Column("has_review_step", sa.Boolean(), server_default=sa.text("false"), nullable=False),
]
RANKING_COLUMNS: list[sa.Column[Any]] = [
    sa.Column("confidence", sa.Integer()),
    sa.Column("all_bad", sa.Boolean()),
    sa.Column("strength", sa.Integer()),
]
CHECKS = [
    ("projects", "rationale", "rationale in ('off', 'optional', 'required')"),
    ("projects", "min_rationale", "min_rationale between 0 and 2000"),
    ("projects", "confidence", "confidence in ('off', 'optional', 'required')"),
    ("projects", "layout", "layout in ('stacked', 'grid', 'columns')"),
    ("rankings", "confidence", "confidence is null or confidence between 1 and 3"),
    ("rankings", "strength", "strength is null or strength between 0 and 3"),
]
# Rule 3: a strength belongs to two answers, and is 0 exactly where they are tied; no label is both said and denied;
# what the project requires is there. An imported ranking was asked elsewhere.
CHECK_ANSWERS = """
    declare
        named int; cells int; asked projects%rowtype; required text[];
    begin
        select count(*), count(distinct place) into named, cells from ranking_places where ranking_id = new.id;
        if new.strength is not null and (named <> 2 or (new.strength = 0) <> (cells = 1)) then
            raise exception 'ranking % has a strength that its order contradicts', new.id
                using errcode = 'check_violation', constraint = 'ck_rankings_strength_of_order';
        end if;
        if exists (select from ranking_places where ranking_id = new.id and labels && denied) then
            raise exception 'ranking % says yes and no to a label', new.id
                using errcode = 'check_violation', constraint = 'ck_rankings_labels_once';
        end if;
        if new.source = 'import' then
            return null;
        end if;
        select * into asked from projects where id = new.project_id;
        select coalesce(array_agg(label ->> 'key'), '{}') into required from jsonb_array_elements(asked.labels) label
            where (label ->> 'required')::boolean and not coalesce((label ->> 'removed')::boolean, false);
        if (asked.confidence = 'required' and new.confidence is null)
            or (asked.rationale = 'required' and char_length(new.rationale) < greatest(1, asked.min_rationale))
            or exists (select from ranking_places where ranking_id = new.id and not (labels || denied) @> required)
        then
            raise exception 'ranking % lacks an answer that its project requires', new.id
                using errcode = 'check_violation', constraint = 'ck_rankings_answered';
        end if;
        return null;
    end"""


def upgrade() -> None:
    for column in PROJECT_COLUMNS:
        op.add_column("projects", column)
    for column in RANKING_COLUMNS:
        op.add_column("rankings", column)
    op.add_column(
        "ranking_places", sa.Column("denied", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False)
    )
    for table, name, rule in CHECKS:
        op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, rule)
    op.execute(
        'update projects set labels = coalesce((select jsonb_agg(\'{"required": false, "removed": false}\' || label'
        " order by position) from jsonb_array_elements(labels) with ordinality as a (label, position)), '[]')"
    )
    op.execute(f"create function check_ranking_answers() returns trigger language plpgsql as $${CHECK_ANSWERS}$$")
    op.execute(
        "create constraint trigger rankings_answered after insert on rankings deferrable initially deferred"
        " for each row execute function check_ranking_answers()"
    )


def downgrade() -> None:
    op.execute("drop trigger rankings_answered on rankings")
    op.execute("drop function check_ranking_answers()")
    op.execute(
        "update projects set labels = coalesce((select jsonb_agg(label - 'required' - 'removed' order by position)"
        " from jsonb_array_elements(labels) with ordinality as a (label, position)), '[]')"
    )
    for table, name, _ in CHECKS:
        op.drop_constraint(op.f(f"ck_{table}_{name}"), table)
    op.drop_column("ranking_places", "denied")
    for column in RANKING_COLUMNS:
        op.drop_column("rankings", column.name)
    for column in PROJECT_COLUMNS:
        op.drop_column("projects", column.name)
