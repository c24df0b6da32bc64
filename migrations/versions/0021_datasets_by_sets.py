"""A dataset's rows are checked set by set, and come before the dataset, whose hash they make."""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

# Rules 2 and 7, as before: no test prompt, gold, comparison, surplus or rejected ranking is ever learned from.
CHECK_ROWS = """
        declare
            found uuid;
        begin
            select r.id into found
                from added join rankings r on r.id = added.ranking_id
                join tasks t on t.id = r.task_id join prompts p on p.id = t.prompt_id
                where p.split = 'test' or r.is_surplus or t.is_gold or t.purpose <> 'learn'
                    or exists (select from rejections x where x.ranking_id = r.id)
                limit 1;
            if found is not null then
                raise exception 'ranking % may not go to a dataset', found
                    using errcode = 'check_violation', constraint = 'ck_dataset_rows_allowed';
            end if;
            return null;
        end"""
CHECK_ROW = """
        begin
            if exists (
                select from rankings r join tasks t on t.id = r.task_id join prompts p on p.id = t.prompt_id
                where r.id = new.ranking_id and (p.split = 'test' or r.is_surplus or t.is_gold or t.purpose <> 'learn' or exists (select from rejections x where x.ranking_id = r.id))
            ) then
                raise exception 'ranking % may not go to a dataset', new.ranking_id
                    using errcode = 'check_violation', constraint = 'ck_dataset_rows_allowed';
            end if;
            return new;
        end"""  # noqa: E501


def upgrade() -> None:
    op.execute("alter table dataset_rows alter constraint fk_dataset_rows_dataset_id deferrable initially deferred")
    op.execute("drop trigger dataset_rows_allowed on dataset_rows")
    op.execute("drop function check_dataset_row()")
    op.execute(f"create function check_dataset_rows() returns trigger language plpgsql as $${CHECK_ROWS}$$")
    op.execute(
        "create trigger dataset_rows_allowed after insert on dataset_rows referencing new table as added"
        " for each statement execute function check_dataset_rows()"
    )


def downgrade() -> None:
    op.execute("drop trigger dataset_rows_allowed on dataset_rows")
    op.execute("drop function check_dataset_rows()")
    op.execute(f"create function check_dataset_row() returns trigger language plpgsql as $${CHECK_ROW}$$")
    op.execute(
        "create trigger dataset_rows_allowed before insert on dataset_rows"
        " for each row execute function check_dataset_row()"
    )
    op.execute("alter table dataset_rows alter constraint fk_dataset_rows_dataset_id not deferrable")
