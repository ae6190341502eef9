import pytest

# What Lightning says of trainings as small as these, and of itself.
LIGHTNING_WARNINGS = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        # A handful of tensors in memory need no worker processes.
        ".*does not have many workers:UserWarning",
        # These tests look at the training alone.
        "You defined a `validation_step` but have no `val_dataloader`:UserWarning",
        # Lightning 2.6 still asks torch's trees so.
        r".*isinstance\(treespec, LeafSpec\):FutureWarning",
    )
]
