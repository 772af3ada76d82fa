"""A preflight: one pass over a dataset that finds all that can be known of it before it is trained on.

The pass keeps counts and not samples: a length, or where a stretch of trained tokens begins or ends, is a number with
a count. From these, ``core.preflight_report`` tells exactly what any cut would cost, without another pass.
"""

import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from core.base_card import CardTokenizer
from core.dataset import DatasetReport, Problem, Sample, numbered_samples, problem_at, summary
from core.errors import TrainingError
from core.prompts import Encoded, Segment, join, sample_segments
from core.records import LineError
from core.specs import PromptTemplate

#: Samples, and characters of them, that are tokenized together: a million characters take some 50 MB as tokens.
_BATCH_SAMPLES = 256
_BATCH_CHARACTERS = 500_000
#: Examples that are kept of anything.
SHOWN = 20
#: Samples whose fingerprints are kept, 12 bytes each.
_MOST_PRINTS = 16_000_000

#: Told now and then: bytes read and samples seen so far.
OnProgress = Callable[[int, int], None]


@dataclass
class Profile:
    """How long the samples are, in tokens (or characters), and where their trained tokens lie. Value -> samples."""

    lengths: Counter[int] = field(default_factory=Counter)
    #: Place of each sample's first trained token, and of its last.
    firsts: Counter[int] = field(default_factory=Counter)
    lasts: Counter[int] = field(default_factory=Counter)
    #: Where stretches of trained tokens begin, and where they end (the place behind them).
    starts: Counter[int] = field(default_factory=Counter)
    ends: Counter[int] = field(default_factory=Counter)
    #: Of preferences: the shorter conversation; all else is the longer one's. Empty of other samples.
    shorter: Counter[int] = field(default_factory=Counter)

    def add(self, encoded: Encoded, shorter: Encoded | None = None) -> None:
        """Count a sample; of a preference, the longer conversation and the ``shorter``."""
        if shorter is not None:
            self.shorter[len(shorter.input_ids)] += 1
        self.lengths[len(encoded.input_ids)] += 1
        # Nothing predicts a sample's first token, so it is never trained.
        runs = list(_runs([False, *encoded.trained[1:]]))
        for start, end in runs:
            self.starts[start] += 1
            self.ends[end] += 1
        if runs:
            self.firsts[runs[0][0]] += 1
            self.lasts[runs[-1][1] - 1] += 1

    def as_json(self) -> dict[str, list[list[int]]]:
        """Each count as sorted pairs."""
        return {name: sorted([value, count] for value, count in found.items()) for name, found in vars(self).items()}

    @classmethod
    def from_json(cls, document: dict[str, list[list[int]]]) -> "Profile":
        """What ``as_json`` wrote."""
        return cls(
            **{name: Counter({int(value): int(count) for value, count in pairs}) for name, pairs in document.items()}
        )


def _counts(pairs: list[list[int]]) -> Counter[int]:
    found: Counter[int] = Counter()
    for value, count in pairs:
        found[value] = count
    return found


def _runs(trained: list[bool]) -> Iterator[tuple[int, int]]:
    """The stretches of trained tokens: ``[start, end)``."""
    place = 0
    while True:
        try:
            start = trained.index(True, place)
        except ValueError:
            return
        try:
            place = trained.index(False, start)
        except ValueError:
            yield start, len(trained)
            return
        yield start, place


@dataclass(frozen=True)
class How:
    """How samples become tokens; without a tokenizer, their characters are counted."""

    tokenizer: CardTokenizer | None = None
    template: PromptTemplate = "none"
    system_prompt: str | None = None


