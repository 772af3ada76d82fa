"""CodeBLEU (Ren et al. 2020, arXiv 2009.10297): how close an answer in a programming language is to its reference.

    from worker.codebleu import score
    print(score(predictions, references, lang="python").codebleu)

The same text gets the same score on any machine, in any process and under any hash seed; no text is run, none takes
more than its limits allow, and nothing recurses over it. An answer earns what it has: nothing for an empty one, for one
that does not parse, or for a dataflow that is not there. The mode "compat" gives the numbers of the package
``codebleu`` 0.7.0 instead, so that published ones can be compared. docs/codebleu.md lists each difference.

This package imports nothing of Hone; it needs ``tree-sitter`` 0.26 and a language's grammar, and can be taken alone.
"""

from .corpus import METRIC, METRIC_COMPAT, CorpusScore, score
from .language import UnsupportedLanguageError
from .languages import TABLES
from .limits import Limits
from .sample import EQUAL, Mode, Parse, SampleScore, Weights, score_sample

#: The languages that there are tables for.
LANGUAGES = tuple(sorted(TABLES))

__all__ = [
    "EQUAL",
    "LANGUAGES",
    "METRIC",
    "METRIC_COMPAT",
    "CorpusScore",
    "Limits",
    "Mode",
    "Parse",
    "SampleScore",
    "UnsupportedLanguageError",
    "Weights",
    "score",
    "score_sample",
]
