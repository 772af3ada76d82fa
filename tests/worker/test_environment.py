"""The machine: what a job is measured by."""

import pytest
import torch

from worker.environment import forget_peak_memory, peak_memory

SIZE = 2**28


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's memory is torch's own")
def test_what_an_earlier_job_took_is_not_in_the_peak():
    forget_peak_memory()
    before = peak_memory()
    # In pieces that the C library keeps when they are freed, and one behind them that keeps it from shrinking.
    earlier = [bytearray(2**15) for _ in range(SIZE // 2**15)]
    last = bytearray(2**15)
    assert peak_memory() > before + 0.9 * SIZE
    del earlier
    forget_peak_memory()
    assert peak_memory() < before + 0.3 * SIZE
    assert len(last) == 2**15
