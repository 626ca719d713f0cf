"""Programmatic dependent launch: a kernel begins while the one before still runs, and waits for it where it must.

CUDA C++ programming guide, "Programmatic Dependent Launch and Synchronization"; from compute capability 9.0 on.
"""

import triton
import triton.language as tl

__all__ = ["prefetch", "wait_for_activations"]


@triton.jit
def wait_for_activations(PDL: tl.constexpr):
    """Wait until the kernel before has ended, then let the next one begin.

    What stands before this may only read what no kernel of the same pass over the layers writes: weights, and the state
    that the pass before left. The next kernel begins here at the earliest, when the one before this has ended.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def prefetch(numbers, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Ask for what will be read soon: the second-level cache takes it. Does nothing where PDL is off.

    That is no read yet, and may stand before the wait whoever writes there.

    Args:
        numbers: pointer to the first, divisible by 16.
        SIZE: how many; whole lines of 128 bytes. BLOCK: SIZE as a power of two.
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
