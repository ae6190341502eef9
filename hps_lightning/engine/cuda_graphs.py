"""A training's passes as CUDA graphs: recorded once, then launched whole.

Small networks leave a GPU idle: launching their thousands of short kernels one by one takes the processor several
times as long as the GPU takes to run them.
"""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

# Before a recording, so that the libraries choose and load their kernels outside it.
_WARM_UP = 3


class Replayed:
    """A function of tensors on one GPU, replayed as a graph wherever it is given tensors of the same shapes again.

    Shapes that come twice in a row are recorded, in place of earlier ones. Gradients are not tracked, and what the
    function reads besides its arguments must stay where it lies.

    Args:
        function: of one list of tensors, to a list of tensors; it must not wait for the GPU.
    """

    def __init__(self, function: Callable[[list[Tensor]], list[Tensor]]) -> None:
        self._function = function
        self._recordings = _Recordings()

    @torch.no_grad()
    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """What the function makes of ``tensors``; to be used before the next call, which may write over it."""
        call = self._recordings.find([tensor.shape for tensor in tensors], lambda: _Call(self._function, tensors))
        if call is None:
            return self._function(tensors)
        torch._foreach_copy_(call.given, tensors)
        call.graph.replay()
        return call.results


class GraphedTraining:
    """A network whose forward and backward passes in training are replayed as CUDA graphs.

    The same kernels as without, on the same numbers. A batch of a shape that comes once only, such as the smaller last
    one of an epoch, runs kernel by kernel, as does whatever a graph cannot hold; what would change the recording (a
    frozen weight, another momentum of a batch norm) has it made anew.

    Gradients lie where the next backward pass writes: one step has one batch.

    Args:
        network: on a GPU, images of N x C x H x W to logits.

    Attributes:
        problem: why nothing can be recorded; empty if that is not known to be so.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.problem = ""
        self._modules = list(network.modules())
        self._weights = list(network.parameters())
        self._recordings = _Recordings()

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of a batch."""
        passes = self._recordings.find(self._key(images), lambda: self._record(images))
        if passes is None:
            return self.network(images)
        return _Replay.apply(passes, images, *passes.weights)

    def _key(self, images: Tensor) -> Any:
        """All that a recording depends on."""
        modules = [(module.training, getattr(module, "momentum", None)) for module in self._modules]
        weights = [(weight.data_ptr(), weight.requires_grad) for weight in self._weights]
        casts = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        return images.shape, images.dtype, casts, modules, weights

    def _record(self, images: Tensor) -> "_Passes | None":
        if self.problem or not self._recordable():
            return None
        try:
            return _Passes(self.network, images)
        except RuntimeError as error:
            self.problem = str(error).strip().splitlines()[0]
            rank_zero_warn(
                f"This training launches its kernels one by one, for no CUDA graph could be made: {self.problem}"
            )
            return None

    def _recordable(self) -> bool:
        return all(
            # Hooks would be called while it is recorded alone.
            not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
            # A cumulative average asks the GPU for the number of batches.
            and not (isinstance(module, nn.BatchNorm2d) and module.momentum is None)
            for module in self._modules
        )


class _Recordings:
    """The newest recording, and what decides whether another one takes its place: that its key comes twice in a row.

    So the smaller last batch of an epoch costs none.
    """

    def __init__(self) -> None:
        self._recording: Any = None
        self._recorded: Any = None
        self._last: Any = None

    def find(self, key: Any, record: Callable[[], Any]) -> Any:
        """The recording for ``key``, made by ``record`` if need be; None where there is none."""
        if self._recording is not None and key == self._recorded:
            self._last = key
            return self._recording
        if key == self._last:
            # Its memory first.
            self._recording = None
            self._recording, self._recorded = record(), key
            return self._recording
        self._last = key
        return None


class _Call:
    """A recorded call of a function of tensors, and where these lie."""

    def __init__(self, function: Callable[[list[Tensor]], list[Tensor]], tensors: list[Tensor]) -> None:
        self.given = [tensor.clone() for tensor in tensors]
        self.graph = torch.cuda.CUDAGraph()
        _warm_up(lambda: function(self.given))
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"), _casting_anew():
            self.results = function(self.given)


class _Passes:
    """The recorded passes over batches of one shape, and where these lie."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        named = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self.weights = list(named.values())
        self.images = images.clone()
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()

        def passes_forward() -> tuple[Tensor, list[Tensor]]:
            # Not by the weights themselves: autograd ties those to the stream on which the last loss was computed.
            aliases = {name: weight.detach().requires_grad_() for name, weight in named.items()}
            return functional_call(network, aliases, self.images), list(aliases.values())

        def passes() -> None:
            logits, weights = passes_forward()
            torch.autograd.grad(logits.sum(), weights, allow_unused=True)

        # Warming up changes batch norms' averages and draws what dropout drops.
        buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
        drawn = torch.cuda.get_rng_state(images.device)
        try:
            _warm_up(passes)
            for buffer, value in buffers:
                buffer.copy_(value)
            torch.cuda.set_rng_state(drawn, images.device)
            with torch.cuda.graph(self.forward, capture_error_mode="thread_local"), _casting_anew():
                logits, weights = passes_forward()
            self.gradient = torch.zeros_like(logits)
            with torch.cuda.graph(self.backward, pool=self.forward.pool(), capture_error_mode="thread_local"):
                gradients = torch.autograd.grad(logits, weights, self.gradient, allow_unused=True)
                # As the weights lie, so that autograd keeps them as they are and optimizers take them all at once.
                self.gradients = [
                    gradient
                    if gradient is None or gradient.stride() == weight.stride()
                    else torch.empty_like(weight).copy_(gradient)
                    for gradient, weight in zip(gradients, self.weights, strict=True)
                ]
        except RuntimeError:
            for buffer, value in buffers:
                buffer.copy_(value)
            # What broke off a recording leaves the generator in it.
            sound = torch.Generator(images.device).set_state(drawn)
            torch.cuda.default_generators[images.device.index].graphsafe_set_state(sound)
            raise
        self.logits = logits.detach()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: _Passes, images: Tensor, *weights: Tensor) -> Tensor:
        ctx.passes = passes
        passes.images.copy_(images)
        passes.forward.replay()
        return passes.logits.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        passes = ctx.passes
        passes.gradient.copy_(gradient)
        passes.backward.replay()
        return None, None, *(None if gradient is None else gradient.detach() for gradient in passes.gradients)


def _warm_up(function: Callable[[], Any]) -> None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), _casting_anew():
        for _ in range(_WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(stream)


def _casting_anew() -> torch.autocast:
    """Mixed precision, if it is on, without the casts that autocast keeps: they would be of the weights of one step."""
    return torch.autocast(
        "cuda",
        dtype=torch.get_autocast_dtype("cuda"),
        enabled=torch.is_autocast_enabled("cuda"),
        cache_enabled=False,
    )
