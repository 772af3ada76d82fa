"""One module for each language: its grammar, keywords and rules of dataflow."""

from collections.abc import Mapping
from types import MappingProxyType

from ..language import Table
from .python import PYTHON

TABLES: Mapping[str, Table] = MappingProxyType({table.name: table for table in (PYTHON,)})
