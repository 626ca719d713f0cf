"""Tokens per second with and without prompt lookup, on texts that repeat more and less.

    python benchmarks/lookup.py demo/package --text examples/pycode-7m/heldout/shlex.py.txt --lookup 15

The model continues the text, greedily and sampled, and the text followed by its own start. With --chat it is asked to
repeat, to summarize and to go on from the text. Both runs must choose the same tokens. Prints medians and, in
parentheses, the 10th to 90th percentile.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from liger_export.bench.timing import Spread
from liger_export.runtime import Sampling, Session, load

REQUESTS = {
    "edit": "Repeat this text, with a comment above each part.\n\n{}",
    "summary": "Summarize this text in five sentences.\n\n{}",
    "new": "Write a story that begins like this.\n\n{}",
}


def prompts(session: Session, text: str, *, chat: bool) -> Iterator[tuple[str, list[int], Sampling]]:
    greedy, sampled = Sampling(temperature=0), Sampling(temperature=1, seed=0)
    if not chat:
        yield "start again", session.encode(f"{text}\n\n{text[: len(text) // 8]}"), greedy
        yield "continue", session.encode(text), greedy
        yield "sample", session.encode(text), sampled
        return
    for name, request in REQUESTS.items():
        part = text[:200] if name == "new" else text
        yield name, session.encode_chat([{"role": "user", "content": request.format(part)}]), greedy


def measure(
    session: Session, prompt: list[int], sampling: Sampling, count: int, lookup: int
) -> tuple[list[int], float]:
    """Return the chosen tokens, and the seconds from the first to the last."""
    session.reset()
    pieces = session.generate(prompt, max_new_tokens=count, sampling=sampling, ignore_eos=True, lookup=lookup)
    chosen = [token.id for token in next(pieces).tokens]
    start = time.perf_counter()
    chosen += [token.id for piece in pieces for token in piece.tokens]
    return chosen, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--chat", action="store_true", help="ask for the text with the chat template")
    parser.add_argument("--characters", type=int, default=2000, help="of the text")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--lookup", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    session = load(arguments.package, threads=arguments.threads)
    text = arguments.text.read_text(encoding="utf-8")[: arguments.characters]
    for name, prompt, sampling in prompts(session, text, chat=arguments.chat):
        seconds: dict[int, list[float]] = {0: [], arguments.lookup: []}
        texts = []
        for _ in range(arguments.repeats):
            for lookup, times in seconds.items():  # in turns
                chosen, elapsed = measure(session, prompt, sampling, arguments.tokens, lookup)
                texts.append(chosen)
                times.append(elapsed)
        if any(chosen != texts[0] for chosen in texts):
            raise SystemExit(f"{name}: the tokens differ")
        plain, guessing = (Spread.of([arguments.tokens / each for each in times]) for times in seconds.values())
        ratio = guessing.median / plain.median
        print(f"{name}: {plain.text()} tokens/s, with lookup {guessing.text()}: {ratio:.2f}x")


if __name__ == "__main__":
    main()
