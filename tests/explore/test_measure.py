import pytest
import torch

from hps_lightning.bluebox import describe
from hps_lightning.bluebox.onnx_export import export_onnx
from hps_lightning.explore.measure import network_costs
from hps_lightning.modules import HPSClassifier
from tests.bluebox.made import record


@pytest.mark.train
def test_an_untrained_network_costs_what_it_will_cost_when_trained():
    torch.manual_seed(0)
    # With fewer than 8 channels before a stride PyTorch 2.14 breaks its memory on processors without AVX-512.
    module = HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.5)
    described = record(module)
    before = [value.clone() for value in module.network.state_dict().values()]
    state = torch.get_rng_state()
    costs = network_costs(module.network, described, ["size_bytes"])
    assert torch.equal(torch.get_rng_state(), state), "the training draws as without a measurement"
    assert all(torch.equal(a, b) for a, b in zip(before, module.network.state_dict().values(), strict=True))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.network.train()(torch.randn(8, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    # As `hps export` does.
    network = module.network.to(memory_format=torch.contiguous_format)
    trained = export_onnx(network, describe(network, described))
    assert costs["size_bytes"] == len(trained)
    assert costs["parameters"] == sum(parameter.numel() for parameter in module.network.parameters())
    assert costs["macs"] > 0
    assert costs["latency_ms"] > 0


def test_what_takes_seconds_is_left_out_where_it_is_not_needed():
    module = HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.2)
    assert set(network_costs(module.network, record(module), ["error", "macs"])) == {"parameters", "macs"}
