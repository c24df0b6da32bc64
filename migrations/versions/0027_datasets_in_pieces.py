"""A dataset's lines are stored as one compressed file in pieces, instead of as a row each."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
import zstandard
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

PIECE_BYTES = 1024 * 1024


def upgrade() -> None:
    op.create_table(
        "dataset_pieces",
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("num_bytes", sa.Integer(), nullable=False),
        sa.Column("first_row", sa.Integer(), nullable=False),
        sa.Column("num_rows", sa.Integer(), nullable=False),
        sa.Column("lines", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_id"],
            ["datasets.id"],
            name=op.f("fk_dataset_pieces_dataset_id"),
            ondelete="CASCADE",
            deferrable=True,
            initially="DEFERRED",
        ),
        sa.PrimaryKeyConstraint("dataset_id", "start", name=op.f("pk_dataset_pieces")),
    )
    # It is compressed already.
    op.execute("alter table dataset_pieces alter column lines set storage external")
    store(op.get_bind())
    op.drop_column("dataset_rows", "line")
    op.execute(
        "create trigger dataset_pieces_immutable before update or delete on dataset_pieces"
        " for each row execute function refuse_change()"
    )


def store(connection: sa.Connection) -> None:
    """The lines of all datasets, piece by piece."""
    insert = sa.text(
        "insert into dataset_pieces (dataset_id, start, num_bytes, first_row, num_rows, lines)"
        " values (:dataset_id, :start, :num_bytes, :first_row, :num_rows, :lines)"
    )
    for (dataset_id,) in connection.execute(sa.text("select id from datasets")).all():
        start = row = 0
        for lines in pieces_of(connection, dataset_id):
            content = "".join(f"{line}\n" for line in lines).encode()
            values = {"dataset_id": dataset_id, "start": start, "num_bytes": len(content), "first_row": row}
            connection.execute(insert, values | {"num_rows": len(lines), "lines": zstandard.compress(content)})
            start, row = start + len(content), row + len(lines)
    # What is deferred must be done before the table is altered.
    connection.execute(sa.text("set constraints all immediate"))
    connection.execute(sa.text("set constraints all deferred"))


def pieces_of(connection: sa.Connection, dataset_id: Any) -> Iterator[list[str]]:
    """A dataset's lines, as many as a piece has room for."""
    query = sa.text("select line from dataset_rows where dataset_id = :id order by position")
    result = connection.execute(query, {"id": dataset_id}, execution_options={"yield_per": 500})
    lines: list[str] = []
    size = 0
    for line in result.scalars():
        size += len(line.encode()) + 1
        if lines and size > PIECE_BYTES:
            yield lines
            lines, size = [], len(line.encode()) + 1
        lines.append(line)
    if lines:
        yield lines


def downgrade() -> None:
    op.execute("alter table dataset_rows disable trigger user")
    op.add_column("dataset_rows", sa.Column("line", sa.Text()))
    connection = op.get_bind()
    update = sa.text("update dataset_rows set line = :line where dataset_id = :dataset_id and position = :position")
    for dataset_id, first, start in connection.execute(
        sa.text("select dataset_id, first_row, start from dataset_pieces order by dataset_id, start")
    ).all():
        query = sa.text("select lines from dataset_pieces where dataset_id = :id and start = :start")
        content = connection.scalar(query, {"id": dataset_id, "start": start})
        for position, line in enumerate(zstandard.decompress(content).decode().split("\n")[:-1], first):
            connection.execute(update, {"line": line, "dataset_id": dataset_id, "position": position})
    op.alter_column("dataset_rows", "line", nullable=False)
    op.execute("alter table dataset_rows enable trigger user")
    op.drop_table("dataset_pieces")
