"""Answers of evaluations under way, and CodeBLEU beside a step's loss

Revision: 0007, after 0006
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "kept_answers",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("side", sa.String(length=8), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("answer", _JSON, nullable=False),
        sa.Column("grades", _JSON, nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_kept_answers_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "side", "position", name="pk_kept_answers"),
    )
    op.add_column("step_metrics", sa.Column("codebleu", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("step_metrics", "codebleu")
    op.drop_table("kept_answers")
