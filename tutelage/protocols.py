"""Two verbs for whoever knows better: an oracle acts, a labeler answers questions."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from tutelage.types import Answer, Array, Query, Tree


@runtime_checkable
class Oracle(Protocol):
    """An expert that says what it would do.

        actions = oracle.act(obs)          # obs [N, ...] -> actions [N, ...]

    `act` is called with stacked observations of the environment and answers with stacked actions of its
    action space. It may be called from another thread than the one that made it, by one thread at a time.
    """

    def act(self, obs: Tree) -> Tree: ...


@runtime_checkable
class Supervisor(Oracle, Protocol):
    """An expert that watches the novice and takes over when it sees fit (HG-DAgger; Kelly et al., 2019).

        by_expert = supervisor.takes_over(obs, actions, began)

    `obs` [N, ...] and what the novice would do there, `actions` [N, ...]; `began` [N] bool: an episode's
    first step. Returns a mask [N] bool. Row n is the same environment in every call.
    """

    def takes_over(self, obs: Tree, actions: Array, began: Array) -> Array: ...


@runtime_checkable
class Labeler(Protocol):
    """Somebody who judges. People are slower than actors: ask, don't wait.

    labeler.label(new_queries)         # hands them over, returns the answers that have arrived since
    labeler.label([])                  # only collects
    """

    def label(self, queries: Sequence[Query]) -> Sequence[Answer]: ...
