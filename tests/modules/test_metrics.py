import math

import pytest
import torch

from hps_lightning.modules.metrics import ImageMean


def test_a_smaller_batch_counts_less():
    mean = ImageMean()
    mean.update(torch.tensor(1.0), 30)
    mean.update(torch.tensor(5.0), 10)
    assert mean.compute() == pytest.approx(2.0)
    mean.reset()
    mean.update(torch.tensor(3.0), 4)
    assert mean.compute() == pytest.approx(3.0)


def test_nan_stays():
    mean = ImageMean()
    mean.update(torch.tensor(1.0), 30)
    mean.update(torch.tensor(math.nan), 10)
    assert mean.compute().isnan()


def test_what_inference_mode_has_added_up_can_be_added_to_outside_of_it():
    # As Trainer.validate, and a training after it, do.
    mean = ImageMean()
    with torch.inference_mode():
        mean.reset()
        mean.update(torch.tensor(1.0), 30)
    mean.update(torch.tensor(5.0), 10)
    assert mean.compute() == pytest.approx(2.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_miscounts_no_images(dtype):
    # As Lightning turns a module with all that it holds.
    mean = ImageMean().to(dtype)
    for _ in range(400):
        mean.update(torch.tensor(1.25, dtype=dtype), 128)
    assert mean.compute() == pytest.approx(1.25)
