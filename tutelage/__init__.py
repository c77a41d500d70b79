"""The vocabulary of Tutelage: what passes between actors, oracles, labelers and the learner.

Lives here: types, protocols, plug-in loading, the wire codec and the gRPC definitions. It imports numpy,
dm-tree and protobuf and nothing of ours; no ray, no torch, no gymnasium.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.trainer import Trainer
    from services.trainer_config import TrainerConfig

__version__ = "0.1.0"
__all__ = ["Trainer", "TrainerConfig", "__version__"]


def __getattr__(name: str) -> Any:
    """Resolve `Trainer` and `TrainerConfig` on first use: the one exception to the order of imports."""
    if name in ("Trainer", "TrainerConfig"):
        from tutelage.plugins import load

        return load(f"services.trainer:{name}")
    raise AttributeError(f"module 'tutelage' has no attribute {name!r}")
