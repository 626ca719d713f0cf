"""The tests of liger-export, which mirror the package."""

import gc

# PyTorch and transformers leave a million objects. With the default of 700, tests spend a tenth of their time on
# searching them for garbage.
gc.set_threshold(50_000)
