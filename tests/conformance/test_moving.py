"""The script of docs/moving-from-openai.md, with the change that the page says, in each version of the client."""

import csv
import re
import subprocess
from pathlib import Path

import pytest

from tests.conformance.cases_files import CHAT
from tests.conformance.environments import VERSIONS, NotInstalledError
from tests.conformance.service import Service

PAGE = (Path(__file__).parents[2] / "docs" / "moving-from-openai.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def moved(base_url: str, key: str) -> str:
    """The script after the page's change, with this server's address, key and model."""
    lines = block("diff").splitlines()
    assert [line[0] for line in lines] == ["-", "+", "-", "+"]
    script = block("python")
    for removed, added in zip(lines[::2], lines[1::2], strict=True):
        assert script.count(removed[1:] + "\n") == 1
        script = script.replace(removed[1:], added[1:])
    here = {"http://127.0.0.1:8000": base_url, "hone-…": key, "smollm2-135m-instruct": "tiny"}
    for there, name in here.items():
        assert script.count(there) == 1
        script = script.replace(there, name)
    return script


@pytest.mark.parametrize("version", VERSIONS)
def test_a_script_for_openai_runs_with_the_address_and_the_model_changed(
    environments: dict[str, Path | NotInstalledError], service: Service, tmp_path: Path, version: str
):
    python = environments[version]
    if isinstance(python, NotInstalledError):
        pytest.skip(str(python))
    for name in ("train.jsonl", "valid.jsonl"):
        (tmp_path / name).write_bytes(CHAT)
    script = moved(service.base_url, service.key("moved"))
    command = [str(python), "-W", "ignore", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert re.fullmatch(r"ftjob-\w+: (queued|running)", said[0])
    assert said[-1].startswith("ft:tiny:moved:support:")
    assert any(line.endswith(" The job has successfully completed") for line in said)
    assert any(re.fullmatch(r"last step 4 of 4 training loss 0\.5", line) for line in said)
    assert len([line for line in said if ":ckpt-step-" in line]) == 2
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:5] == ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    assert f"last training loss {float(rows[-1]['train_loss'])} accuracy 0.5" in said
