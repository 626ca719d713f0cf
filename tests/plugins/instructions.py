"""The sources of the operator library, and the instruction sets that they are compiled for."""

import re
from pathlib import Path

__all__ = ["QUICK", "SOURCES", "instruction_sets"]

QUICK = ("-O0", "-DLIGER_ALWAYS_INLINE=")  # compiles the kernels in a fifth of the time of -O3; they run slowly

SOURCES = Path(__file__).parents[2] / "plugins" / "ort"
# The flags of /proc/cpuinfo that an instruction set needs.
NEEDED = {
    "avx2": {"avx2"},
    "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl"},
    "avxvnni": {"avx_vnni"},
    "avx512vnni": {"avx512_vnni", "avx512bw", "avx512vl"},
}


def instruction_sets(*names: str) -> dict[str, list[str]]:
    """Return the compiler flags of the named sets in CMakeLists.txt that this processor has, and of the baseline."""
    options = dict(re.findall(r"set\((\w+)_options (.*)\)", (SOURCES / "CMakeLists.txt").read_text()))
    processor = Path("/proc/cpuinfo")
    flags = set(processor.read_text().split()) if processor.exists() else set()
    return {"baseline": []} | {name: options[name].split() for name in names if NEEDED[name] <= flags}
