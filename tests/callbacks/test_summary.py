import pytest
import torch
from torch import nn

from hps_lightning import networks
from hps_lightning.callbacks.summary import Costs, Summary, costs
from hps_lightning.complexity import count_macs, count_parameters, module_bytes, state_dict_bytes
from hps_lightning.modules import ImageClassifier

from .helpers import LIGHTNING_WARNINGS, TinyData, quiet_trainer, tiny_classifier

pytestmark = LIGHTNING_WARNINGS


class Unusual(nn.Module):
    """Lists, what returns more than a tensor, and what cannot be pickled."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.ModuleDict({"narrow": nn.Conv2d(4, 2, 1)})])
        self.recurrent = nn.GRU(2, 6, batch_first=True)
        self.head = nn.Linear(6, 10)
        self.shortcut = lambda maps: maps

    def forward(self, images):
        maps = self.shortcut(self.blocks[1]["narrow"](self.blocks[0](images)))
        _, last = self.recurrent(maps.mean(3).transpose(1, 2))
        return self.head(last[0])


def printed(capsys, folder, model=None, data=None, **arguments):
    trainer = quiet_trainer(folder, callbacks=[Summary()], logger=False, max_epochs=1, **arguments)
    trainer.fit(model or tiny_classifier(), data or TinyData())
    return capsys.readouterr().out


class TestParts:
    def test_hps_by_hand(self):
        network = networks.HighPerformanceSqueezeNext(stages=[1, 1, 1, 1])
        found = costs(network).parts
        assert [part.name for part in found] == [
            "stem",
            "stage1",
            "stage2",
            "stage3",
            "stage4",
            "spatial_resolution",
            "classifier",
        ]
        # The stem is not padded: 32 pixels become 30, then 15, 8 and 4 (Table 5).
        assert [part.shape for part in found] == [
            (64, 30, 30),
            (32, 30, 30),
            (64, 15, 15),
            (128, 8, 8),
            (256, 4, 4),
            (128, 4, 4),
            (10,),
        ]
        stem, classifier = found[0], found[-1]
        assert stem.macs == 3 * 3 * 3 * 64 * 30 * 30
        assert stem.parameters == 3 * 3 * 3 * 64 + 64 + 2 * 64
        assert (classifier.macs, classifier.parameters) == (1280, 1290)

    @pytest.mark.parametrize(
        "network",
        [networks.SqueezeNext(), networks.MobileNet(width=0.25), networks.SqueezeNet(), networks.SqueezedCNN()],
        ids=lambda network: type(network).__name__,
    )
    def test_parts_add_up(self, network):
        found = costs(network).parts
        assert sum(part.macs for part in found) == count_macs(network)
        assert sum(part.parameters for part in found) == count_parameters(network)

    def test_parts_in_lists_stand_for_them(self):
        found = costs(Unusual())
        assert [(part.name, part.shape) for part in found.parts] == [
            ("blocks.0", (4, 30, 30)),
            ("blocks.1.narrow", (2, 30, 30)),
            ("recurrent", ()),
            ("head", (10,)),
        ]
        assert [part.macs for part in found.parts][:2] == [30 * 30 * 4 * 27, 30 * 30 * 4 * 2]
        assert found.macs >= count_macs(Unusual())
        assert found.shape == (10,)

    def test_what_runs_beside_the_parts_counts_as_a_whole(self):
        class Lists(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(10, 3))

            def forward(self, images):
                return nn.functional.linear(images.mean((2, 3)), self.weight)

        assert costs(Lists()) == Costs([], (10,), 30)

    def test_leaves_the_network_alone(self):
        model = tiny_classifier(dropout=0.5)
        model.train()
        model.network.stage1.eval()
        modes = [module.training for module in model.modules()]
        state = {name: value.clone() for name, value in model.state_dict().items()}
        random_state = torch.get_rng_state()
        costs(model.network)
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random_state)
        assert not any(module._forward_hooks for module in model.modules())


class TestPrinted:
    def test_table_holds_the_totals(self, capsys, tmp_path):
        text = printed(capsys, tmp_path)
        network = networks.HighPerformanceSqueezeNext(stages=[1, 1, 1, 1], width=0.1)
        for part in costs(network).parts:
            (line,) = (line for line in text.splitlines() if line.split()[:1] == [part.name])
            assert line.split()[-2:] == [f"{part.parameters:,}", f"{part.macs:,}"]
        (total,) = (line for line in text.splitlines() if line.split()[:1] == ["total"])
        assert total.split()[-2:] == [f"{count_parameters(network):,}", f"{count_macs(network):,}"]
        assert f"state dict {state_dict_bytes(network) / 1e3:,.1f} kB" in text
        assert f"module {module_bytes(network) / 1e6:,.3f} MB" in text

    def test_any_network_is_trained(self, capsys, tmp_path):
        text = printed(capsys, tmp_path, ImageClassifier(Unusual(), 10))
        assert "recurrent" in text
        assert "kB\n" in text, "without the size of the module"

    def test_says_what_is_trained_and_how(self, capsys, tmp_path):
        model = tiny_classifier(
            optimizer={"class_path": "AdamW", "init_args": {"lr": 0.02}},
            lr_scheduler={"class_path": "StepLR", "init_args": {"step_size": 7}},
        )
        text = printed(capsys, tmp_path, model)
        assert "HPSClassifier(num_classes=10, stages=[1, 1, 1, 1], width=0.1" in text
        assert "Tiny-10, 10 classes, protocol holdout, 16 training images, 12 validation images" in text
        assert "AdamW with rate 0.02, schedule StepLR(step_size=7), 1 epoch\n" in text
        assert f"cpu, precision 32-true, kernels {model.kernels}\n" in text

    def test_says_which_kernels_train(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setenv("HPS_EAGER", "1")
        text = printed(capsys, tmp_path, precision="bf16-mixed")
        assert "cpu, precision bf16-mixed, kernels PyTorch's (HPS_EAGER is set)\n" in text

    def test_weight_decay_is_part_of_the_training_not_of_the_name(self, capsys, tmp_path):
        assert "decay" not in printed(capsys, tmp_path, tiny_classifier(decay_norm_and_bias=False))

    def test_names_the_constructor_s_rate_not_the_schedule_s(self, capsys, tmp_path):
        text = printed(capsys, tmp_path, tiny_classifier(lr_scheduler={"class_path": "OneCycleLR"}))
        assert "SGD with rate 0.1, schedule OneCycleLR()" in text

    @pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
    def test_without_validation(self, capsys, tmp_path):
        assert "16 training images, no validation\n" in printed(capsys, tmp_path, data=TinyData(protocol="full"))

    # That is what is tested.
    @pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
    def test_without_a_data_module(self, capsys, tmp_path):
        quiet_trainer(tmp_path, callbacks=[Summary()], logger=False, max_epochs=1).fit(
            tiny_classifier(), TinyData().train_dataloader()
        )
        assert "no data module" in capsys.readouterr().out

    def test_a_narrow_screen_cuts_nothing_off(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setenv("COLUMNS", "40")
        text = printed(capsys, tmp_path)
        assert "…" not in text
        assert "Tiny-10, 10 classes, protocol holdout, 16 training images, 12 validation images\n" in text

    def test_changes_nothing_in_the_training(self, tmp_path):
        def trained(callbacks):
            model = tiny_classifier(dropout=0.5)
            quiet_trainer(tmp_path, callbacks=callbacks, logger=False).fit(model, TinyData())
            return model.state_dict()

        plain, watched = trained([]), trained([Summary()])
        assert all(torch.equal(plain[name], watched[name]) for name in plain)

    def test_keeps_the_layout(self, capsys, tmp_path):
        model = tiny_classifier()
        printed(capsys, tmp_path, model)
        convolution = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
