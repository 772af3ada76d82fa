"""Figures of preference tuning

Revision: 0011, after 0010
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
    op.add_column("step_metrics", sa.Column("rewards", json, nullable=True))


def downgrade() -> None:
    op.drop_column("step_metrics", "rewards")
