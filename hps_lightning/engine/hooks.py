"""Whether anybody listens to a module: hooks are not called where its work is done in another way."""

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooked(module: nn.Module) -> bool:
    """Whether a module has hooks of its own; those of its children do not count."""
    return any(vars(module).get(hooks) for hooks in _HOOKS)
