"""What torchmetrics lacks: a mean over images that neither hides NaN nor waits for the GPU."""

import torch
from torch import Tensor
from torchmetrics import Metric


class ImageMean(Metric):
    """Mean over images of a value that each batch gives as its own mean.

    torchmetrics' ``MeanMetric`` leaves NaN out with a look at every value, for which a GPU has to
    be waited for; told not to look, it forgets the weights (1.9).
    """

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        # Whole numbers stay whole where Lightning turns a module to half precision, in which 257 is none.
        self.add_state("images", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, mean: Tensor, images: int) -> None:
        """Adds a batch.

        Args:
            mean: over the batch, a scalar.
            images: number of images in it.
        """
        # Not in place: `Trainer.validate` leaves tensors of inference mode, which a training afterwards may not change.
        self.total = self.total.float() + mean.float() * images
        self.images = self.images + images

    def compute(self) -> Tensor:
        """The mean over all images so far, a scalar."""
        return self.total / self.images
