"""The sources of the operator library, and the instruction sets that they are compiled for."""

import re
from pathlib import Path

__all__ = ["SOURCES", "instruction_sets"]

SOURCES = Path(__file__).parents[2] / "plugins" / "ort"


def instruction_sets() -> dict[str, list[str]]:
    """Return the compiler flags of the instruction sets in CMakeLists.txt that this processor has."""
    (avx2,) = re.findall(r"PRIVATE (-mavx2 .*)\)", (SOURCES / "CMakeLists.txt").read_text())
    processor = Path("/proc/cpuinfo")
    has_avx2 = processor.exists() and " avx2 " in processor.read_text()
    return {"baseline": []} | ({"avx2": avx2.split()} if has_avx2 else {})
