import pytest

from core.model_names import checkpoint_name, fine_tuned_model_id, read_checkpoint_name


@pytest.mark.parametrize(
    ("project", "suffix", "id"),
    [
        ("default", "docs", "ft:base:default:docs:90abcdef"),
        ("default", None, "ft:base:default::90abcdef"),
        ("", "a", "ft:base:hone:a:90abcdef"),
        ("My team/2: ä", "x/../y", "ft:base:My-team-2:x-..-y:90abcdef"),
    ],
)
def test_a_fine_tuned_models_id_stands_for_itself_in_a_url(project: str, suffix: str | None, id: str) -> None:
    assert fine_tuned_model_id("base", suffix, project, "ftjob-01234567890abcdef") == id


def test_a_checkpoints_name_tells_its_job_and_step() -> None:
    name = checkpoint_name("ft:org/base:default:docs:90abcdef", 88)
    assert name == "ft:org/base:default:docs:90abcdef:ckpt-step-88"
    assert read_checkpoint_name(name) == ("90abcdef", 88)


@pytest.mark.parametrize(
    "name", ["ft:a:b:c:d", "base", "ft:a:b:c:d:ckpt-step-", "ft:a:b:c:d:ckpt-step-x", "a:ckpt-step-1"]
)
def test_other_names_are_no_checkpoints(name: str) -> None:
    assert read_checkpoint_name(name) is None
