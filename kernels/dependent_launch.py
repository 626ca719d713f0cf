"""Programmatic dependent launch: a kernel starts while the previous one still runs, and waits before it needs results.

CUDA C++ programming guide, "Programmatic Dependent Launch and Synchronization". Needs compute capability 9.0.
"""

import triton
import triton.language as tl

__all__ = ["prefetch", "wait_for_activations"]


@triton.jit
def wait_for_activations(PDL: tl.constexpr):
    """Wait until the previous kernel has ended, then let the next kernel start.

    Before this call, a kernel may only read memory that no kernel of the same forward pass writes: weights, and the
    state from the previous pass. Kernel N + 1 starts here at the earliest, after kernel N - 1 has ended.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def prefetch(numbers, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Prefetch memory into the L2 cache. Does nothing without PDL.

    A prefetch is not a read, so it may come before the wait even if the previous kernel writes this memory.

    Args:
        numbers: pointer to the first element, a multiple of 16 bytes.
        SIZE: number of elements, in whole lines of 128 bytes. BLOCK: SIZE rounded up to a power of two.
    """
    if PDL:
        LINE: tl.constexpr = 1024 // numbers.dtype.element_ty.primitive_bitwidth
        lines = tl.minimum(tl.arange(0, BLOCK // LINE), SIZE // LINE - 1)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [(numbers + lines * LINE).to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
