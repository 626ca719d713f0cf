"""Damage to files: in their bytes, in the values of JSON, and in what a name stands for."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

__all__ = ["damage", "damage_json", "linked"]

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 1.5, -0.5, 10**6, 2**31, 2**32, 2**63, 2**100, 1e999, float("nan"), 1e-320),
    *("", "a", "../a", "/etc/hostname", "\u0000", "\ud800", "x" * 10_000, "float32", "(a|a)*b", "[", "1.0"),
    *([], {}, [[]], [None], {"": None}, [1] * 1000),
)


def damage(folder: Path, name: str, random: Random) -> str:
    """Damage one file of a folder of links. Returns what was done."""
    kinds: list[Callable[[Path, Random], str]] = [_bytes] * 6 + [_entry]
    if name.endswith(".json"):
        kinds += [damage_json] * 6
    return f"{name}: {random.choice(kinds)(folder / name, random)}"


def damage_json(file: Path, random: Random) -> str:
    """Change, remove, nest or double one value of a JSON file."""
    values = json.loads(file.read_text())
    places = list(_places(values, ()))
    place = random.choice(places)
    *parents, last = place
    holder = values
    for key in parents:
        holder = holder[key]
    action = random.choice(["replace"] * 5 + ["remove", "nest", "swap", "add"])
    if action == "replace":
        holder[last] = random.choice(HOSTILE)
    elif action == "remove":
        del holder[last]
    elif action == "nest":
        depth = random.choice([2, 70, 900])
        for _ in range(depth):
            holder[last] = [holder[last]]
    elif action == "swap":
        *parents, other = random.choice(places)
        from_ = values
        for key in parents:
            from_ = from_[key]
        holder[last] = json.loads(json.dumps(from_[other]))
    elif isinstance(holder, dict):
        holder[random.choice(["a", "", "quantization_config", "auto_map"])] = random.choice(HOSTILE)
    text = json.dumps(values)
    file.unlink()
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    return f"{action} {'.'.join(map(str, place))}"


def _places(value: Any, place: tuple[Any, ...]) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*place, key)
        yield from _places(item, (*place, key))


def _bytes(file: Path, random: Random) -> str:
    """Flip, cut, insert, repeat or clear bytes, often near the start, where headers are."""
    content = bytearray(file.read_bytes())
    at = random.randrange(random.choice([len(content), min(len(content), 256)]) or 1)
    length = random.choice([1, 2, 4, 8, 64, 4096])
    action = random.choice(["flip", "set", "cut", "truncate", "insert", "repeat", "clear"])
    if action == "flip" and content:
        content[at] ^= 1 << random.randrange(8)
    elif action == "set" and content:
        content[at : at + 8] = random.choice([b"\xff" * 8, b"\x00" * 8, b"\xff" * 7 + b"\x7f", random.randbytes(8)])
    elif action == "cut":
        del content[at : at + length]
    elif action == "truncate":
        del content[at:]
    elif action == "insert":
        content[at:at] = random.randbytes(length)
    elif action == "repeat":
        content[at:at] = content[at : at + length]
    else:
        content[at : at + length] = bytes(len(content[at : at + length]))
    file.unlink()
    file.write_bytes(content)
    return f"{action} at {at}"


def _entry(file: Path, random: Random) -> str:
    """Replace a file by nothing, a folder, a pipe, a device, or another file."""
    others = sorted(path for path in file.parent.iterdir() if path.is_file())
    other = random.choice(others)
    action = random.choice(["missing", "folder", "pipe", "device", "empty", "other", "loop"])
    content = other.read_bytes()
    file.unlink()
    if action == "folder":
        file.mkdir()
    elif action == "pipe":
        os.mkfifo(file)
    elif action == "device":
        file.symlink_to(random.choice(["/dev/zero", "/dev/null", "/dev/stdin"]))
    elif action == "empty":
        file.touch()
    elif action == "other":
        file.write_bytes(content)
    elif action == "loop":
        file.symlink_to(file.name)
    return action


def linked(source: Path, target: Path) -> Path:
    """Copy a folder by hard links. A damaged file is a new one."""
    return Path(shutil.copytree(source, target, copy_function=os.link))
