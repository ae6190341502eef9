"""A training's passes as CUDA graphs: recorded once, then launched whole.

Small networks leave a GPU idle: launching their thousands of short kernels one by one takes the processor several
times as long as the GPU takes to run them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from hps_lightning.engine.hooks import hooked

# Before a recording, so that the libraries choose and load their kernels outside it.
_WARM_UP = 3

# What callbacks set on a module to change how it computes.
_SETTINGS = ("training", "momentum", "resolution", "p")

_KNOWN_MODULES = ("torch.nn.modules.", "hps_lightning.networks.")


def passes_repeat(network: nn.Module) -> bool:
    """Whether every training pass of a network launches the same kernels, as a graph of them does.

    Known of what consists of PyTorch's modules and of this package's: a module of somebody else's may decide something
    in Python, which a graph would repeat as it was when it was recorded.
    """
    return all(type(module).__module__.startswith(_KNOWN_MODULES) for module in network.modules())


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
    one of an epoch, runs kernel by kernel, as does whatever a graph cannot hold; what changes how the network computes
    (a frozen weight, another resolution, another momentum of a batch norm) has it recorded anew.

    Gradients lie where the next passes write, so that one step has one batch: each forward pass forgets them.

    Args:
        network: on a GPU, images of N x C x H x W to logits.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._modules = list(network.modules())
        self._weights = list(network.parameters())
        self._recordings = _Recordings()

    @property
    def problem(self) -> str:
        """Why nothing can be recorded; empty if that is not known to be so."""
        return self._recordings.problem

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of a batch."""
        passes = self._recordings.find(self._key(images), lambda: self._record(images))
        if passes is None:
            return self.network(images)
        for weight in passes.weights:
            weight.grad = None
        return _Replay.apply(passes, images, *passes.weights)

    def _key(self, images: Tensor) -> Any:
        """All that a recording depends on."""
        modules = [
            (*map(vars(module).get, _SETTINGS), hooked(module), *map(_address, module._buffers.values()))
            for module in self._modules
        ]
        weights = [(weight.data_ptr(), weight.requires_grad) for weight in self._weights]
        casts = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        return images.shape, images.dtype, casts, modules, weights

    def _record(self, images: Tensor) -> "_Passes | None":
        return _Passes(self.network, images) if self._recordable() else None

    def _recordable(self) -> bool:
        # It looks at each gradient of the backward pass.
        return not torch.is_anomaly_enabled() and all(
            # Hooks would be called while it is recorded alone.
            not hooked(module)
            # A cumulative average asks the GPU for the number of batches.
            and not (isinstance(module, nn.BatchNorm2d) and module.momentum is None)
            for module in self._modules
        )


def _address(buffer: Tensor | None) -> int | None:
    return None if buffer is None else buffer.data_ptr()


class _Recordings:
    """The newest recording, and what decides whether another one takes its place: that its key comes twice in a row.

    So the smaller last batch of an epoch costs none.

    Attributes:
        problem: why the last recording failed, after which there is none.
    """

    def __init__(self) -> None:
        self.problem = ""
        self._recording: Any = None
        self._recorded: Any = None
        self._last: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing of what was recorded, which no file and no copy can hold."""
        return vars(_Recordings())

    def find(self, key: Any, record: Callable[[], Any]) -> Any:
        """The recording for ``key``, made by ``record`` if need be; None where there is none."""
        if self._recording is not None and key == self._recorded:
            self._last = key
            return self._recording
        again, self._last = key == self._last, key
        if not again or self.problem:
            return None
        # Its memory first.
        self._recording = None
        try:
            self._recording, self._recorded = record(), key
        except RuntimeError as error:
            self.problem = str(error).strip().splitlines()[0]
            rank_zero_warn(
                f"This training launches kernels one by one, for no CUDA graph of them could be made: {self.problem}"
            )
        return self._recording


class _Call:
    """A recorded call of a function of tensors, and where these lie."""

    def __init__(self, function: Callable[[list[Tensor]], list[Tensor]], tensors: list[Tensor]) -> None:
        self.given = [tensor.clone() for tensor in tensors]
        self.graph = torch.cuda.CUDAGraph()
        with _recording_on(tensors[0].device) as stream:
            _warm_up(lambda: function(self.given), stream)
            with _captured(self.graph, stream):
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
        with _recording_on(images.device) as stream:
            try:
                _warm_up(passes, stream)
            finally:
                for buffer, value in buffers:
                    buffer.copy_(value)
            torch.cuda.set_rng_state(drawn, images.device)
            with _captured(self.forward, stream):
                logits, weights = passes_forward()
            self.gradient = torch.zeros_like(logits)
            with _captured(self.backward, stream, self.forward.pool()):
                gradients = torch.autograd.grad(logits, weights, self.gradient, allow_unused=True)
                # As the weights lie, so that autograd keeps them as they are and optimizers take them all at once.
                self.gradients = [
                    gradient
                    if gradient is None or gradient.stride() == weight.stride()
                    else torch.empty_like(weight).copy_(gradient)
                    for gradient, weight in zip(gradients, self.weights, strict=True)
                ]
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


@contextmanager
def _recording_on(device: torch.device) -> Iterator[torch.cuda.Stream]:
    """Gives the stream to record on; what fails leaves the current stream and the random generator usable."""
    drawn = torch.cuda.get_rng_state(device)
    try:
        with torch.cuda.stream(torch.cuda.current_stream(device)):
            yield torch.cuda.Stream(device)
    except RuntimeError:
        # What broke off a recording leaves the generator in it.
        sound = torch.Generator(device).set_state(drawn)
        torch.cuda.default_generators[device.index].graphsafe_set_state(sound)
        raise


@contextmanager
def _captured(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any = None) -> Iterator[None]:
    with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"), _casting_anew():
        yield


def _warm_up(function: Callable[[], Any], stream: torch.cuda.Stream) -> None:
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    try:
        with torch.cuda.stream(stream), _casting_anew():
            for _ in range(_WARM_UP):
                function()
    finally:
        # Where one fails, those before it may still be running.
        torch.cuda.current_stream(stream.device).wait_stream(stream)


def _casting_anew() -> torch.autocast:
    """Mixed precision, if it is on, without the casts that autocast keeps: they would be of the weights of one step."""
    return torch.autocast(
        "cuda",
        dtype=torch.get_autocast_dtype("cuda"),
        enabled=torch.is_autocast_enabled("cuda"),
        cache_enabled=False,
    )
