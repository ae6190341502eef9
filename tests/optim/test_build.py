import sys

import pytest
import pytorch_optimizer
import torch
from torch import nn
from torch.nn import functional as F

from hps_lightning.errors import UserError
from hps_lightning.optim import OPTIMIZERS, MuonWithAuxAdam, build_optimizer, build_schedule, optimizer_class
from tests.optim.test_schedules import CASES, IDS, LENGTH, walk

# Name, arguments, and the class that goes by it.
CHOICES = {
    "SGD": ("SGD", {"lr": 0.1}, torch.optim.SGD),
    "Nesterov": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}, torch.optim.SGD),
    "Adam": ("Adam", {"lr": 0.05}, torch.optim.Adam),
    "AdamW": ("AdamW", {"lr": 0.05}, torch.optim.AdamW),
    "Adamax": ("Adamax", {"lr": 0.05}, torch.optim.Adamax),
    "Adagrad": ("Adagrad", {"lr": 0.1}, torch.optim.Adagrad),
    "Rprop": ("Rprop", {"lr": 0.01}, torch.optim.Rprop),
    "RMSprop": ("RMSprop", {"lr": 0.02}, torch.optim.RMSprop),
    "AdaBound": ("AdaBound", {"lr": 0.05}, pytorch_optimizer.AdaBound),
    "MuonWithAuxAdam": ("MuonWithAuxAdam", {"lr": 0.5}, MuonWithAuxAdam),
}
HAVE_FUSED = ("SGD", "Nesterov", "Adam", "AdamW", "Adagrad")


def _spec(name, **arguments):
    return {"class_path": name, "init_args": arguments}


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def test_every_optimizer_with_a_name_has_a_case():
    assert {name for name, _, _ in CHOICES.values()} == set(OPTIMIZERS)


@pytest.mark.parametrize(("name", "arguments", "expected"), CHOICES.values(), ids=CHOICES)
def test_an_optimizer_by_name(name, arguments, expected):
    network = _network()
    optimizer = build_optimizer(network, _spec(name, **arguments))
    assert type(optimizer) is expected
    (group,) = optimizer.param_groups
    assert arguments.items() <= group.items()
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in network.parameters()}


@pytest.mark.parametrize("spec", [None, {}])
def test_the_default_is_the_paper_s(spec):
    optimizer = build_optimizer(_network(), spec)
    assert type(optimizer) is torch.optim.SGD
    expected = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    assert expected.items() <= optimizer.param_groups[0].items()


@pytest.mark.parametrize("spec", [{"class_path": "Adam"}, {"class_path": "Adam", "init_args": None}])
def test_arguments_may_be_left_out(spec):
    assert build_optimizer(_network(), spec).param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("torch.optim.NAdam", torch.optim.NAdam),
        ("torch.optim.sgd.SGD", torch.optim.SGD),
        ("pytorch_optimizer.Lamb", pytorch_optimizer.Lamb),
        ("pytorch_optimizer.optimizer.adabound.AdaBound", pytorch_optimizer.AdaBound),
    ],
)
def test_an_optimizer_by_its_path(path, expected):
    assert optimizer_class(path) is expected


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "SGD.",
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "torch.load",
        "torch.nn.Linear",
        "torch.optim",
        "torch.optim.",
        "torch.optim..SGD",
        "torch.optim.SGD.step",
        "torch.optim.lr_scheduler.StepLR",
        "torch.optim.nothing.SGD",
        "torch.optimizer.SGD",
        "pytorch_optimizer",
        "pytorch_optimizer.create_optimizer",
        "pytorch_optimizer.nothing.AdaBound",
    ],
)
def test_what_is_no_optimizer_is_refused(path):
    with pytest.raises(UserError, match=f"no optimizer called '{path}'.* Known: SGD, Adam"):
        build_optimizer(_network(), _spec(path))


