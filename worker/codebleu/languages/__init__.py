"""One module for each language: its grammar, keywords and rules of dataflow."""

from collections.abc import Mapping
from types import MappingProxyType

from ..language import Table
from .c import C
from .c_sharp import C_SHARP
from .cpp import CPP
from .go import GO
from .java import JAVA
from .javascript import JAVASCRIPT
from .php import PHP
from .python import PYTHON
from .ruby import RUBY
from .rust import RUST
from .typescript import TYPESCRIPT

_ALL = (C, C_SHARP, CPP, GO, JAVA, JAVASCRIPT, PHP, PYTHON, RUBY, RUST, TYPESCRIPT)
TABLES: Mapping[str, Table] = MappingProxyType({table.name: table for table in _ALL})
