from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from hps_lightning.data import ImageDataModule, datamodule
from hps_lightning.errors import UserError
from tests.data.made_cifar import made_dataset


@pytest.fixture
def read(monkeypatch):
    """The splits that were read so far."""
    splits = []
    original = datamodule.load_images

    def load(dataset, split, *rest):
        splits.append(split)
        return original(dataset, split, *rest)

    monkeypatch.setattr(datamodule, "load_images", load)
    return splits


@pytest.mark.parametrize(
    ("protocol", "splits"), [("holdout", ["train"]), ("full", ["train"]), ("paper", ["test", "train"])]
)
def test_only_the_papers_protocol_looks_at_the_test_images_before_the_test(read, protocol, splits):
    data = ImageDataModule("digits", protocol=protocol)
    data.setup("fit")
    assert read == splits
    data.setup("test")
    assert read == [*splits, "test"]


def test_one_that_has_images_to_classify_tests_as_well(read, tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (40, 40)).save(path)
    data = ImageDataModule("digits", images=[str(path)])
    data.setup("predict")
    assert read == []
    data.setup("test")
    assert len(data.test_dataloader()) == 1


# What a data module asks of a trainer.
ON_ONE_CPU = {
    "global_rank": 0,
    "world_size": 1,
    "overfit_batches": 0,
    "strategy": SimpleNamespace(root_device=torch.device("cpu")),
}


def test_the_holdout_and_what_trains_are_all_training_images(read):
    everything = datamodule.load_images("digits", "train").images
    data = ImageDataModule("digits", protocol="holdout", val_fraction=0.25)
    data.setup("fit")
    assert len(data.train_set) + len(data.val_set) == len(everything)
    assert len(data.val_set) == pytest.approx(0.25 * len(everything), abs=len(data.info.classes))
    both = torch.cat([data.train_set.images, data.val_set.images]).flatten(1)
    assert torch.equal(*(images.unique(dim=0) for images in (both, everything.flatten(1))))


def test_under_full_nothing_validates(read):
    data = ImageDataModule("digits", protocol="full")
    data.setup("fit")
    assert not data.validates
    assert data.val_dataloader() == []
    with pytest.raises(UserError, match="'full' has no validation images"):
        ImageDataModule("digits", protocol="full").setup("validate")


def test_nothing_is_augmented_but_what_trains():
    data = ImageDataModule("digits", batch_size=64, eval_batch_size=50)
    data.setup("fit")
    data.setup("test")
    for loader in (data.val_dataloader(), data.test_dataloader()):
        first, again = (next(iter(loader)) for _ in range(2))
        assert len(first[0]) == 50
        assert torch.equal(first[0], again[0])
    loader = data.train_dataloader()
    images = torch.cat([images for images, _ in loader])
    loader.sampler.set_epoch(1)
    later = torch.cat([images for images, _ in loader])
    assert images.shape == later.shape
    assert not torch.equal(*(batch.flatten(1).sum(1).sort().values for batch in (images, later)))


def test_an_evaluation_leaves_a_training_after_it_no_epoch_to_go_on_in():
    data = ImageDataModule("digits", batch_size=64)
    data.setup("fit")
    batches = len(data.train_dataloader())
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn="validate"), **ON_ONE_CPU)
    data.load_state_dict({"epoch": 0, "batches": 3, "batch_size": 64})
    assert len(list(data.train_dataloader())) == batches
    data.trainer.state.fn = "fit"
    data.load_state_dict({"epoch": 0, "batches": 3, "batch_size": 64})
    assert len(list(data.train_dataloader())) == batches - 3


