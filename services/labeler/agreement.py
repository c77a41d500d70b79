"""How far people agree, and how sure that is: Krippendorff's α, and an interval for a share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable

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
