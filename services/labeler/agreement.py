"""How far people agree, and how sure that is: Krippendorff's α, and an interval for a share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from tutelage.types import Array

Z_95, Z_999 = 1.96, 3.29


def wilson(successes: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """The interval of a share (Wilson, 1927): it keeps to 0..1 and is of use for small n; (0, 1) for none."""
    if n == 0:
        return 0.0, 1.0
    share, spread = successes / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


class Alpha:
    """Krippendorff's α of nominal judgements (2011), kept up as they come and go.

    alpha.add("question-7", "left")
    alpha.value(), alpha.units      # 1: all agree, 0: as by chance; None before anybody could disagree

    α = 1 − D_o / D_e over units that were judged at least twice: n values in all, n_c of them c, and of
    unit u m_u values, n_uc of them c.

        D_o = 1/n Σ_u Σ_c n_uc (m_u − n_uc) / (m_u − 1)      D_e = 1/(n (n − 1)) Σ_c n_c (n − n_c)
    """

    def __init__(self) -> None:
        self.units = 0  # judged at least twice
        self._of_unit: dict[str, Counter[Hashable]] = {}
        self._of_value: Counter[Hashable] = Counter()  # in those units
        self._observed = 0.0  # n D_o

    def add(self, unit: str, value: Hashable) -> None:
        self._change(unit, value, 1)

    def remove(self, unit: str, value: Hashable) -> None:
        """Of a value that was added."""
        self._change(unit, value, -1)

    def _change(self, unit: str, value: Hashable, by: int) -> None:
        values = self._of_unit.setdefault(unit, Counter())
        self._count(values, -1)
        values[value] += by
        if values[value] == 0:
            del values[value]
        self._count(values, 1)
        if not values:
            del self._of_unit[unit]

    def _count(self, values: Counter[Hashable], by: int) -> None:
        m = values.total()
        if m < 2:
            return
        self.units += by
        self._observed += by * sum(n * (m - n) for n in values.values()) / (m - 1)
        for value, n in values.items():
            self._of_value[value] += by * n

    def value(self) -> float | None:
        """α; None where all values are the same one, or there are none: chance would agree as well."""
        n = self._of_value.total()
        expected = sum(count * (n - count) for count in self._of_value.values())
        if expected == 0:
            return None
        return 1 - self._observed * (n - 1) / expected


class IntervalAlpha:
    """The same of vectors [A], with the squared distance for how far two judgements are apart.

    Of m values the distances of all pairs sum up to 2 m Σ |v|² − 2 |Σ v|², so that sums are all that is kept.
    """

    def __init__(self) -> None:
        self.units = 0
        self._of_unit: dict[str, Array] = {}  # [2 + A]: m, Σ |v|², Σ v
        self._all: Array | float = 0.0  # likewise, of units that were judged at least twice
        self._observed = 0.0  # n D_o

    def add(self, unit: str, value: Sequence[float]) -> None:
        self._change(unit, value, 1)

    def remove(self, unit: str, value: Sequence[float]) -> None:
        """Of a value that was added."""
        self._change(unit, value, -1)

    def _change(self, unit: str, value: Sequence[float], by: int) -> None:
        vector = np.asarray(value, np.float64)
        sums = self._of_unit.get(unit, np.zeros(2 + len(vector)))
        self._count(sums, -1)
        self._of_unit[unit] = sums = sums + by * np.array([1, vector @ vector, *vector])
        self._count(sums, 1)

    def _count(self, sums: Array, by: int) -> None:
        if sums[0] >= 2:
            self.units += by
            self._observed += by * _apart(sums) / (sums[0] - 1)
            self._all = self._all + by * sums

    def value(self) -> float | None:
        """α; None where all values are the same, or there are none."""
        if self.units == 0:
            return None
        sums = np.asarray(self._all)
        if (expected := _apart(sums)) <= 1e-12 * sums[0] * sums[1]:  # but for rounding
            return None
        return float(1 - self._observed * (sums[0] - 1) / expected)


def _apart(sums: Array) -> float:
    m, squares, total = sums[0], sums[1], sums[2:]
    return float(2 * m * squares - 2 * total @ total)
