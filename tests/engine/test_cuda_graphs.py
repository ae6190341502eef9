"""Training as CUDA graphs gives what the same kernels give one by one.

What is recorded, and when, is tried without a GPU too, where each replay runs kernel by kernel.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from hps_lightning import zoo
from hps_lightning.engine import GraphedTraining, Replayed, cuda_graphs, passes_repeat
from hps_lightning.modules import CLASSIFIERS
from hps_lightning.optim import MuonWithAuxAdam

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
needs_gpu = pytest.mark.skipif(not GPU, reason="there is no CUDA GPU")


class PassesOfACPU:
    """As the recorded passes, which begin with the values of the weights as they are at each replay."""

    def __init__(self, network, images):
        self.named = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self.weights = list(self.named.values())
        self.network, self.images = network, images.clone()
        self.forward, self.backward = SimpleNamespace(replay=self._forward), SimpleNamespace(replay=self._backward)

    def _forward(self):
        aliases = {name: weight.detach().requires_grad_() for name, weight in self.named.items()}
        with torch.enable_grad():
            self.output = functional_call(self.network, aliases, self.images)
        self.aliases = list(aliases.values())
        self.logits, self.gradient = self.output.detach(), torch.zeros_like(self.output)

    def _backward(self):
        self.gradients = torch.autograd.grad(self.output, self.aliases, self.gradient)


class CallOfACPU:
    def __init__(self, function, tensors):
        self.function, self.given = function, [tensor.clone() for tensor in tensors]
        self.graph = SimpleNamespace(replay=self._replay)

    def _replay(self):
        self.results = self.function(self.given)


@pytest.fixture(autouse=True)
def repeatable(monkeypatch):
    """The same kernels every time, so that equal means equal."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    if not GPU:
        monkeypatch.setattr(cuda_graphs, "_Passes", PassesOfACPU)
        monkeypatch.setattr(cuda_graphs, "_Call", CallOfACPU)


def network(name="hps_06_05x", **arguments):
    torch.manual_seed(0)
    return zoo.find_variant(name).build(10, **arguments).to(DEVICE, memory_format=torch.channels_last).train()


def batches(sizes, side=32):
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        images = torch.randn(size, 3, side, side, generator=generator)
        labels = torch.randint(0, 10, (size,), generator=generator)
        yield images.to(DEVICE).contiguous(memory_format=torch.channels_last), labels.to(DEVICE)


def train(net, forward, sizes=(16, 16, 16, 16, 5, 16, 16, 16), mixed=GPU, side=32, before_step=None, after=None):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step, (images, labels) in enumerate(batches(sizes, side)):
        torch.manual_seed(step)
        if before_step:
            before_step(step, net)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=mixed):
            loss = F.cross_entropy(forward(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if after:
            after(step)
    return losses


@pytest.mark.parametrize("variant", zoo.ZOO.values(), ids=zoo.ZOO)
def test_the_passes_of_our_networks_repeat(variant):
    assert passes_repeat(CLASSIFIERS[variant.family](num_classes=10, **variant.arguments).network)


def test_what_somebody_elses_module_decides_in_python_is_not_known_to_repeat():
    class DropsItself(nn.Identity):
        pass

    assert passes_repeat(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity()))
    assert not passes_repeat(nn.Sequential(nn.Conv2d(3, 4, 1), DropsItself()))


def both_ways(make=network, **options):
    """Trains the same network without and with graphs; returns what records them."""
    plain, net = make(), make()
    expected = train(plain, plain, **options)
    graphed = GraphedTraining(net)
    losses = train(net, graphed, **options)
    assert losses == expected
    for (name, value), other in zip(net.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    return graphed


@pytest.mark.parametrize("mixed", [True, False] if GPU else [False])
@pytest.mark.parametrize("name", ["hps_06_05x", "squeezenext_23_1x", "squeezenet_v1_1"])
def test_weights_and_averages_become_the_same(name, mixed):
    graphed = both_ways(lambda: network(name), mixed=mixed)
    assert graphed._recordings._recording is not None
    assert not graphed.problem


@needs_gpu
def test_dropout_drops_the_same_and_anew_in_each_step():
    both_ways(lambda: network(dropout=0.5))
    graphed = GraphedTraining(network(dropout=0.5))
    images, _ = next(batches([16]))
    answers = []
    for step in range(4):
        torch.cuda.manual_seed(step)
        answers.append(graphed(images).detach().clone())
    assert not torch.equal(answers[2], answers[3])


def change_momentum(net):
    net.stage1[0].squeeze1.norm.momentum = 0.01


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.stem.requires_grad_(False),
        change_momentum,
        lambda net: setattr(net, "resolution", 0.5),
        lambda net: net.stage2.eval(),
        lambda net: net.double().float(),
    ],
    ids=["frozen", "momentum", "resolution", "in evaluation", "moved"],
)
def test_what_changes_how_the_network_computes_has_it_recorded_anew(change):
    found = {}

    def before(step, net):
        if step == 4:
            change(net)

    plain, net = network(), network()
    expected = train(plain, plain, sizes=[16] * 7, before_step=before)
    graphed = GraphedTraining(net)
    losses = train(
        net,
        graphed,
        sizes=[16] * 7,
        before_step=before,
        after=lambda step: found.setdefault(step, graphed._recordings._recording),
    )
    assert losses == expected
    assert found[1] is found[3] is not None
    assert found[5] is found[6] is not found[1]


