"""A comparison that nobody began ends when a policy goes live that it does not ask about, and says which."""

import sqlalchemy as sa
from alembic import op

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None

STATE, OLD_STATES = "ck_comparisons_state", "'sampling', 'ranking', 'better', 'worse', 'undecided', 'stopped'"


def upgrade() -> None:
    key = sa.ForeignKey("versions.id", name=op.f("fk_comparisons_superseded_by_id_versions"))
    op.add_column("comparisons", sa.Column("superseded_by_id", sa.Uuid(), key, nullable=True))
    op.drop_constraint(op.f(STATE), "comparisons")
    for name, rule in (
        (STATE, f"state in ({OLD_STATES}, 'superseded')"),
        ("ck_comparisons_superseded", "(state = 'superseded') = (superseded_by_id is not null)"),
        ("ck_comparisons_superseded_unasked", "state <> 'superseded' or created_by is null"),
    ):
        # lock: a project has a few comparisons a round, and all of them are read in milliseconds.
        op.create_check_constraint(op.f(name), "comparisons", rule)


def downgrade() -> None:
    op.drop_constraint(op.f("ck_comparisons_superseded_unasked"), "comparisons")
    op.drop_constraint(op.f("ck_comparisons_superseded"), "comparisons")
    op.drop_constraint(op.f(STATE), "comparisons")
    op.execute("update comparisons set state = 'stopped' where state = 'superseded'")
    op.create_check_constraint(op.f(STATE), "comparisons", f"state in ({OLD_STATES})")
    op.drop_column("comparisons", "superseded_by_id")
