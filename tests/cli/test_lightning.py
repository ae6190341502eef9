"""Tests of what becomes of the errors of Lightning and torch."""

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from hps_lightning.cli.lightning import run_cli
from hps_lightning.errors import UserError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            r"choose a smaller --data\.batch_size; .* a smaller --data\.eval_batch_size\. CUDA out of memory\.$",
        ),
        (MisconfigurationException("No training batches."), r"^No training batches\.$"),
    ],
)
def test_what_a_user_can_change_is_a_users_error(error, message):
    def cli(*arguments):
        raise error

    with pytest.raises(UserError, match=message):
        run_cli("fit", ["--model=hps_06_05x", "--data.dataset=digits"], cli)
