import pytest
import torch
from torch.utils.data import DataLoader

from hps_lightning.data.augmentation import Augmentation
from hps_lightning.data.batches import BatchKey, BatchSampler, ImageBatches, normalise
from hps_lightning.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def _batches(count=20, **arguments):
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageBatches(images, torch.arange(count), count, MEAN, STD, **arguments)


def _epoch(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return list(sampler)


def _order(sampler, epoch=0):
    return torch.cat([key.indices for key in _epoch(sampler, epoch)]).tolist()


def _seeds(sampler, epoch=0):
    return [key.seed for key in _epoch(sampler, epoch)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 10, 2], "Image 2 has the label 10; the network tells classes 0 to 9 apart"),
        ([0, -1, 1, 2], "Image 1 has the label -1"),
        ([0, 1], "has 4 images, but 2 labels"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message):
    with pytest.raises(UserError, match=message):
        ImageBatches(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor(labels), 10, MEAN, STD)


def test_a_data_set_without_images_is_refused():
    with pytest.raises(UserError, match="no images"):
        ImageBatches(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), 10, MEAN, STD)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("size", "batch_size"), [(20, 6), (20, 5), (3, 8), (1, 1)])
def test_each_image_comes_once_an_epoch(size, batch_size, shuffle):
    sampler = BatchSampler(size, batch_size, shuffle)
    for epoch in range(3):
        sizes = [len(key.indices) for key in _epoch(sampler, epoch)]
        full, rest = divmod(size, batch_size)
        assert sizes == [batch_size] * full + ([rest] if rest else [])
        assert len(sampler) == len(sizes)
        assert sorted(_order(sampler, epoch)) == list(range(size))


def test_without_shuffling_the_order_is_the_images_own():
    assert _order(BatchSampler(20, 6, shuffle=False), epoch=3) == list(range(20))


