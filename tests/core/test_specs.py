"""Specs: bounds hold, unknown fields are refused, nothing can be changed."""

import math

import pytest
from pydantic import BaseModel, ValidationError

from core import specs
from core.specs import CodeBleuCriterion, FineTuneSpec, HoneSpec, LoraSpec, TrainingSpec

CRITERION = {"type": "code_bleu", "name": "c", "input": "{{sample.output_text}}", "reference": "{{item.x}}"}


def test_the_defaults_are_valid_and_survive_the_database():
    spec = FineTuneSpec(model="m", training_file="f")
    assert FineTuneSpec.model_validate_json(spec.model_dump_json()) == spec
    assert FineTuneSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        (LoraSpec, {"r": 0}),
        (LoraSpec, {"r": 257}),
        (LoraSpec, {"dropout": 1}),
        (LoraSpec, {"target_modules": ()}),
        (LoraSpec, {"target_modules": ["lm_head"]}),
        (LoraSpec, {"unknown": 1}),
        (TrainingSpec, {"learning_rate": math.nan}),
        (TrainingSpec, {"learning_rate": math.inf}),
        (TrainingSpec, {"learning_rate": "fast"}),
        (TrainingSpec, {"lr_scheduler": "polynomial"}),
        (HoneSpec, {"data": {"max_seq_length": 8}}),
        (CodeBleuCriterion, CRITERION | {"weights": [0.5, 0.5, 0.5, 0.5]}),
        (CodeBleuCriterion, CRITERION | {"weights": [1.5, -0.5, 0, 0]}),
        (CodeBleuCriterion, CRITERION | {"lang": "cobol"}),
    ],
)
def test_a_value_out_of_bounds_is_refused(spec, values):
    with pytest.raises(ValidationError):
        spec.model_validate(values)


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValidationError):
        LoraSpec().r = 8


def test_every_option_of_ours_states_its_reason():
    for name in (
        *("LoraSpec", "QuantizationSpec", "TrainingSpec", "DataSpec", "Hyperparameters"),
        "EvaluationDuringTrainingSpec",
    ):
        spec: type[BaseModel] = getattr(specs, name)
        assert [key for key, field in spec.model_fields.items() if not field.description] == []
