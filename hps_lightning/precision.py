"""Which number format trains fastest on this machine without costing accuracy."""

import torch


def fast_precision(accelerator: str = "auto") -> str:
    """Lightning's name of the precision to train in when the user names none.

    bfloat16 where the processor multiplies it in hardware, float32 elsewhere. Weights and
    their updates stay float32 in both.

    Args:
        accelerator: Lightning's ``accelerator``; "auto" takes a GPU where there is one.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        # Without emulation: older GPUs imitate bfloat16, slower than float32.
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available())
    if on_cpu:
        return "bf16-mixed" if _cpu_multiplies_bfloat16() else "32-true"
    return "32-true"


def _cpu_multiplies_bfloat16() -> bool:
    # get_capabilities is public but new; older releases have the same answers under private names.
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