@pytest.mark.parametrize(
    ("given", "seed", "message"),
    [
        ({"split_seed": 1}, "3", "data.split_seed 1, in another order; leave data.split_seed at 0"),
        ({"val_fraction": 0.2}, "3", "leave data.val_fraction at 0.1"),
        ({"protocol": "full"}, "3", "data.protocol full, in another order; leave data.protocol at holdout"),
        ({}, "4", "leave seed_everything at 3"),
        ({"eval_batch_size": 7}, "3", None),
    ],
    ids=str,
)
def test_an_epoch_goes_on_with_its_own_images_in_their_order(monkeypatch, given, seed, message):
    def prepared(**arguments):
        data = ImageDataModule("digits", batch_size=64, **arguments)
        data.setup("fit")
        epochs = SimpleNamespace(current=SimpleNamespace(processed=2, completed=2, ready=3))
        # Amid the fifth batch of an epoch.
        batches = SimpleNamespace(current=SimpleNamespace(processed=4, completed=4, ready=5))
        loop = SimpleNamespace(epoch_progress=epochs, epoch_loop=SimpleNamespace(batch_progress=batches))
        data.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), fit_loop=loop, **ON_ONE_CPU)
        return data

    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    state = prepared().state_dict()
    assert (state["epoch"], state["batches"], state["batch_size"]) == (2, 4, 64)
    old = {name: state[name] for name in ("epoch", "batches", "batch_size")}
    between = {**state, "batches": 0}
    monkeypatch.setenv("PL_GLOBAL_SEED", seed)
    data = prepared(**given)
    for other in (old, between):
        data.load_state_dict(other)
        assert next(iter(data.train_dataloader()))
    data.load_state_dict(state)
    if message is None:
        assert next(iter(data.train_dataloader()))
    else:
        with pytest.raises(UserError, match=message):
            data.train_dataloader()


def test_batches_of_more_than_all_images_are_refused_after_a_validation_too():
    data = ImageDataModule("digits", batch_size=2000)
    data.setup("validate")
    with pytest.raises(UserError, match=r"data\.batch_size 2000 is more than"):
        data.setup("fit")


def test_overfitting_some_batches_is_refused_with_the_way_out():
    data = ImageDataModule("digits")
    with pytest.raises(UserError, match=r"overfit_batches 2.*limit_train_batches"):
        data.check_trainer(Trainer(accelerator="cpu", overfit_batches=2, logger=False, enable_checkpointing=False))


@pytest.mark.parametrize(("batch_size", "processes", "sizes"), [(3, 4, "4"), (128, 3, "126 or 129"), (5, 2, "4 or 6")])
def test_a_batch_is_shared_alike(batch_size, processes, sizes):
    data = ImageDataModule("digits", batch_size=batch_size)
    with pytest.raises(
        UserError, match=rf"^data\.batch_size {batch_size} cannot .* {processes} pro.*; take {sizes}\.$"
    ):
        data.check_trainer(SimpleNamespace(world_size=processes, overfit_batches=0))
    for size in sizes.split(" or "):
        ImageDataModule("digits", batch_size=int(size)).check_trainer(
            SimpleNamespace(world_size=processes, overfit_batches=0)
        )


def test_each_process_evaluates_an_image_of_each_batch():
    data = ImageDataModule("digits", eval_batch_size=3)
    processes = SimpleNamespace(world_size=4, overfit_batches=0)
    with pytest.raises(UserError, match=r"^data\.eval_batch_size 3 leaves some of 4 processes .*; take at least 4\.$"):
        data.check_trainer(processes)
    data.setup("test")
    data.trainer = processes
    with pytest.raises(UserError, match=r"^data\.eval_batch_size 3 "):
        data.test_dataloader()
    ImageDataModule("digits", eval_batch_size=4).check_trainer(processes)


def test_a_data_set_of_ones_own_is_read_by_its_own_description(tmp_path):
    made = made_dataset()
    root = made.write_parquet(tmp_path / "root")
    info = replace(made.info, name="mine", mean=(0.1, 0.2, 0.3))
    data = ImageDataModule(info, root=root, protocol="full", batch_size=4)
    data.setup("fit")
    assert torch.equal(data.train_set.images, torch.from_numpy(made.images["train"]))
    # Of CIFAR's archive others have none.
    data = ImageDataModule(replace(info, archive=None), root=root, protocol="full", batch_size=4)
    data.setup("fit")
    assert torch.equal(data.train_set.images, torch.from_numpy(made.images["train"]))
    with pytest.raises(UserError, match="description of CIFAR-10 has no `hub`"):
        ImageDataModule(replace(info, hub=None), root=root).setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "none"}, "data.protocol must be one of holdout, full, paper, got 'none'"),
        ({"batch_size": 0}, "data.batch_size must be at least 1, got 0"),
        ({"eval_batch_size": 0}, "data.eval_batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "data.num_workers must be at least 0, got -1"),
        ({"num_workers": 10**6}, "data.num_workers must be at most"),
        ({"split_seed": -1}, "data.split_seed must lie between 0"),
    ],
)
def test_mistakes_are_the_users(arguments, message):
    with pytest.raises(UserError, match=message):
        ImageDataModule("digits", **arguments)
