"""Programmatic dependent launch: a kernel begins while the one before still runs, and waits for it where it must.

CUDA C++ programming guide, "Programmatic Dependent Launch and Synchronization"; from compute capability 9.0 on.
"""

import triton
import triton.language as tl

__all__ = ["wait_for_activations"]


@triton.jit
def wait_for_activations(PDL: tl.constexpr):
    """Wait until the kernel before has ended, then let the next one begin.

    What stands before this may only read what no kernel of the same pass over the layers writes: weights, and the state
    that the pass before left. The next kernel begins here at the earliest, when the one before this has ended.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
