"""An evaluation that is told to stop while it scores: nothing half-made stays, and the next one does it all."""

import json
import signal
import subprocess
from pathlib import Path

from tests.worker.test_evaluate import ITEMS, command, evaluate, write_input
from worker.protocol import Done, Event, ExitCode, parse_line


def test_told_to_stop_while_it_scores_it_leaves_nothing_and_runs_again(tiny_llama: Path, tmp_path: Path):
    source = write_input(tmp_path, tiny_llama)
    with subprocess.Popen(command(source), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        for line in map(parse_line, child.stdout):
            if isinstance(line, Event) and line.message.startswith("Scoring"):
                child.send_signal(signal.SIGTERM)
                break
        assert not any(isinstance(parse_line(line), Done) for line in child.stdout)
        assert child.wait(20) == ExitCode.STOPPED
    artifacts = tmp_path / "out" / "artifacts"
    assert not (artifacts / "scores.json").exists()

    code, lines, log = evaluate(source)
    assert code == ExitCode.DONE, log
    assert isinstance(lines[-1], Done)
    assert json.loads((artifacts / "scores.json").read_text())["samples"] == len(ITEMS)