@pytest.mark.parametrize(
    "module", ["stranger", "pytorch_optimizer_stranger", "pytorch_optimizers.stranger", "torch_optim", "torchoptim.sgd"]
)
def test_a_stranger_s_module_is_not_even_imported(module, tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    source = f"import torch\nopen({str(trace)!r}, 'w').close()\nclass Evil(torch.optim.SGD): pass\n"
    package, _, name = module.partition(".")
    file = tmp_path / package / f"{name}.py" if name else tmp_path / f"{package}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(source)
    if name:
        (tmp_path / package / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="no optimizer called"):
        build_optimizer(_network(), _spec(f"{module}.Evil"))
    assert not trace.exists()
    assert module not in sys.modules


def test_a_refused_class_is_not_called(tmp_path):
    with pytest.raises(UserError, match=r"no optimizer called 'os\.mkdir'"):
        build_optimizer(_network(), _spec("os.mkdir", path=str(tmp_path / "made")))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("typed", "suggested"), [("Adm", "Adam"), ("sgd", "SGD"), ("RMSProp", "RMSprop"), ("Adabound", "AdaBound")]
)
def test_a_misspelt_name_is_corrected(typed, suggested):
    with pytest.raises(UserError, match=f"'{typed}'. Did you mean {suggested}"):
        optimizer_class(typed)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("SGD", {"lr": -1.0}, "-1.0"),
        ("SGD", {"nesterov": True}, "Nesterov"),
        ("SGD", {"momentun": 0.9}, "momentun"),
        ("Adam", {"betas": [2.0, 0.9]}, "beta"),
        ("AdaBound", {"lr": -1.0}, "-1.0"),
        ("AdaBound", {"betas": [2.0, 0.9]}, "beta"),
        ("torch.optim.Optimizer", {}, "defaults"),
    ],
)
def test_mistakes_are_the_user_s(name, arguments, message):
    with pytest.raises(UserError, match=f"cannot be made with.*{message}"):
        build_optimizer(_network(), _spec(name, **arguments))


@pytest.mark.parametrize(("schedule", "options", "interval", "part"), CASES, ids=IDS)
@pytest.mark.parametrize(("name", "arguments", "expected"), CHOICES.values(), ids=CHOICES)
def test_every_optimizer_learns_under_every_schedule(name, arguments, expected, schedule, options, interval, part):
    network = _network()
    images = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    labels = images[:, :3].argmax(1)
    losses = []
    optimizer = build_optimizer(network, _spec(name, **arguments))

    def work():
        # The whole set each time, which Rprop needs.
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        losses.append(loss.item())

    rates = walk(optimizer, build_schedule(optimizer, _spec(schedule, **options), LENGTH), LENGTH, work)
    assert rates == pytest.approx([arguments["lr"] * part(step) for step in range(30)], rel=1e-6, abs=1e-12)
    assert losses[-1] < 0.97 * losses[0]


def _learn(network, optimizer, steps=5):
    images = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(images), images[:, :3].argmax(1)).backward()
        optimizer.step()
    return network.state_dict()


def _normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3), nn.PReLU())


@pytest.mark.parametrize(("name", "arguments", "expected"), CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_one_operation_updates_all_parameters_with_the_same_result(name, arguments, expected, decay_norm_and_bias):
    results, kinds = [], []
    for fused in (False, True):
        network = _network()
        optimizer = build_optimizer(network, _spec(name, **arguments), fused, decay_norm_and_bias)
        assert type(optimizer) is expected
        kinds.append(bool(optimizer.defaults.get("fused")))
        results.append(_learn(network, optimizer))
    assert kinds == [False, name in HAVE_FUSED]
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value)


def test_the_paper_s_optimizer_has_it_too():
    assert build_optimizer(_network(), None, fused=True).defaults["fused"] is True


@pytest.mark.parametrize("name", HAVE_FUSED)
@pytest.mark.parametrize(
    ("choice", "fused", "expected"),
    [
        ({"fused": False}, True, False),
        ({"foreach": True}, True, None),
        ({"foreach": True, "fused": None}, True, None),
        ({"foreach": False}, True, True),
        ({"fused": None}, True, True),
        ({"fused": True}, True, True),
        ({"fused": True}, False, True),
        ({}, False, None),
    ],
)
def test_who_specifies_it_chooses(name, choice, fused, expected):
    name, arguments, _ = CHOICES[name]
    optimizer = build_optimizer(_network(), _spec(name, **arguments, **choice), fused=fused)
    assert optimizer.defaults["fused"] is expected
    assert {key: optimizer.defaults[key] for key in choice if key != "fused"} == {
        key: value for key, value in choice.items() if key != "fused"
    }


