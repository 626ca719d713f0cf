"""A tree of texts: which of them a text starts with, and where it leaves them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["Node", "PrefixTree", "Text"]

Text = npt.NDArray[np.int32]
Entry = TypeVar("Entry")


@dataclass(eq=False, slots=True)
class Node(Generic[Entry]):
    """The end of a text, or a place where texts part.

    Attributes:
        label: Tokens since the parent.
        length: Tokens since the root.
        parent: The node before; None for the root.
        children: The nodes after, by the first token of their label.
        entry: What is stored for the text that ends here, if it is.
    """

    label: Text
    length: int
    parent: "Node[Entry] | None" = None
    children: dict[int, "Node[Entry]"] = field(default_factory=dict)
    entry: Entry | None = None


class PrefixTree(Generic[Entry]):
    """Entries by text. Texts that start alike share the nodes of their start."""

    def __init__(self) -> None:
        self._root: Node[Entry] = Node(np.empty(0, dtype=np.int32), 0)

    def __iter__(self) -> Iterator[Node[Entry]]:
        """Iterate over the nodes with an entry."""
        waiting = [self._root]
        while waiting:
            node = waiting.pop()
            waiting += node.children.values()
            if node.entry is not None:
                yield node

    def add(self, text: Text) -> Node[Entry]:
        """Return the node at the end of a text, which the caller gives an entry."""
        node, matched = self._descend(text)
        if matched < node.length:
            node = self._split(node, matched)
        if matched == len(text):
            return node
        leaf: Node[Entry] = Node(text[matched:].copy(), len(text), node)
        node.children[int(text[matched])] = leaf
        return leaf

    def path(self, text: Text) -> tuple[list[Node[Entry]], int]:
        """Return the nodes with an entry that a text starts with, the longest first.

        The number is the length of the longest start that the text shares with any text in the tree.
        """
        node, matched = self._descend(text)
        found: list[Node[Entry]] = []
        last: Node[Entry] | None = node if node.length <= matched else node.parent
        while last is not None:
            if last.entry is not None:
                found.append(last)
            last = last.parent
        return found, matched

    def remove(self, node: Node[Entry]) -> None:
        """Remove the entry of a node, and the nodes that only led to it."""
        node.entry = None
        while node.parent is not None and node.entry is None and not node.children:
            del node.parent.children[int(node.label[0])]
            node = node.parent
        if node.parent is not None and node.entry is None and len(node.children) == 1:
            [child] = node.children.values()
            child.label, child.parent = np.concatenate([node.label, child.label]), node.parent
            node.parent.children[int(child.label[0])] = child

    def _descend(self, text: Text) -> tuple[Node[Entry], int]:
        """Return the node in or before whose end a text leaves the tree, and the number of tokens up to there."""
        node, matched = self._root, 0
        while matched < len(text) and (child := node.children.get(int(text[matched]))) is not None:
            node = child
            rest = text[matched : matched + len(child.label)]
            different = np.flatnonzero(child.label[: len(rest)] != rest)
            matched += int(different[0]) if len(different) else len(rest)
            if matched < child.length:
                break
        return node, matched

    def _split(self, node: Node[Entry], length: int) -> Node[Entry]:
        """Return a new node between a node and its parent, at this length."""
        assert node.parent is not None
        cut = len(node.label) - (node.length - length)
        upper: Node[Entry] = Node(node.label[:cut].copy(), length, node.parent)
        node.parent.children[int(upper.label[0])] = upper
        node.label, node.parent = node.label[cut:].copy(), upper
        upper.children[int(node.label[0])] = node
        return upper
