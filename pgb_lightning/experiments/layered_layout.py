"""Place the nodes of a layered graph."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

SWEEPS = 40
"""Steps of the search for an order with few crossings."""


class Layout:
    """Positions for the nodes of a graph in rows, with few crossings of arrows.

    An arrow that spans several rows gets a point in each row between, which is placed like a narrow node. Each row is
    ordered by the mean position of the neighbors of its members, as in Sugiyama's method; then members that are next to
    each other are swapped while that saves crossings.

    Args:
        arrows: The nodes, each with the targets of its arrows; targets lie in lower rows.
        rows: The row of each node, from the bottom.
    """

    def __init__(self, arrows: Mapping[str, set[str]], rows: Mapping[str, int]) -> None:
        self.paths: dict[tuple[str, str], list[str]] = {}
        self.rows: list[list[str]] = [[] for _ in range(max(rows.values()) + 1)]
        self.nodes = set(arrows)
        for node in sorted(arrows):
            self.rows[rows[node]].append(node)
        for node in sorted(arrows):
            for target in sorted(arrows[node]):
                between = range(rows[node] - 1, rows[target], -1)
                points = [f"{node}-{target}-{row}" for row in between]
                for row, point in zip(between, points, strict=True):
                    self.rows[row].append(point)
                self.paths[node, target] = [node, *points, target]
        self.links = [link for path in self.paths.values() for link in pairwise(path)]
        self.above: dict[str, list[str]] = {name: [] for row in self.rows for name in row}
        self.below: dict[str, list[str]] = {name: [] for row in self.rows for name in row}
        for upper, lower in self.links:
            self.above[lower].append(upper)
            self.below[upper].append(lower)
        self._order()
        self.x = self._place()

    def crossings(self) -> int:
        """Count the pairs of arrows that cross."""
        place = {name: position for row in self.rows for position, name in enumerate(row)}
        count = 0
        for row in self.rows:
            ends = [(place[upper], place[lower]) for upper in row for lower in self.below[upper]]
            count += sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(ends) for c, d in ends[:i])
        return count

    def _order(self) -> None:
        """Order each row by the mean place of its neighbors in the rows above, then below, and keep the best result."""
        best, fewest = [list(row) for row in self.rows], self.crossings()
        for sweep in range(SWEEPS):
            neighbors, rows = (self.above, self.rows[-2::-1]) if sweep % 2 == 0 else (self.below, self.rows[1:])
            for row in rows:
                place = {name: position for others in self.rows for position, name in enumerate(others)}
                mean = {name: _mean([place[other] for other in neighbors[name]], place[name]) for name in row}
                row.sort(key=lambda name: (mean[name], name))
            if self.crossings() < fewest:
                best, fewest = [list(row) for row in self.rows], self.crossings()
        self.rows = best
        while self._swap():
            pass

    def _swap(self) -> bool:
        """Swap members that are next to each other in a row where that saves crossings; return whether any were."""
        swapped = False
        place = {name: position for row in self.rows for position, name in enumerate(row)}
        for row in self.rows:
            for position in range(len(row) - 1):
                left, right = row[position : position + 2]
                ends = [
                    (place[a], place[b]) for near in (self.above, self.below) for a in near[left] for b in near[right]
                ]
                if sum((a > b) - (a < b) for a, b in ends) > 0:
                    row[position : position + 2] = [right, left]
                    place[left], place[right] = place[right], place[left]
                    swapped = True
        return swapped

    def _place(self) -> dict[str, float]:
        """Move each name toward its neighbors while it keeps its distance from the next one in its row."""
        x = {name: float(position) for row in self.rows for position, name in enumerate(row)}
        for _ in range(60):
            for row in (*self.rows, *reversed(self.rows)):
                neighbors = [self.above[name] + self.below[name] for name in row]
                wanted = [_mean([x[other] for other in others], x[row[-1]]) for others in neighbors]
                # A node without arrows goes where the others leave room for it.
                weights = [1.0 if others else 1e-6 for others in neighbors]
                x.update(zip(row, _spread(wanted, weights, [self._size(name) for name in row]), strict=True))
        left = min(x.values())
        return {name: value - left for name, value in x.items()}

    def _size(self, name: str) -> float:
        """Return how much of a row a name occupies."""
        return 1.25 if name in self.nodes else 0.3


def _mean(values: list[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _spread(wanted: list[float], weights: list[float], sizes: list[float]) -> list[float]:
    """Return the places nearest to those wanted, in order, each as far from the next as their sizes require."""
    offsets = [0.0]
    for before, after in pairwise(sizes):
        offsets.append(offsets[-1] + (before + after) / 2)
    # Without the offsets, places must not decrease: pool neighbors that would, as (sum, weight, members).
    pools: list[tuple[float, float, int]] = []
    for value, weight, offset in zip(wanted, weights, offsets, strict=True):
        pool = (weight * (value - offset), weight, 1)
        while pools and pools[-1][0] / pools[-1][1] >= pool[0] / pool[1]:
            total, mass, members = pools.pop()
            pool = (total + pool[0], mass + pool[1], members + pool[2])
        pools.append(pool)
    flat = [total / mass for total, mass, members in pools for _ in range(members)]
    return [round(base + offset, 6) for base, offset in zip(flat, offsets, strict=True)]
