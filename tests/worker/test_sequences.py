"""Sequences laid end to end."""

from worker.sequences import IGNORED, collate


def test_a_row_holds_whole_samples_end_to_end() -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [IGNORED, 9]}]
    batch = collate(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7, IGNORED, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["bounds"].tolist() == [0, 3, 5]
    assert batch["lengths"] == [3, 2]
    assert batch["trained"].tolist() == [0, 1, 3]
    assert batch["targets"].tolist() == [6, 7, 9]
