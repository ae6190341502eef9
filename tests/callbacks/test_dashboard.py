import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from torch import nn

from hps_lightning.callbacks import dashboard
from hps_lightning.callbacks.dashboard import (
    Dashboard,
    confusion_figure,
    samples_figure,
    superclass_counts,
)
from hps_lightning.errors import UserError
from hps_lightning.modules import ImageClassifier

from .helpers import LIGHTNING_WARNINGS, TinyData, events, quiet_trainer, tiny_classifier

pytestmark = LIGHTNING_WARNINGS


def hparams_content(accumulator, tag):
    return accumulator.SummaryMetadata(tag).plugin_data.content


def predicted_counts(model, images, labels, num_classes):
    with torch.no_grad():
        predicted = model.eval()(images).argmax(1)
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for true, guess in zip(labels.tolist(), predicted.tolist(), strict=True):
        counts[true, guess] += 1
    return counts


@pytest.fixture
def drawn(monkeypatch):
    """The counts and titles of all confusion matrices that are drawn."""
    calls = []

    def draw(counts, names, title):
        calls.append((counts, list(names), title))
        return confusion_figure(counts, names, title)

    monkeypatch.setattr(dashboard, "confusion_figure", draw)
    return calls


class TestFit:
    def test_writes_graph_images_and_best_metrics(self, tmp_path):
        trainer = quiet_trainer(tmp_path, callbacks=[Dashboard()])
        trainer.fit(tiny_classifier(), TinyData())
        written = events(trainer)
        names = {node.name for node in written.Graph().node}
        assert any("stem" in name for name in names)
        assert any("classifier" in name for name in names)
        assert set(written.Tags()["images"]) == {"val/confusion", "val/samples"}
        accuracies = [event.value for event in written.Scalars("val/accuracy")]
        assert len(accuracies) == 2
        assert written.Scalars("best/val_accuracy")[-1].value == max(accuracies)
        assert written.Scalars("best/epoch")[-1].value == 1 + accuracies.index(max(accuracies))
        best_loss = written.Scalars("val/loss")[accuracies.index(max(accuracies))].value
        assert written.Scalars("best/val_loss")[-1].value == pytest.approx(best_loss)

    def test_writes_hyperparameters_once(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PL_GLOBAL_SEED", "7")
        model = tiny_classifier(
            optimizer={"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01, "betas": [0.8, 0.9]}},
            lr_scheduler={"class_path": "CosineAnnealingLR", "init_args": {"eta_min": 0.001}},
            label_smoothing=0.1,
        )
        trainer = quiet_trainer(tmp_path, callbacks=[Dashboard(samples=4, graph=False)])
        trainer.fit(model, TinyData())
        written = events(trainer)
        # An "experiment" of one run would hide what only other runs have.
        assert set(written.PluginTagToContent(metadata.PLUGIN_NAME)) == {
            metadata.SESSION_START_INFO_TAG,
            metadata.SESSION_END_INFO_TAG,
        }
        start = metadata.parse_session_start_info_plugin_data(hparams_content(written, metadata.SESSION_START_INFO_TAG))
        values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
        assert values == {
            "model": "HPSClassifier",
            "model/num_classes": 10,
            "model/stages": "1, 1, 1, 1",
            "model/width": 0.1,
            "model/resolution": 1,
            "model/activation": "relu",
            "model/dropout": 0,
            "model/inplace": True,
            "model/skip_unread": False,
            "model/label_smoothing": 0.1,
            "model/decay_norm_and_bias": True,
            "optimizer": "Adam",
            "optimizer/lr": 0.01,
            "optimizer/betas": "0.8, 0.9",
            "lr_scheduler": "CosineAnnealingLR",
            "lr_scheduler/eta_min": 0.001,
            "epochs": 2,
            "precision": "32-true",
            "seed": 7,
            "dataset": "tiny",
            "protocol": "holdout",
            "batch_size": 8,
            "augmentation/crop_padding": 4,
            "augmentation/padding_mode": "constant",
            "augmentation/flip": True,
            "augmentation/cutout": 4,
        }
        end = metadata.parse_session_end_info_plugin_data(hparams_content(written, metadata.SESSION_END_INFO_TAG))
        assert end.status == STATUS_SUCCESS
        runs = [path.parent for path in tmp_path.rglob("events.out.tfevents.*")]
        assert len(set(runs)) == 1

    def test_names_the_defaults(self, tmp_path, monkeypatch):
        monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
        trainer = quiet_trainer(tmp_path, callbacks=[Dashboard(samples=4, graph=False)])
        trainer.fit(tiny_classifier(), TinyData())
        start = metadata.parse_session_start_info_plugin_data(
            hparams_content(events(trainer), metadata.SESSION_START_INFO_TAG)
        )
        assert start.hparams["optimizer"].string_value == "SGD"
        assert start.hparams["optimizer/lr"].number_value == 0.1
        assert start.hparams["lr_scheduler"].string_value == "constant"
        assert "seed" not in start.hparams

    def test_changes_nothing_in_the_training(self, tmp_path):
        def trained(callbacks):
            model = tiny_classifier(dropout=0.5)
            quiet_trainer(tmp_path, callbacks=callbacks).fit(model, TinyData())
            return model.state_dict()

        plain, watched = trained([]), trained([Dashboard()])
        assert all(torch.equal(plain[name], watched[name]) for name in plain)

    def test_graph_leaves_network_and_random_state_alone(self, tmp_path):
        model = tiny_classifier(dropout=0.5)
        model.train()
        model.network.stage1.eval()
        modes = [module.training for module in model.modules()]
        state = {name: value.clone() for name, value in model.state_dict().items()}
        random_state = torch.get_rng_state()
        trainer = quiet_trainer(tmp_path)
        dashboard._write_graph(trainer.logger, model)
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random_state)
        convolution = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
        trainer.logger.save()
        assert events(trainer).Graph().node

    def test_draws_the_last_validation_alone(self, tmp_path, drawn):
        model, data = tiny_classifier(), TinyData()
        quiet_trainer(tmp_path, callbacks=[Dashboard(samples=4, graph=False)]).fit(model, data)
        ((counts, names, title),) = drawn
        assert torch.equal(counts, predicted_counts(model, *data.val_set.tensors, 10))
        assert names == list(data.info.classes)
        right = int(counts.diagonal().sum())
        assert title == f"Tiny-10, validation images: {right} of 12 right ({100 * right / 12:.2f} %)"

    def test_ignores_the_sanity_check(self, tmp_path):
        trainer = quiet_trainer(
            tmp_path, callbacks=[Dashboard(samples=4, graph=False)], max_epochs=1, check_val_every_n_epoch=2
        )
        trainer.fit(tiny_classifier(), TinyData())
        tags = events(trainer).Tags()
        assert tags["images"] == []
        assert not any(tag.startswith("best/") for tag in tags["scalars"])

    # What stands for no validation in the data module.
    @pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
    def test_draws_nothing_without_validation(self, tmp_path):
        trainer = quiet_trainer(tmp_path, callbacks=[Dashboard(samples=4, graph=False)])
        trainer.fit(tiny_classifier(), TinyData(protocol="full"))
        assert events(trainer).Tags()["images"] == []

    def test_graph_and_samples_can_be_switched_off(self, tmp_path):
        trainer = quiet_trainer(tmp_path, callbacks=[Dashboard(samples=0, graph=False)])
        trainer.fit(tiny_classifier(), TinyData())
        tags = events(trainer).Tags()
        assert tags["images"] == ["val/confusion"]
        assert not tags["graph"]

    def test_resuming_keeps_the_best(self, tmp_path):
        checkpoints = ModelCheckpoint(dirpath=tmp_path / "checkpoints", save_last=True)
        trainer = quiet_trainer(
            tmp_path, callbacks=[Dashboard(graph=False), checkpoints], enable_checkpointing=True, max_epochs=1
        )
        trainer.fit(tiny_classifier(), TinyData())
        resumed = Dashboard(graph=False)
        trainer = quiet_trainer(
            tmp_path, callbacks=[resumed, ModelCheckpoint(dirpath=tmp_path / "more")], enable_checkpointing=True
        )
        content = torch.load(checkpoints.last_model_path, weights_only=True)
        content["callbacks"]["Dashboard"]["best"] = {"accuracy": 2.0, "loss": 0.5, "epoch": 1}
        path = tmp_path / "resumed.ckpt"
        torch.save(content, path)
        with pytest.warns(UserWarning, match="dirpath has changed"):
            trainer.fit(tiny_classifier(), TinyData(), ckpt_path=path)
        assert resumed.state_dict() == {"best": {"accuracy": 2.0, "loss": 0.5, "epoch": 1}}
        assert "best/val_accuracy" not in events(trainer).Tags()["scalars"]


class TestEvaluation:
    def test_draws_the_test(self, tmp_path, drawn):
        model, data = tiny_classifier(100), TinyData(100)
        trainer = quiet_trainer(tmp_path, callbacks=[Dashboard(samples=4, graph=False)])
        trainer.test(model, data, verbose=False)
        assert set(events(trainer).Tags()["images"]) == {
            "test/confusion",
            "test/confusion_superclasses",
            "test/samples",
        }
        (counts, _, _), (grouped, names, title) = drawn
        assert torch.equal(counts, predicted_counts(model, *data.test_set.tensors, 100))
        assert torch.equal(grouped, superclass_counts(counts, data.info.superclass_of))
        assert names == list(data.info.superclasses)
        assert title.startswith("Tiny-10, test images, superclasses: ")

    def test_draws_a_validation_of_its_own(self, tmp_path):
        trainer = quiet_trainer(tmp_path, callbacks=[Dashboard(samples=4, graph=False)])
        trainer.validate(tiny_classifier(), TinyData(), verbose=False)
        assert set(events(trainer).Tags()["images"]) == {"val/confusion", "val/samples"}

    def test_shows_the_first_images_denormalised(self, tmp_path, monkeypatch):
        shown = []

        def draw(images, labels, probabilities, names, title):
            shown.append((images, labels, probabilities))
            assert title == "Tiny-10, test images, the first 7"
            return samples_figure(images, labels, probabilities, names, title)

        monkeypatch.setattr(dashboard, "samples_figure", draw)
        model, data = tiny_classifier(), TinyData()
        quiet_trainer(tmp_path, callbacks=[Dashboard(samples=7)]).test(model, data, verbose=False)
        ((images, labels, probabilities),) = shown
        expected, expected_labels = data.test_set[:7]
        mean, std = torch.tensor(data.info.mean), torch.tensor(data.info.std)
        torch.testing.assert_close(images, (expected * std[:, None, None] + mean[:, None, None]).clamp(0, 1))
        assert torch.equal(labels, expected_labels)
        with torch.no_grad():
            torch.testing.assert_close(probabilities, model.eval()(expected).softmax(1), rtol=1e-4, atol=1e-6)

    def test_says_whose_images_are_the_first_of_several_processes(self, monkeypatch):
        titles = []
        monkeypatch.setattr(dashboard, "samples_figure", lambda *arguments: titles.append(arguments[-1]))
        evaluation = dashboard._Evaluation(2, torch.device("cpu"), samples=3)
        evaluation.update(torch.zeros(4, 3, 32, 32), torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 1, 0]))
        for processes in (1, 2):
            dashboard._figures(evaluation, evaluation.counts(), None, "val", processes)
        assert titles == ["validation images, the first 3", "validation images, the first process's first 3"]

    def test_keeps_few_images_and_frees_them(self, tmp_path):
        class Watch(Callback):
            sizes = ()

            def on_test_epoch_end(self, trainer, pl_module):
                kept = callback._evaluation
                self.sizes = (
                    tuple(len(tensor) for tensor in (kept.images, kept.probabilities, kept.labels)),
                    kept.images.untyped_storage().nbytes(),
                )

        callback, watch = Dashboard(samples=3), Watch()
        quiet_trainer(tmp_path, callbacks=[callback, watch]).test(tiny_classifier(), TinyData(), verbose=False)
        assert watch.sizes == ((3, 3, 3), 3 * 3 * 32 * 32 * 4)
        assert callback._evaluation is None

    @pytest.mark.parametrize("logger", [False, "csv"])
    def test_does_nothing_without_tensorboard(self, tmp_path, drawn, logger):
        logger = CSVLogger(tmp_path) if logger == "csv" else False
        trainer = quiet_trainer(tmp_path, callbacks=[Dashboard(samples=4, graph=False)], logger=logger)
        trainer.fit(tiny_classifier(), TinyData())
        trainer.test(tiny_classifier(), TinyData(), verbose=False)
        assert drawn == []
        assert not list(tmp_path.rglob("events.out.tfevents.*"))

    def test_works_without_a_data_module_of_ours(self, tmp_path):
        data = TinyData()
        trainer = quiet_trainer(tmp_path, callbacks=[Dashboard(samples=4, graph=False)])
        trainer.fit(tiny_classifier(), data.train_dataloader(), data.val_dataloader())
        assert set(events(trainer).Tags()["images"]) == {"val/confusion", "val/samples"}


@pytest.mark.parametrize("samples", [-1, 101])
def test_no_picture_can_show_as_many_samples(samples):
    with pytest.raises(UserError, match=rf"samples.*{samples}"):
        Dashboard(samples=samples)


class Traced(nn.Module):
    """A network that the tracer warns of."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, images):
        pooled = images.mean((2, 3))
        return self.linear(pooled) if bool(pooled.sum() < 1) else pooled


class Untraceable(Traced):
    def forward(self, images):
        if torch.jit.is_tracing():
            raise TypeError("no tracing")
        return super().forward(images)


def test_tracing_says_nothing(tmp_path, capsys):
    trainer = quiet_trainer(tmp_path)
    capsys.readouterr()
    dashboard._write_graph(trainer.logger, ImageClassifier(Traced(), 2))
    assert capsys.readouterr() == ("", "")
    trainer.logger.save()
    assert any("linear" in node.name for node in events(trainer).Graph().node)


def test_graph_never_costs_a_training(tmp_path):
    trainer = quiet_trainer(tmp_path)
    with pytest.warns(UserWarning, match="cannot be traced: no tracing"):
        dashboard._write_graph(trainer.logger, ImageClassifier(Untraceable(), 2))