def test_a_specification_is_left_as_it_is():
    spec = _spec("SGD", lr=0.1)
    build_optimizer(_network(), spec, fused=True, decay_norm_and_bias=False)
    assert spec == _spec("SGD", lr=0.1)


def test_a_step_that_was_counted_on_the_cpu_goes_where_a_fused_one_looks():
    # No GPU here: what counts is that the step follows the weights.
    unfused = build_optimizer(_network(), _spec("Adam"))
    for parameter in unfused.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    unfused.step()
    optimizer = build_optimizer(_network().to("meta"), _spec("Adam"))
    optimizer.defaults["fused"] = True
    optimizer.load_state_dict(unfused.state_dict())
    steps = [state["step"] for state in optimizer.state.values()]
    assert steps
    assert {step.device.type for step in steps} == {"meta"}


def test_another_class_of_torch_is_built_without():
    optimizer = build_optimizer(_network(), _spec("torch.optim.NAdam"), fused=True)
    assert "fused" not in optimizer.defaults


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("name", "arguments", "expected"), CHOICES.values(), ids=CHOICES)
def test_norms_and_biases_may_go_without_weight_decay(name, arguments, expected, fused):
    network = _normed()
    optimizer = build_optimizer(network, _spec(name, **arguments), fused=fused, decay_norm_and_bias=False)
    assert type(optimizer) is expected
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    weights, others = ([names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups)
    assert weights == ["0.weight", "3.weight"]
    assert others == ["0.bias", "1.weight", "1.bias", "3.bias", "4.weight"]
    assert optimizer.param_groups[1]["weight_decay"] == 0
    assert all(arguments.items() <= group.items() for group in optimizer.param_groups)
    assert optimizer.param_groups[0].get("weight_decay") == optimizer.defaults.get("weight_decay")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("decay_norm_and_bias", [False, True])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_weight_decay_shrinks_what_it_is_meant_to(name, decay_norm_and_bias, fused):
    network = _normed()
    before = {key: parameter.detach().clone() for key, parameter in network.named_parameters()}
    spec = _spec(name, lr=0.1, weight_decay=0.5)
    optimizer = build_optimizer(network, spec, fused=fused, decay_norm_and_bias=decay_norm_and_bias)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, parameter in network.named_parameters():
        shrinks = decay_norm_and_bias or key in ("0.weight", "3.weight")
        torch.testing.assert_close(parameter.detach(), before[key] * (0.95 if shrinks else 1))


def test_a_network_of_weights_alone_may_be_built_so():
    network = nn.Linear(4, 3, bias=False)
    optimizer = build_optimizer(network, None, fused=True, decay_norm_and_bias=False)
    network(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 0]


@pytest.mark.parametrize("arguments", [{"lr": -1.0}, {"momentun": 0.9}])
@pytest.mark.parametrize("decay_norm_and_bias", [False, True])
def test_mistakes_are_the_user_s_with_any_settings(arguments, decay_norm_and_bias):
    with pytest.raises(UserError, match="SGD cannot be made with"):
        build_optimizer(_network(), _spec("SGD", **arguments), True, decay_norm_and_bias)


def test_adagrad_is_fused_on_a_cpu_alone():
    # Before torch 2.12 there is none for CUDA.
    with torch.device("meta"):
        elsewhere = nn.Linear(2, 2)
    spec = {"class_path": "Adagrad", "init_args": {"lr": 0.1}}
    assert not build_optimizer(elsewhere, spec, fused=True).defaults["fused"]
    assert build_optimizer(nn.Linear(2, 2), spec, fused=True).defaults["fused"]
    assert build_optimizer(elsewhere, {**spec, "class_path": "SGD"}, fused=True).defaults["fused"]


@pytest.mark.parametrize("made", [True, False])
def test_a_checkpoint_does_not_bring_the_kernels_of_another_device(made):
    network = nn.Linear(3, 2)
    network(torch.ones(1, 3)).sum().backward()
    saved = build_optimizer(network, _spec("Adagrad", lr=0.1), fused=made)
    saved.step()
    going_on = build_optimizer(network, _spec("Adagrad", lr=0.1), fused=not made)
    going_on.load_state_dict(saved.state_dict())
    assert bool(going_on.param_groups[0]["fused"]) is not made
    going_on.step()
