"""Pause a running job

Revision: 0006, after 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("pause_requested_at", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "pause_requested_at")
