"""Permissions of checkpoints, and an index for the sweep of expired files

Revision: 0005, after 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "checkpoint_permissions",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=256), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_checkpoint_permissions_job_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name="fk_checkpoint_permissions_project_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoint_permissions"),
        sa.UniqueConstraint("project_id", "model", name="uq_checkpoint_permissions_project_id_model"),
    )
    op.create_index("ix_checkpoint_permissions_job_id", "checkpoint_permissions", ["job_id"], unique=False)
    op.create_index("ix_checkpoint_permissions_model_id", "checkpoint_permissions", ["model", "id"], unique=False)
    op.create_index("ix_files_expires_at", "files", ["expires_at"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_files_expires_at", "files")
    op.drop_table("checkpoint_permissions")
