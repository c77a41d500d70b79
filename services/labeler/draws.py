"""What is drawn for questions and annotators: always the same for the same words, and nobody can guess it."""

from __future__ import annotations

import hashlib
import hmac
import random


class Draws:
    """A labeler's, by its secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def share(self, *what: str) -> float:
        """A number from 0 to 1."""
        return int.from_bytes(self.digest(*what)[:8], "big") / 2**64

    def digest(self, *what: str) -> bytes:
        return hmac.new(self._secret, "\n".join(what).encode(), hashlib.sha256).digest()

    def order(self, question: str, annotator: str, sides: int, again: str = "") -> list[int]:
        """The options in the order in which this annotator is shown them; reversed when asked `again`."""
        order = list(range(sides))
        random.Random(self.digest("order", again or question, annotator)).shuffle(order)
        return order[::-1] if again else order
