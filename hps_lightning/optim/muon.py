"""Muon: momentum whose update of each convolution is made orthogonal (Jordan et al., 2024).

Source: K. Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024. A gradient
of a small network has a few directions that outweigh all others; an orthogonal update moves
along each of them equally, so that the weak ones are learned in fewer steps.
pytorch_optimizer's needs its parameters in groups that no config can name, and takes each matrix
by itself; here those of one shape are taken together, which is faster where matrices are small.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from hps_lightning.engine import Replayed, eager

# The quintic whose iteration brings singular values near 1 in the fewest steps, from the source.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)

# Of a matrix of norm 1, what is 0 to the iteration: it multiplies by 484 at most. The momentum of a channel that died
# shrinks to subnormal numbers and stays there, since rounding holds them up; Intel's processors multiply those so
# slowly that an update took six times as long.
_NEGLIGIBLE = 1e-12


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Brings the singular values of each matrix near 1 (0.7 to 1.2) by a Newton-Schulz iteration.

    Args:
        matrices: B x M x N, float32.
        steps: of the iteration.

    Returns:
        Matrices of the same shape and singular vectors.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = F.hardshrink(x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7), _NEGLIGIBLE)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _orthogonal_updates(matrices: list[Tensor], steps: int) -> list[Tensor]:
    """Makes each matrix orthogonal, those of one shape together, at a size that suits its layer."""
    results: list[Any] = [None] * len(matrices)
    same_shape = defaultdict(list)
    for position, matrix in enumerate(matrices):
        same_shape[matrix.shape].append(position)
    for (rows, columns), positions in same_shape.items():
        # Keeps the size of what comes out of a layer independent of how much wider than its input it is.
        scale = max(1.0, rows / columns) ** 0.5
        updates = orthogonalise(torch.stack([matrices[position] for position in positions]), steps) * scale
        # In rows, as the weights are seen, so that all can be added at once.
        updates = updates.contiguous()
        for position, update in zip(positions, updates.unbind(), strict=True):
            results[position] = update
    return results


def _in_order(tensor: Tensor, weight: Tensor) -> Tensor:
    """A convolution's weight, or what belongs to it, O x I x H x W, with its axes in the order in which weights lie.

    The order of a matrix's columns means nothing to what is orthogonal; memory that is read as it lies is read fast.
    """
    return tensor.permute(0, 2, 3, 1) if weight.is_contiguous(memory_format=torch.channels_last) else tensor


class MuonWithAuxAdam(Optimizer):
    """Muon for the weights of convolutions, Adam for all other parameters: the source's name for the pair.

    Args:
        params: parameters or groups of them; those of four dimensions are convolutions'.
        lr: learning rate of the convolutions, the spectral norm of an update of square weights.
        momentum: share of the last update that is kept; looks ahead, as Nesterov's does.
        weight_decay: decoupled, of the convolutions' weights alone.
        steps: of the iteration that orthogonalises.
        other_lr: learning rate of the other parameters over that of the convolutions.
        betas: of Adam.
        eps: of Adam.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        steps: int = 5,
        other_lr: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        for name, value, least, below in (
            ("lr", lr, 0, float("inf")),
            ("momentum", momentum, 0, 1),
            ("weight_decay", weight_decay, 0, float("inf")),
            ("steps", steps, 1, float("inf")),
            ("other_lr", other_lr, 0, float("inf")),
            ("betas", min(betas), 0, 1),
            ("betas", max(betas), 0, 1),
            ("eps", eps, 0, float("inf")),
        ):
            if not least <= value < below:
                raise ValueError(f"{name} must be at least {least} and less than {below}, got {value!r}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "steps": steps,
            "other_lr": other_lr,
            "betas": tuple(betas),
            "eps": eps,
        }
        super().__init__(params, defaults)
        # By a group's position and its iteration's steps; on a GPU, where these are hundreds of short kernels.
        self._replayed: dict[tuple[int, int], Replayed] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates all parameters that have gradients; returns what ``closure`` does, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for position, group in enumerate(self.param_groups):
            with_gradients = [parameter for parameter in group["params"] if parameter.grad is not None]
            self._update_convolutions([p for p in with_gradients if p.ndim == 4], group, position)
            self._update_others([p for p in with_gradients if p.ndim != 4], group)
        return loss

    def _update_convolutions(self, weights: list[Tensor], group: dict[str, Any], position: int) -> None:
        if not weights:
            return
        gradients = [_in_order(weight.grad, weight).flatten(1) for weight in weights]
        # What changes has to be a view.
        momenta = [_in_order(self._buffer(weight, "momentum"), weight).view(len(weight), -1) for weight in weights]
        matrices = [_in_order(weight, weight).view(len(weight), -1) for weight in weights]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        ahead = torch._foreach_add(gradients, momenta, alpha=group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        update = partial(_orthogonal_updates, steps=group["steps"])
        if ahead[0].device.type == "cuda" and not eager():
            update = self._replayed.setdefault((position, group["steps"]), Replayed(update))
        torch._foreach_add_(matrices, update(ahead), alpha=-group["lr"])

    def _update_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        beta1, beta2 = group["betas"]
        taken = [self._count_step(parameter, group) for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters]
        means = [self._buffer(parameter, "mean") for parameter in parameters]
        squares = [self._buffer(parameter, "square") for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        sizes = torch._foreach_sqrt(squares)
        torch._foreach_div_(sizes, [(1 - beta2**steps) ** 0.5 for steps in taken])
        torch._foreach_add_(sizes, group["eps"])
        rate = group["lr"] * group["other_lr"]
        torch._foreach_addcdiv_(parameters, means, sizes, [-rate / (1 - beta1**steps) for steps in taken])

    def __getstate__(self) -> dict[str, Any]:
        """As torch's, without graphs, which no file and no copy can hold."""
        return {**super().__getstate__(), "_replayed": {}}

    def _count_step(self, parameter: Tensor, group: dict[str, Any]) -> int:
        """One more step of a parameter; each has its own number, as one that was frozen at first begins later."""
        state = self.state[parameter]
        # Checkpoints of earlier versions have the group's.
        before = state.get("steps", group.get("other_steps", 0) if state else 0)
        state["steps"] = before + 1
        return state["steps"]

    def _buffer(self, parameter: Tensor, name: str) -> Tensor:
        state = self.state[parameter]
        kept = state.get(name)
        if kept is None:
            state[name] = torch.zeros_like(parameter)
        elif kept.stride() != parameter.stride():
            # From a checkpoint whose weights lay in another order.
            state[name] = torch.empty_like(parameter).copy_(kept)
        return state[name]
