import copy

import pytest
import torch
from torch import nn

from hps_lightning.optim import build_optimizer
from hps_lightning.optim.muon import MuonWithAuxAdam, orthogonalise


def _network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, (3, 1)), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 1), nn.Linear(5, 2)
    )


def _with_gradients(network, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return network


@pytest.mark.parametrize("shape", [(3, 4, 9), (2, 9, 4), (1, 16, 16), (2, 1, 5), (2, 5, 1)])
def test_orthogonalised_matrices_keep_their_singular_vectors_and_lose_their_sizes(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    left, sizes, right = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalise(matrices)
    new_sizes = torch.diagonal(left.mT @ result @ right.mT, dim1=1, dim2=2)
    # The smallest ones take more steps to grow.
    assert bool(((new_sizes > 0.6) & (new_sizes < 1.25))[sizes > 0.1 * sizes.amax(1, keepdim=True)].all())
    torch.testing.assert_close(left * new_sizes[:, None] @ right, result)


def test_a_zero_gradient_moves_nothing():
    assert torch.equal(orthogonalise(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_a_gradient_that_is_no_number_stays_none():
    assert orthogonalise(torch.full((2, 3, 4), torch.nan)).isnan().all()


def test_subnormal_rows_of_a_dead_channel_count_as_zero():
    # Intel's processors are slow at them.
    momentum = torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(0))
    dead = momentum.clone()
    dead[:, 3] = 0
    momentum[:, 3] = 5e-45
    result = orthogonalise(momentum)
    assert (result[:, 3] == 0).all()
    assert torch.equal(result, orthogonalise(dead))


def test_convolutions_move_by_orthogonal_updates_of_their_nesterov_momentum():
    network = _network()
    expected = {name: p.detach().clone() for name, p in network.named_parameters() if p.ndim == 4}
    momenta = {name: torch.zeros_like(value) for name, value in expected.items()}
    optimizer = MuonWithAuxAdam(network.parameters(), lr=0.3, momentum=0.8)
    for seed in range(3):
        _with_gradients(network, seed)
        for name, p in network.named_parameters():
            if name in expected:
                momenta[name] = 0.8 * momenta[name] + p.grad
                update = (p.grad + 0.8 * momenta[name]).flatten(1)
                rows, columns = update.shape
                update = orthogonalise(update[None])[0] * max(1, rows / columns) ** 0.5
                expected[name] = expected[name] - 0.3 * update.reshape(p.shape)
        optimizer.step()
    for name, value in expected.items():
        torch.testing.assert_close(dict(network.named_parameters())[name].detach(), value)


def test_all_other_parameters_move_as_with_adamw():
    network, reference = _network(), _network()
    others = [p for p in reference.parameters() if p.ndim != 4]
    ours = MuonWithAuxAdam(network.parameters(), lr=0.2, other_lr=0.1, betas=(0.8, 0.95), eps=1e-6)
    adamw = torch.optim.AdamW(others, lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0)
    for seed in range(4):
        _with_gradients(network, seed)
        _with_gradients(reference, seed)
        ours.step()
        adamw.step()
    for ours_p, reference_p in zip([p for p in network.parameters() if p.ndim != 4], others, strict=True):
        torch.testing.assert_close(ours_p, reference_p)


def test_a_norm_that_was_frozen_at_first_begins_as_with_adam():
    network = _network()
    norm, late = network[1], copy.deepcopy(network[1])
    ours = MuonWithAuxAdam(network.parameters(), lr=0.2, other_lr=0.1)
    adam = torch.optim.Adam(late.parameters(), lr=0.02)
    for seed in range(6):
        _with_gradients(network, seed)
        if seed < 3:
            norm.weight.grad = norm.bias.grad = None
        else:
            late.weight.grad, late.bias.grad = norm.weight.grad.clone(), norm.bias.grad.clone()
            adam.step()
        ours.step()
    torch.testing.assert_close(norm.state_dict(), late.state_dict())


def test_a_checkpoint_that_counts_steps_by_group_goes_on():
    network = _network()
    optimizer = MuonWithAuxAdam(network.parameters())
    for seed in range(3):
        _with_gradients(network, seed)
        optimizer.step()
    earlier = copy.deepcopy(optimizer.state_dict())
    for state in earlier["state"].values():
        state.pop("steps", None)
    earlier["param_groups"][0]["other_steps"] = 3
    copied = copy.deepcopy(network)
    going_on = MuonWithAuxAdam(copied.parameters())
    going_on.load_state_dict(earlier)
    for net, one in ((network, optimizer), (copied, going_on)):
        _with_gradients(net, 3)
        one.step()
    torch.testing.assert_close(copied.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_weight_decay_shrinks_convolutions_alone():
    network = _network()
    before = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    MuonWithAuxAdam(network.parameters(), lr=0.5, weight_decay=0.2).step()
    for now, then in zip(network.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(now, then * 0.9 if now.ndim == 4 else then)


def test_parameters_without_gradient_stay():
    network = _with_gradients(_network())
    network[0].requires_grad_(False)
    network[0].weight.grad = network[0].bias.grad = None
    before = copy.deepcopy(network.state_dict())
    MuonWithAuxAdam(network.parameters()).step()
    after = network.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {
        name for name, _ in network.named_parameters() if not name.startswith("0.")
    }


def test_a_saved_state_goes_on_exactly():
    network = _network()
    optimizer = MuonWithAuxAdam(network.parameters())
    _with_gradients(network, 0)
    optimizer.step()
    other = copy.deepcopy(network)
    resumed = MuonWithAuxAdam(other.parameters())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net, opt in ((network, optimizer), (other, resumed)):
        _with_gradients(net, 1)
        opt.step()
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_where_weights_gradients_and_momenta_lie_changes_nothing(layout):
    network, moved = (nn.Sequential(nn.Conv2d(6, 8, (3, 1)), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 5, 3)) for _ in "ab")
    moved.load_state_dict(network.state_dict())
    plain = MuonWithAuxAdam(network.parameters(), weight_decay=0.1)
    _with_gradients(network, 0)
    plain.step()
    # Goes on from that state in another layout, with gradients in either.
    moved.load_state_dict(network.state_dict())
    moved.to(memory_format=torch.channels_last)
    other = MuonWithAuxAdam(moved.parameters(), weight_decay=0.1)
    other.load_state_dict(copy.deepcopy(plain.state_dict()))
    for net, optimizer in ((network, plain), (moved, other)):
        _with_gradients(net, 1)
        optimizer.step()
        for parameter in net.parameters():
            if parameter.ndim == 4:
                parameter.grad = parameter.grad.contiguous(memory_format=layout)
        optimizer.step()
    for expected, value in zip(network.parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(value, expected)


def test_step_returns_what_the_closure_does():
    network = _network()
    assert MuonWithAuxAdam(network.parameters()).step(lambda: 7) == 7


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("lr", -1),
        ("momentum", 1),
        ("weight_decay", -0.1),
        ("steps", 0),
        ("other_lr", -1),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.9)),
        ("eps", -1e-8),
        ("lr", float("nan")),
    ],
)
def test_arguments_out_of_range_are_refused(argument, value):
    with pytest.raises(ValueError, match=argument):
        MuonWithAuxAdam(_network().parameters(), **{argument: value})


def test_norms_and_biases_may_go_without_decay():
    optimizer = build_optimizer(
        _network(), {"class_path": "MuonWithAuxAdam", "init_args": {"lr": 0.1}}, decay_norm_and_bias=False
    )
    assert type(optimizer) is MuonWithAuxAdam
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0]
