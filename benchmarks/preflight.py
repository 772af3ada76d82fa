"""Preflight of a large file: memory, time and progress of the process that does it.

    python -m benchmarks.preflight [--model smollm2-135m-instruct] [--megabytes 1000] --out DIR

Without a model of the catalogue, characters are counted instead of tokens, which takes a twentieth of the time.

Makes a file of JSON lines (functions of this Python's library, each with a number of its own), stores it as an upload
is stored, and runs the preflight's child as the API does. Prints the child's peak resident memory and CPU time.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cli.samples import stdlib_samples
from core.base_card import card_key
from core.card_making import make_card
from core.catalogue import find_base_model, load_catalogue
from core.preflight_child import Order
from core.settings import get_settings
from core.storage import Storage


def write_dataset(path: Path, size: int) -> int:
    """Write samples until the file has ``size`` bytes; how many there are."""
    samples, count = stdlib_samples(), 0
    with path.open("wb") as file:
        while file.tell() < size:
            for sample in samples:
                row = {"instruction": f"{count}. {sample.instruction}", "output": sample.output}
                file.write(json.dumps(row).encode() + b"\n")
                count += 1
    return count


def peak_memory(pid: int) -> float:
    """Peak resident megabytes; rusage would count what this process held when it started the child."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(found[0]) / 1024 if found else 0.0


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model")
    arguments.add_argument("--megabytes", type=int, default=1000)
    arguments.add_argument("--out", type=Path, required=True)
    given = arguments.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(Path(folder).as_uri())
        source = Path(folder) / "big.jsonl"
        count = write_dataset(source, given.megabytes * 10**6)
        key = None
        if given.model:
            entry = find_base_model(load_catalogue(get_settings()), given.model)
            key = card_key(given.model, entry)
            storage.put(key, [make_card(given.model, entry, get_settings().home / "models")])
        order = Order(
            storage_url=Path(folder).as_uri(), file_key="big.jsonl", validation_key=None, card_key=key,
            template=None, system_prompt=None, max_line_bytes=2**20,
        )  # fmt: skip
        used_before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began, told, peak = time.monotonic(), 0, 0.0
        child = subprocess.Popen(
            [sys.executable, "-m", "core.preflight_child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(order.model_dump_json().encode())
        child.stdin.close()
        found = {}
        for line in child.stdout:
            step = json.loads(line)
            told += "bytes" in step
            peak = max(peak, peak_memory(child.pid))
            found = step.get("found", found)
        child.wait()
        seconds = round(time.monotonic() - began, 1)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - used_before.ru_utime - used_before.ru_stime
    figures = {
        "megabytes": given.megabytes,
        "samples": count,
        "found_samples": found["samples"],
        "unit": found["unit"],
        "length": sum(value * times for value, times in found["profile"]["lengths"]),
        "duplicates": found["duplicates"]["count"],
        "peak_memory_mb": peak,
        "seconds": seconds,
        "cpu_seconds": round(cpu, 1),
        "progress_lines": told,
    }
    text = json.dumps(figures, indent=2)
    (given.out / "preflight.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
