import json
from pathlib import Path

import pytest

from core.errors import TrainingError
from core.specs import QuantizationSpec
from worker.answers import read_quantization


def test_the_base_is_quantized_as_it_was_in_training(tmp_path: Path):
    asked = {"type": "fp4", "double_quantization": False}
    (tmp_path / "manifest.json").write_text(json.dumps({"spec": {"hone": {"quantization": asked}}}))
    assert read_quantization(tmp_path) == QuantizationSpec(**asked)


def test_without_an_adapter_or_its_manifest_the_default_holds(tmp_path: Path):
    assert read_quantization(None) == read_quantization(tmp_path) == QuantizationSpec()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"spec": {"hone": {"quantization": {"type": "int3"}}}}'])
def test_a_manifest_that_does_not_say_is_refused(tmp_path: Path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(TrainingError, match=r"manifest\.json does not say"):
        read_quantization(tmp_path)
