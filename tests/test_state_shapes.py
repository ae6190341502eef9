import pytest
import torch
from torch import nn

from hps_lightning.networks import MobileNet
from hps_lightning.state_shapes import state_shapes


class Reads(nn.Module):
    """Looks at values while it is made, as networks with stochastic depth do."""

    def __init__(self, width):
        super().__init__()
        self.drops = [part.item() for part in torch.linspace(0, 1, 3)]
        self.layer = nn.Linear(width, 2)


@pytest.mark.parametrize("kind", [nn.Linear, Reads])
def test_shapes_without_a_random_number(kind):
    arguments = {"in_features": 3, "out_features": 2} if kind is nn.Linear else {"width": 3}
    before = torch.get_rng_state()
    shapes = state_shapes(kind, arguments)
    assert sorted(shapes.values()) == [torch.Size([2]), torch.Size([2, 3])]
    assert torch.equal(torch.get_rng_state(), before)


def test_ours_take_no_memory():
    shapes = state_shapes(MobileNet, {"num_classes": 10, "width": 10_000})
    assert max(size.numel() for size in shapes.values()) > 1e12


def test_a_mistake_is_the_constructors_own():
    with pytest.raises(TypeError, match="depth"):
        state_shapes(Reads, {"depth": 3})
    with pytest.raises(TypeError, match="depth"):
        state_shapes(MobileNet, {"depth": 3})