def examine(
    chunks: Iterable[bytes],
    max_line_bytes: int,
    how: How,
    *,
    validation: Iterable[bytes] | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> dict[str, Any]:
    """Read a training file once; what was found, as JSON for ``core.preflight_report``. Never raises for the data."""
    report, profile, prints, longest = DatasetReport(), Profile(), _Prints(), _Longest()
    known = None if validation is None else _Known(validation, max_line_bytes)
    read = 0

    def counted() -> Iterator[bytes]:
        nonlocal read
        for chunk in chunks:
            read += len(chunk)
            on_progress(read, report.samples)
            yield chunk

    for batch, tokens in _encoded(_batches(counted(), max_line_bytes, report), how):
        for problem in batch.problems:
            report.add(problem)
        for (line, sample), encoded in zip(batch.samples, tokens, strict=True):
            if isinstance(encoded, LineError):
                report.add(problem_at(line, encoded))
                continue
            report.samples += 1
            report.characters += (characters := _characters(sample))
            if encoded is not None:
                profile.add(*encoded)
                longest.add(line, len(encoded[0].input_ids))
            else:
                profile.lengths[characters] += 1
                longest.add(line, characters)
            whole, prompt = _fingerprints(sample)
            prints.add(line, whole)
            if known is not None:
                known.look(line, whole, prompt)
    on_progress(read, report.samples)
    return {
        **summary(report),
        "unit": "characters" if how.tokenizer is None else "tokens",
        "template": None if how.tokenizer is None else how.template,
        "profile": profile.as_json(),
        "longest": longest.found(),
        "duplicates": prints.duplicates(),
        "overlap": None if known is None else known.found(),
    }


@dataclass
class _Batch:
    """Good samples with their lines, and the problems that stood between them."""

    samples: list[tuple[int, Sample]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def _batches(chunks: Iterable[bytes], max_line_bytes: int, report: DatasetReport) -> Iterator[_Batch]:
    """The file by the batch; the report learns its formats."""
    batch, characters = _Batch(), 0
    for line, found in numbered_samples(chunks, max_line_bytes, report):
        if isinstance(found, Problem):
            batch.problems.append(found)
        else:
            batch.samples.append((line, found))
            characters += _characters(found)
        if _BATCH_SAMPLES in (len(batch.samples), len(batch.problems)) or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = _Batch(), 0
    yield batch


def _characters(sample: Sample) -> int:
    longest = max(len(answer.content) for answer in (sample.messages[-1], sample.rejected or sample.messages[-1]))
    return sum(len(message.content) + len(message.input or "") for message in sample.messages[:-1]) + longest


def conversations(sample: Sample) -> list[Sample]:
    """What is trained of a sample: itself, or a preference's two; both begin alike, and the longer one counts."""
    if sample.rejected is None:
        return [sample]
    return [sample, replace(sample, messages=(*sample.messages[:-1], sample.rejected))]


def longest_first(alike: list[Encoded]) -> list[Encoded]:
    """Conversations as ``Profile.add`` takes them."""
    return sorted(alike, key=lambda encoded: -len(encoded.input_ids))


_Tokens = list[list[Encoded] | LineError | None]


def _encoded(batches: Iterable[_Batch], how: How) -> Iterator[tuple[_Batch, _Tokens]]:
    """Each batch with its samples' conversations as tokens, the longest first; None where there is no tokenizer.

    All texts of a batch are tokenized at once, on all cores, while Python reads and renders the next batch.
    """
    if how.tokenizer is None:
        for batch in batches:
            yield batch, [None] * len(batch.samples)
        return
    with ThreadPoolExecutor(1, "tokenizer") as tokenizing:
        ahead: _Ahead | None = None
        for batch in batches:
            begun = _Ahead(batch, how, how.tokenizer, tokenizing)
            if ahead is not None:
                yield ahead.batch, ahead.tokens()
            ahead = begun
        if ahead is not None:
            yield ahead.batch, ahead.tokens()


class _Ahead:
    """A batch that is rendered, and whose texts are being tokenized."""

    def __init__(self, batch: _Batch, how: How, tokenizer: CardTokenizer, tokenizing: ThreadPoolExecutor) -> None:
        self.batch = batch
        self._tokenizer = tokenizer
        self._rendered = [_segments(sample, how, tokenizer) for _, sample in batch.samples]
        texts = [part.text for one in self._rendered if isinstance(one, list) for parts in one for part in parts]
        self._found: Future[list[list[int]]] = tokenizing.submit(tokenizer.encode_all, texts)

    def tokens(self) -> _Tokens:
        """Each sample's tokens, or why it has none."""
        found = iter(self._found.result())

        def joined(alike: list[list[Segment]]) -> list[Encoded]:
            tokens = [join(segments, [next(found) for _ in segments], self._tokenizer) for segments in alike]
            return longest_first(tokens)

        return [joined(one) if isinstance(one, list) else one for one in self._rendered]


def _segments(sample: Sample, how: How, tokenizer: CardTokenizer) -> list[list[Segment]] | LineError:
    """The segments of each of a sample's conversations."""
    try:
        return [sample_segments(one, how.template, tokenizer, how.system_prompt) for one in conversations(sample)]
    except TrainingError as error:
        return LineError("messages", error.message, "Change the sample or the template.", "template")


class _Longest:
    """The longest samples, by their lines."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int]] = []

    def add(self, line: int, length: int) -> None:
        entry = (length, -line)
        if len(self._heap) < SHOWN:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def found(self) -> list[dict[str, int]]:
        return [{"line": -line, "length": length} for length, line in sorted(self._heap, reverse=True)]


# --- The same sample twice -------------------------------------------------------------------------------------------


def _fingerprints(sample: Sample) -> tuple[int, int]:
    """64 bits of the whole sample, and of all before its last answer."""
    digest = blake2b(digest_size=8)
    *prompt, answer = sample.messages
    for message in prompt:
        digest.update(f"{message.role}\0{message.content}\0{message.input or ''}\0".encode())
    before = digest.copy().digest()
    digest.update(f"{answer.role}\0{answer.content}".encode())
    if sample.rejected is not None:
        digest.update(f"\0{sample.rejected.content}".encode())
    return int.from_bytes(digest.digest()), int.from_bytes(before)


class _Prints:
    """Fingerprints by their first byte: each of 256 parts is looked through on its own, in little memory."""

    def __init__(self) -> None:
        self._prints = [array("Q") for _ in range(256)]
        self._lines = [array("L") for _ in range(256)]
        self._count = 0

    def add(self, line: int, fingerprint: int) -> None:
        self._count += 1
        if self._count <= _MOST_PRINTS:
            part = fingerprint & 255
            self._prints[part].append(fingerprint)
            self._lines[part].append(line)

    def duplicates(self) -> dict[str, Any]:
        """How many samples were there before, and the first of them; no count when there were too many to keep."""
        if self._count > _MOST_PRINTS:
            return {"count": None, "first": []}
        count, found = 0, []
        for prints, lines in zip(self._prints, self._lines, strict=True):
            first: dict[int, int] = {}
            for fingerprint, line in zip(prints, lines, strict=True):
                same_as = first.setdefault(fingerprint, line)
                if same_as != line:
                    count += 1
                    found.append((line, same_as))
            found = heapq.nsmallest(SHOWN, found)
        return {"count": count, "first": [{"line": line, "same_as": same_as} for line, same_as in found]}


class _Known:
    """A validation file's fingerprints, and which of the training samples are among them."""

    def __init__(self, chunks: Iterable[bytes], max_line_bytes: int) -> None:
        self._whole: dict[int, int] = {}
        self._prompts: set[int] = set()
        self._samples = self._count = self._same_prompt = 0
        self._first: list[dict[str, int]] = []
        for line, found in numbered_samples(chunks, max_line_bytes, DatasetReport()):
            if isinstance(found, Sample) and self._samples < _MOST_PRINTS // 8:
                self._samples += 1
                whole, prompt = _fingerprints(found)
                self._whole.setdefault(whole, line)
                self._prompts.add(prompt)

    def look(self, line: int, whole: int, prompt: int) -> None:
        """Count a training sample that is known."""
        self._same_prompt += prompt in self._prompts
        if (same := self._whole.get(whole)) is not None:
            self._count += 1
            if len(self._first) < SHOWN:
                self._first.append({"line": line, "validation_line": same})

    def found(self) -> dict[str, Any]:
        """What was counted."""
        return {
            "samples": self._samples,
            "count": self._count,
            "prompts": self._same_prompt,
            "first": self._first,
        }
