"""What passes between the worker and its child: an input file, JSON lines on standard output, and the exit code."""

import json
import sys
import threading
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from core.catalogue import BaseModelEntry
from core.plan import MemoryPlan
from core.resolve import Resolved
from core.specs import EvaluationSpec, FineTuneSpec, PromptTemplate
from worker import pulse


class ExitCode(IntEnum):
    """How a child ended. Any other code is a crash, and the job is tried again."""

    #: A ``Done`` line was written.
    DONE = 0
    #: A ``Failed`` line was written; trying again would not mend it.
    FAILED = 2
    #: Told to stop; what was done so far is in a checkpoint (sysexits' EX_TEMPFAIL).
    STOPPED = 75


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainingInput(_Frozen):
    """All that `python -m worker.train` needs."""

    job_id: str
    fine_tuned_model: str
    spec: FineTuneSpec
    base_model: BaseModelEntry
    #: Folder for unpacked base models, kept between jobs.
    cache: Path
    train_file: Path
    validation_file: Path | None = None
    max_line_bytes: int = 2**20
    #: Folder of a checkpoint to go on from.
    resume_from: Path | None = None
    #: The memory plan of the last attempt.
    plan: MemoryPlan | None = None


class EvaluationInput(_Frozen):
    """All that `python -m worker.evaluate` needs."""

    job_id: str
    spec: EvaluationSpec
    #: None where no model is asked.
    base_model: BaseModelEntry | None = None
    cache: Path
    items_file: Path
    max_line_bytes: int = 2**20
    #: JSON lines of what an earlier attempt has answered and graded (worker.kept).
    kept: Path | None = None
    #: Folder of the adapter; None evaluates the base alone.
    adapter: Path | None = None
    prompt_template: PromptTemplate | Literal["auto"] = "auto"


class Event(_Frozen):
    """Something to tell the user."""

    type: Literal["event"] = "event"
    message: str
    level: Literal["info", "warn", "error"] = "info"


class Started(_Frozen):
    """The settings as they run and what is known before the first step."""

    type: Literal["started"] = "started"
    resolved: Resolved
    report: dict[str, Any]
    #: 0, or the step of the checkpoint that the run goes on from.
    step: int = 0


class Replanned(_Frozen):
    """The settings as they run from here on: the memory ran out, and the plan stepped down."""

    type: Literal["replanned"] = "replanned"
    resolved: Resolved


class Step(_Frozen):
    """A step's figures, named as in ``models.tables.StepMetric``. A step may come twice: training, validation."""

    type: Literal["step"] = "step"
    step: int
    total_steps: int
    metrics: dict[str, float]
    seconds_left: float | None = None


class Saved(_Frozen):
    """A checkpoint was written: a folder of the output folder, complete."""

    type: Literal["saved"] = "saved"
    step: int
    folder: str
    metrics: dict[str, float] = Field(default_factory=dict)


class Progress(_Frozen):
    """How far an evaluation is."""

    type: Literal["progress"] = "progress"
    done: int
    total: int
    seconds_left: float | None = None


class Alive(_Frozen):
    """Nothing to tell but that work goes on (worker/pulse.py)."""

    type: Literal["alive"] = "alive"


class Answered(_Frozen):
    """An answer, told as it comes: an attempt that goes on need not generate it again."""

    type: Literal["answered"] = "answered"
    side: Literal["model", "base"]
    position: int
    answer: dict[str, Any]


class Graded(_Frozen):
    """An answer's grades, one a criterion."""

    type: Literal["graded"] = "graded"
    side: Literal["model", "base"]
    position: int
    grades: list[dict[str, Any]]


class Done(_Frozen):
    """The last line of a run that went well; the artifacts lie in the output folder."""

    type: Literal["done"] = "done"
    report: dict[str, Any]
    trained_tokens: int | None = None


class Failed(_Frozen):
    """The last line of a run that can't go on."""

    type: Literal["failed"] = "failed"
    code: str
    message: str
    param: str | None = None


AnyLine = Event | Started | Replanned | Step | Saved | Progress | Answered | Graded | Alive | Done | Failed
Line = Annotated[AnyLine, Field(discriminator="type")]
_lines: TypeAdapter[Line] = TypeAdapter(Line)


def parse_line(text: str) -> Line:
    """A line of a child's standard output. Raises pydantic's ValidationError."""
    return _lines.validate_json(text)


class LineWriter:
    """A child's end: writes lines, flushed one by one; threads may share it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, line: AnyLine) -> None:
        """Write one line."""
        text = json.dumps(line.model_dump(mode="json"), allow_nan=False) + "\n"
        with self._lock:
            self._stream.write(text)
            self._stream.flush()

    def write(self, line: bytes) -> None:
        """Write a line that is not the protocol's own."""
        self._stream.write(line.decode())
        self._stream.flush()


def take_stdout() -> LineWriter:
    """Keep standard output for the lines alone: what libraries print from here on goes to standard error."""
    stream = sys.stdout
    sys.stdout = sys.stderr
    lines = LineWriter(stream)
    pulse.listen(lambda: lines.send(Alive()))
    return lines
