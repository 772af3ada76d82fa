"""The memory's arithmetic against what was measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.shapes import KINDS
from core.memory import KeepCounts, Setup, predict, weight_bytes, weights_by_bits
from core.shape import read_shape
from core.specs import LoraSpec, QuantizationSpec
from tests.core.shapes import LLAMA_7B, SMOLLM2

SETUP = Setup(LoraSpec(), QuantizationSpec(), "adamw_torch_fused", value_bytes=2, device="cuda")
ALL = KeepCounts(32)


def test_weights_at_32_16_and_4_bits():
    assert weights_by_bits(LLAMA_7B) == {32: 26_953_662_464, 16: 13_476_831_232, 4: 3_865_591_808}
    linear, other = 6_476_005_376, 262_410_240
    assert weight_bytes(LLAMA_7B, QuantizationSpec(double_quantization=False)) == int(linear * 4.5 / 8) + 2 * other
    assert weight_bytes(LLAMA_7B, QuantizationSpec(type="none"), 4) == 4 * LLAMA_7B.parameters


def test_weights_are_what_a_loaded_model_had():
    """benchmarks/results/h100-2026-11-24: 3,905,569,280 bytes with the float32 adapter of r=4."""
    assert weight_bytes(LLAMA_7B, QuantizationSpec()) + 4 * 9_994_240 == pytest.approx(3_905_569_280, rel=1e-3)


@pytest.mark.parametrize(
    ("keep", "tokens", "gigabytes"),
    [
        (KeepCounts(32), 3328, 15.272),
        (KeepCounts(32), 8192, 30.313),
        (KeepCounts(32), 13_312, 46.189),
        (KeepCounts(32), 16_384, 55.515),
        (KeepCounts(0, 32), 3328, 10.722),
        (KeepCounts(0, 32), 8192, 19.042),
        (KeepCounts(0, 0, 32), 3328, 6.456),
        (KeepCounts(0, 0, 32), 8192, 8.541),
    ],
)
def test_the_peak_is_what_an_h100_measured(keep, tokens, gigabytes):
    """benchmarks/results/h100-2026-11-27/memory-of-blocks.txt: steps of one pass, so no gradients from one before."""
    memory = predict(LLAMA_7B, SETUP, tokens, keep)
    assert memory.allocated - memory.gradients == pytest.approx(gigabytes * 1e9, rel=0.02)


MEASURED = json.loads(
    (Path(__file__).parents[2] / "benchmarks/results/h100-2026-11-27/memory/memory.json").read_bytes()
)


@pytest.mark.parametrize("row", MEASURED["settings"], ids=lambda row: f"{row['kind']}-{row['tokens']}-{row['keep']}")
def test_the_peak_is_within_a_tenth_of_what_an_h100_measured_over_shapes_ranks_and_modes(row):
    setup = replace(SETUP, lora=LoraSpec(r=row["r"], dropout=row["dropout"]), fast_path=row["fast_path"])
    memory = predict(
        read_shape(KINDS[row["kind"]]), setup, row["tokens"], KeepCounts(*row["keep"]), resident=row["resident"]
    )
    assert memory.allocated == pytest.approx(row["measured_peak"], rel=0.1)


def test_resident_weights_take_a_copy_of_each_block():
    peaks = [predict(LLAMA_7B, SETUP, 8192, ALL, resident=resident).allocated for resident in (False, True)]
    assert peaks[1] - peaks[0] == pytest.approx(43.30e9 - 30.07e9, rel=0.05)


def test_the_parts_sum_up():
    memory = predict(LLAMA_7B, SETUP, 8192, ALL)
    assert memory.total == sum(memory.model_dump().values())
    assert memory.allocated == memory.total - memory.overhead
    assert (memory.gradients, memory.optimizer) == (2 * 4 * 39_976_960, 8 * 39_976_960)


def test_keeping_less_takes_less():
    def peak(*counts):
        return predict(LLAMA_7B, SETUP, 8192, KeepCounts(*counts)).allocated

    peaks = [peak(32), peak(16, 16), peak(0, 32), peak(0, 16, 16), peak(0, 0, 32)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] - peaks[2] == pytest.approx(8192 * 32 * 2 * (2 * 11_008 + 32), rel=0.05)


def test_the_last_blocks_keep_all_since_their_turn_comes_first():
    assert KeepCounts(2, 1, 1).by_block() == ["input", "attention", "all", "all"]


def test_fewer_bits_of_optimizer_and_rank():
    small = Setup(LoraSpec(r=4), QuantizationSpec(), "adamw_8bit", value_bytes=2, device="cuda")
    memory = predict(LLAMA_7B, small, 4096, ALL)
    assert memory.optimizer == int(2.03125 * 9_994_240)
    assert memory.gradients == 2 * 4 * 9_994_240


@pytest.mark.parametrize(
    ("value_bytes", "fast_path", "row_tokens", "tokens", "gigabytes"),
    [
        (2, True, None, 476, 1.512),
        (2, True, None, 506, 1.614),
        (4, True, None, 476, 2.061),
        (2, False, None, 476, 2.098),
        (4, False, None, 476, 2.617),
        (2, False, 192, 384, 1.940),
    ],
)
def test_a_processors_peaks_with_smollm2_are_met(value_bytes, fast_path, row_tokens, tokens, gigabytes):
    """benchmarks/results/estimate-2026-11-27.txt: resident memory; the last is of DPO."""
    setup = Setup(
        LoraSpec(), QuantizationSpec(), "adamw_torch_fused", value_bytes, "cpu", fast_path, row_tokens=row_tokens
    )
    found = predict(SMOLLM2, setup, tokens, KeepCounts(SMOLLM2.layers), resident=fast_path).total
    assert found == pytest.approx(gigabytes * 1e9, rel=0.1)