def test_another_size_of_images_is_recorded_anew():
    net = network()
    graphed = GraphedTraining(net)
    for side in (24, 24, 32, 32):
        images, _ = next(batches([8], side))
        before = copy.deepcopy(net)
        torch.testing.assert_close(graphed(images), before(images))
    assert graphed._recordings._recording.images.shape[-1] == 32


def test_a_single_smaller_batch_is_not_recorded_and_costs_no_recording():
    graphed, found = GraphedTraining(network()), []
    sizes = (16, 16, 16, 5, 16, 5, 5, 16)
    train(graphed.network, graphed, sizes, after=lambda step: found.append(graphed._recordings._recording))
    first, smaller = found[1], found[6]
    assert found == [None, first, first, first, first, first, smaller, smaller]
    assert (len(first.images), len(smaller.images)) == (16, 5)


@pytest.mark.parametrize("step_of_hook", [0, 4])
def test_hooks_are_called_at_each_step(step_of_hook):
    seen = []

    def hook(step, net):
        if step == step_of_hook:
            net.pool.register_forward_hook(lambda *_: seen.append(step))

    graphed = both_ways(sizes=[8] * 7, before_step=hook)
    # In both trainings.
    assert len(seen) == 2 * (7 - step_of_hook)
    assert graphed._recordings._recording is None


def test_cumulative_averages_stay_without_a_recording():
    def average(step, net):
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None

    assert both_ways(sizes=[8] * 4, before_step=average)._recordings._recording is None


def test_a_copy_holds_nothing_that_was_recorded():
    graphed = GraphedTraining(network())
    train(graphed.network, graphed, sizes=[8] * 3)
    copied = copy.deepcopy(graphed)
    assert graphed._recordings._recording is not None
    assert copied._recordings._recording is None
    train(copied.network, copied, sizes=[8] * 3)
    assert copied._recordings._recording is not None


def test_gradients_do_not_add_up_where_they_are_only_filled_with_zeros(monkeypatch):
    monkeypatch.setattr(torch.optim.SGD, "zero_grad", lambda self: torch.optim.Optimizer.zero_grad(self, False))
    both_ways(sizes=[8] * 4)


def test_what_cannot_be_recorded_is_computed_and_said(monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory\nmore")

    monkeypatch.setattr(cuda_graphs, "_Passes", fail)
    monkeypatch.setattr(cuda_graphs, "_Call", fail)
    with pytest.warns(UserWarning, match=r"kernels one by one, .* made: out of memory$"):
        graphed = both_ways(sizes=[8] * 4)
    assert graphed.problem == "out of memory"
    doubled = Replayed(lambda tensors: [tensor * 2 for tensor in tensors])
    with pytest.warns(UserWarning, match="kernels one by one"):
        answers = [doubled([torch.ones(2)])[0] for _ in range(3)]
    assert all(torch.equal(answer, torch.full((2,), 2.0)) for answer in answers)


@needs_gpu
def test_what_a_graph_cannot_hold_is_trained_without_and_said():
    class Waits(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, images):
            return self.inner(images) * float(images.mean().abs().item() + 1)

    net = Waits()
    graphed = GraphedTraining(net)
    with pytest.warns(UserWarning, match="kernels one by one"):
        losses = train(net, graphed, sizes=[8] * 4)
    assert graphed.problem
    assert losses == train(plain := Waits(), plain, sizes=[8] * 4)


def test_a_replayed_function_takes_new_values_and_new_shapes():
    doubled = Replayed(lambda tensors: [tensor * 2 for tensor in tensors])
    for size in (3, 3, 3, 4, 3, 4, 4, 3):
        given = [torch.randn(size, device=DEVICE), torch.randn(2, size, device=DEVICE)]
        for result, tensor in zip(doubled(given), given, strict=True):
            assert torch.equal(result, tensor * 2)
    assert [len(tensor) for tensor in doubled._recordings._recording.given] == [4, 2]


@needs_gpu
def test_muon_takes_the_same_steps_on_a_gpu_as_on_a_cpu():
    on_gpu = network("hps_14_1x")
    on_cpu = copy.deepcopy(on_gpu).cpu()
    ours, theirs = (MuonWithAuxAdam(net.parameters(), lr=0.02, weight_decay=0.01) for net in (on_gpu, on_cpu))
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        for gpu, cpu in zip(on_gpu.parameters(), on_cpu.parameters(), strict=True):
            cpu.grad = torch.randn(cpu.shape, generator=generator).contiguous(
                memory_format=torch.channels_last if cpu.ndim == 4 else torch.contiguous_format
            )
            gpu.grad = cpu.grad.cuda()
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = 0.02 / (step + 1)
            optimizer.step()
        # As a resumed training finds it.
        if step == 3:
            copied = copy.deepcopy(ours.state_dict())
            ours = MuonWithAuxAdam(on_gpu.parameters())
            ours.load_state_dict(copied)
    for gpu, cpu in zip(on_gpu.parameters(), on_cpu.parameters(), strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-3, atol=1e-4)
