"""The possible shapes of a sublayer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Heads:
    """An attention sublayer with a subset of its heads.

    Args:
        count: Number of kept heads; if keys and values have fewer heads than queries, number of kept key-value heads.

    Example:
        >>> print(Heads(6))
        6 heads
    """

    count: int

    def __str__(self) -> str:
        return f"{self.count} heads"


@dataclass(frozen=True)
class Neurons:
    """A feed-forward sublayer with a subset of its neurons.

    Args:
        count: Number of kept neurons.

    Example:
        >>> print(Neurons(768))
        768 neurons
    """

    count: int

    def __str__(self) -> str:
        return f"{self.count} neurons"


@dataclass(frozen=True)
class Groups:
    """A sublayer whose matrices are split into blocks.

    Args:
        numbers: The group number G of each matrix, in order; 0 for a matrix that is removed, 1 for one that is not
            split.
        neurons: Number of kept neurons of a feed-forward sublayer; ``None`` for attention.

    Example:
        >>> print(Groups((2, 2, 1, 3)))
        groups 2, 2, 1, 3
        >>> print(Groups((2, 3), neurons=768))
        768 neurons in 2 and 3 groups
    """

    numbers: tuple[int, ...]
    neurons: int | None = None

    def __str__(self) -> str:
        if self.neurons is None:
            return f"groups {', '.join(map(str, self.numbers))}"
        *first, last = map(str, self.numbers)
        return f"{self.neurons} neurons in {', '.join(first)} and {last} groups"


@dataclass(frozen=True)
class Dropped:
    """A dropped sublayer, which only adds a constant.

    Example:
        >>> print(Dropped())
        dropped
    """

    def __str__(self) -> str:
        return "dropped"


Shape = Heads | Neurons | Groups | Dropped