def test_order_and_seeds_come_from_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = BatchSampler(50, 7, shuffle=True, seed=3)
    # Epochs asked for out of turn, as after resuming.
    ahead = _order(first, 5), _seeds(first, 5)
    torch.manual_seed(2)
    second = BatchSampler(50, 7, shuffle=True, seed=3)
    for epoch in range(6):
        order, seeds = _order(second, epoch), _seeds(second, epoch)
        assert (order, seeds) == (_order(second, epoch), _seeds(second, epoch))
    assert (order, seeds) == ahead


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    _epoch(BatchSampler(20, 6, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_and_seeds_differ():
    orders, seeds = set(), []
    for seed in range(4):
        for epoch in range(4):
            sampler = BatchSampler(50, 7, shuffle=True, seed=seed)
            orders.add(tuple(_order(sampler, epoch)))
            seeds += _seeds(sampler, epoch)
    assert len(orders) == 16
    assert len(set(seeds)) == len(seeds)


# Lightning's seed_everything takes and draws seeds up to 2**32 - 1.
@pytest.mark.parametrize("seed", [0, 2**31, 2**32 - 1])
def test_any_seed_of_lightning_is_taken(seed):
    sampler = BatchSampler(10, 4, shuffle=True, seed=seed)
    assert sorted(_order(sampler, epoch=1000)) == list(range(10))


def test_a_training_goes_on_in_the_middle_of_an_epoch_and_later_ones_are_whole():
    whole = BatchSampler(20, 6, shuffle=True, seed=3)
    epoch, later = _epoch(whole, 2), _epoch(whole, 3)
    resumed = BatchSampler(20, 6, shuffle=True, seed=3)
    resumed.resume(2, 1)
    # Before anybody tells it the epoch, as workers fetch.
    keys = list(resumed)
    assert len(resumed) == 4
    assert [key.seed for key in keys] == [key.seed for key in epoch[1:]]
    assert all(torch.equal(key.indices, other.indices) for key, other in zip(keys, epoch[1:], strict=True))
    assert _seeds(resumed, 3) == [key.seed for key in later]


# Workers are forked, which Python 3.12 and later warn about in a process that runs threads, as torch's does.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_batches_are_the_same_whatever_the_number_of_workers():
    def load(num_workers):
        sampler = BatchSampler(20, 6, shuffle=True, seed=1)
        batches = _batches(augmentation=Augmentation(cutout=3, random_erasing=0.5, mixup=1.0))
        loader = DataLoader(batches, batch_size=None, sampler=sampler, num_workers=num_workers)
        loaded = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            loaded += [tensor for batch in loader for tensor in batch]
        return loaded

    alone = load(0)
    assert len(alone) == 2 * 4 * 2
    torch.testing.assert_close(load(2), alone, rtol=0, atol=0)
    # The second epoch is another one.
    assert not torch.equal(alone[0], alone[8])


def test_a_batch_holds_its_images_normalised_with_their_labels():
    batches = _batches()
    indices = torch.tensor([4, 0, 9])
    images, labels = batches[BatchKey(indices, seed=1)]
    assert labels.tolist() == [4, 0, 9]
    assert torch.equal(images, normalise(batches.images[indices], MEAN, STD))
    assert len(batches) == 20


def test_a_batch_is_augmented_with_its_own_seed():
    augmentation = Augmentation()
    batches = _batches(augmentation=augmentation)
    indices = torch.arange(20)
    first, _ = batches[BatchKey(indices, seed=1)]
    expected, _ = augmentation(batches.images, batches.labels, 20, 1)
    assert torch.equal(first, normalise(expected, MEAN, STD))
    assert not torch.equal(first, batches[BatchKey(indices, seed=2)][0])


def test_normalise_follows_the_plain_formula():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, -1, -1)
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    normal = normalise(images, MEAN, STD)
    assert normal.dtype == torch.float32
    assert normal.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(normal.double(), (images.double() / 255 - mean) / std, rtol=0, atol=2e-6)


def test_normalise_leaves_the_images_alone():
    images = _batches().images
    before = images.clone()
    normalise(images, MEAN, STD)
    assert torch.equal(images, before)


def test_normalised_with_its_own_statistics_a_set_has_mean_0_and_deviation_1():
    images = _batches().images
    scaled = images.double() / 255
    mean = tuple(scaled.mean((0, 2, 3)).tolist())
    std = tuple(scaled.std((0, 2, 3), correction=0).tolist())
    normal = normalise(images, mean, std).double()
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(normal.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(("size", "batch_size", "world_size"), [(20, 6, 2), (50, 8, 3), (16, 8, 2), (13, 4, 3)])
def test_processes_share_each_batch_of_one_process(size, batch_size, world_size):
    whole = [set(key.indices.tolist()) for key in _epoch(BatchSampler(size, batch_size, shuffle=True, seed=1), 2)]
    shares = [
        _epoch(BatchSampler(size, batch_size, shuffle=True, seed=1, rank=rank, world_size=world_size), 2)
        for rank in range(world_size)
    ]
    together = [[index for key in keys for index in key.indices.tolist()] for keys in zip(*shares, strict=True)]
    if len(whole) > len(together):  # a last batch too small to be shared joins the one before
        whole[-2:] = [whole[-2] | whole[-1]]
    assert [set(indices) for indices in together] == whole
    assert sum(map(len, together)) == size
    assert all(len(key.indices) for keys in shares for key in keys)
    assert all(len({key.seed for key in keys}) == world_size for keys in zip(*shares, strict=True))


def test_equal_shares_leave_out_what_cannot_be_shared():
    shares = [
        _epoch(BatchSampler(20, 7, shuffle=True, equal_shares=True, rank=rank, world_size=2)) for rank in range(2)
    ]
    assert [len(key.indices) for key in shares[0]] == [len(key.indices) for key in shares[1]] == [3, 3, 3]
    used = {index for keys in shares for key in keys for index in key.indices.tolist()}
    assert len(used) == 18
