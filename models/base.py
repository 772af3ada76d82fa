"""The declarative base, and the database's clock."""

from typing import Any, ClassVar

from sqlalchemy import JSON, Double, MetaData
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.functions import FunctionElement


class Base(DeclarativeBase):
    """Base of every table. Times are seconds since 1970 in UTC, as on the wire."""

    # Names for constraints, so that a migration can drop them on both engines.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        dict[str, Any]: JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
    }


class db_now(FunctionElement[float]):  # noqa: N801 - named like the SQL function that it is
    """The database's clock. Leases use it alone, so that workers' clocks need not agree."""

    type = Double()
    inherit_cache = True


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: Any, **kwargs: Any) -> str:
    return "(extract(epoch from clock_timestamp())::float8)"


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: Any, **kwargs: Any) -> str:
    # unixepoch('subsec') needs SQLite 3.42; the Julian day is good to 0.1 ms.
    return "((julianday('now') - 2440587.5) * 86400.0)"
