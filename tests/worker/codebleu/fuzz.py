"""The long search for a text that breaks the scorer: a crash, a score out of bounds, or more than two seconds.

    python -m tests.worker.codebleu.fuzz --minutes 10 [--engine hypothesis|atheris]

Half of the time goes to hypothesis, half to atheris (libFuzzer, led by the branches that are taken), where it is
installed: ``pip install atheris``. Atheris starts from functions of the standard library.
"""

import argparse
import importlib.util
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.worker.codebleu import pairs
from tests.worker.codebleu.test_properties import TEXTS, check
from worker.codebleu import LANGUAGES

LOG = logging.getLogger("fuzz")
MODES = ("default", "compat")


def by_hypothesis(seconds: float) -> None:
    """Texts made of words and of any characters, in every language, until the time is up."""
    until, runs = time.monotonic() + seconds, 0

    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(TEXTS, TEXTS, st.sampled_from(LANGUAGES))
    def run(answer: str, reference: str, lang: str) -> None:
        nonlocal runs
        runs += 1
        check(answer, reference, lang, "default")
        check(answer, reference, "python", "compat")

    while time.monotonic() < until:
        run()
    LOG.info("hypothesis: %d examples, nothing found", runs)


def by_atheris(seconds: float) -> None:
    """Bytes that libFuzzer changes, in a process of their own, for it ends the process that it runs in."""
    with tempfile.TemporaryDirectory() as folder:
        for number, code in enumerate(pairs.functions(1_200)[::20]):
            (Path(folder) / str(number)).write_bytes(bytes([number % 256]) + code.encode() + b"\xff" + code.encode())
        options = [f"-max_total_time={seconds:.0f}", "-timeout=10", "-max_len=4096", "-print_final_stats=1"]
        subprocess.run([sys.executable, "-m", "tests.worker.codebleu.fuzz", "--inside", *options, folder], check=True)


def inside(arguments: list[str]) -> None:
    """libFuzzer's process: the first byte says language and mode, 255 ends the answer."""
    import atheris

    with atheris.instrument_imports(include=["worker.codebleu"]):
        for name in [name for name in sys.modules if name.startswith("worker.codebleu")]:
            del sys.modules[name]
        import worker.codebleu  # noqa: F401 - imported again, with its branches counted

    import tests.worker.codebleu.test_properties as properties

    properties.score_sample = sys.modules["worker.codebleu"].score_sample

    def one(data: bytes) -> None:
        if not data:
            return
        answer, _, reference = data[1:].partition(b"\xff")
        lang, mode = LANGUAGES[data[0] % len(LANGUAGES)], MODES[data[0] >= 128]
        texts = (
            [text.decode("utf-8", "surrogatepass" if data[0] % 2 else "replace") for text in (answer, reference)]
            if _is_text(answer) and _is_text(reference)
            else [answer.decode("latin-1"), reference.decode("latin-1")]
        )
        check(texts[0], texts[1], "python" if mode == "compat" else lang, mode)

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def main() -> None:
    """Run the engines; the exit status is 0 where nothing was found."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--engine", choices=["hypothesis", "atheris"])
    given_ = parser.parse_args()
    engines = {"hypothesis": by_hypothesis}
    if importlib.util.find_spec("atheris"):
        engines["atheris"] = by_atheris
    else:
        LOG.info("atheris is not installed; hypothesis has all the time")
    chosen = [given_.engine] if given_.engine else list(engines)
    for name in chosen:
        engines[name](given_.minutes * 60 / len(chosen))
    LOG.info("%s: %g minutes, nothing found", " and ".join(chosen), given_.minutes)


if __name__ == "__main__":
    main()
