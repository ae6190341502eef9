from hps_lightning.report.public import public_networks


def test_every_fact_has_a_source():
    networks = public_networks()
    assert {network.dataset for network in networks} == {"cifar10", "cifar100"}
    for network in networks:
        assert network.source
        assert network.url.startswith("https://")
        assert network.protocol
        assert 1e5 < network.parameters < 1e7
        assert 60 < network.accuracy < 100


def test_families_that_the_comparison_needs_are_there():
    of_cifar10 = {network.name: network for network in public_networks() if network.dataset == "cifar10"}
    for name in ("ResNet-20", "ResNet-56", "MobileNetV2 x0.5", "ShuffleNetV2 x0.5"):
        assert name in of_cifar10
    assert of_cifar10["MobileNetV2 x0.5"].parameters == 700_000
    keys = [(network.name, network.publisher, network.dataset) for network in public_networks()]
    assert len(keys) == len(set(keys))
