"""Networks exported from anywhere: TorchScript and ONNX files as experts.

    torchscript:PATH      run by PyTorch
    onnx:PATH             run by onnxruntime, which `pip install 'tutelage[onnx]'` brings

`output` says what the network answers: `action`, the actions [N, ...] themselves; `logits` [N, n], of which
the largest counts; `mean` [N, 2 D], the means of a Gaussian and then its log standard deviations. Of several
answers the first counts, or the one that `result` names or numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tree

from tutelage.errors import ConfigError, OracleError
from tutelage.plugins import did_you_mean
from tutelage.types import Array, Tree

Output = Literal["action", "logits", "mean"]


@dataclass(frozen=True)
class ExportedNetwork:
    """A network and what its answers mean. An `Oracle`."""

    forward: Callable[[Tree], Array]  # [N, ...] -> [N, ...]
    output: Output
    name: str

    def act(self, obs: Tree) -> Array:
        answer = self.forward(obs)
        if self.output == "action":
            return answer
        if answer.ndim != 2:
            raise OracleError(f"{self.name}: output={self.output} needs answers [N, n], got {answer.shape}")
        if self.output == "logits":
            return answer.argmax(-1)
        means, odd = divmod(answer.shape[1], 2)
        if odd:
            raise OracleError(
                f"{self.name}: output=mean needs means and as many log standard deviations, "
                f"got {answer.shape[1]} numbers; are they the actions, set output=action"
            )
        return answer[:, :means]


def _check(path: str, output: str) -> Path:
    if output not in get_args(Output):
        raise ConfigError(f"output={output!r} is unknown{did_you_mean(output, get_args(Output))}")
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"no such file: {file}")
    return file


def load_torchscript(
    path: str, *, output: Output = "action", result: int | str | None = None
) -> ExportedNetwork:
    """The expert in a TorchScript file: a program that PyTorch runs, so take it only from whom you trust."""
    file = _check(path, output)
    import torch

    try:
        network = torch.jit.load(str(file), "cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise OracleError(f"{file} is no TorchScript file: {str(error).strip().splitlines()[0]}") from None

    def forward(obs: Tree) -> Array:
        with torch.inference_mode():
            answer = network(tree.map_structure(lambda leaf: torch.from_numpy(_single(leaf)), obs))
        return _result(answer, result, path).numpy()

    return ExportedNetwork(forward, output, f"torchscript:{path}")


def _single(leaf: Array) -> Array:
    """A copy that torch may own; float64 as the float32 that networks take."""
    return np.array(leaf, np.float32 if leaf.dtype == np.float64 else leaf.dtype)


def _result(answer: Any, result: int | str | None, path: str) -> Any:
    if not isinstance(answer, Mapping | tuple | list):
        return answer
    named: Mapping[Any, Any] = answer if isinstance(answer, Mapping) else dict(enumerate(answer))
    if result is None:
        return next(iter(named.values()))
    if result not in named:
        raise ConfigError(f"{path} has no result {result!r}{did_you_mean(str(result), named)}")
    return named[result]


def load_onnx(path: str, *, output: Output = "action", result: int | str | None = None) -> ExportedNetwork:
    """The expert in an ONNX file. Parts of Dict observations go to the inputs of their names."""
    file = _check(path, output)
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(f"onnx:{path} needs onnxruntime: pip install 'tutelage[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # there are many actors
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's kinds have no base of their own
        raise OracleError(f"{file} is no ONNX file: {str(error).splitlines()[0]}") from None
    inputs, names = session.get_inputs(), [found.name for found in session.get_outputs()]

    def forward(obs: Tree) -> Array:
        answers = session.run(None, _feed(inputs, obs, path))
        by = answers if isinstance(result, int) else dict(zip(names, answers, strict=True))
        return np.asarray(_result(by, result, path))

    return ExportedNetwork(forward, output, f"onnx:{path}")


def _feed(inputs: Sequence[Any], obs: Tree, path: str) -> dict[str, Array]:
    """Observations by the names of a network's inputs, in their types."""
    if not isinstance(obs, Mapping):
        if len(inputs) != 1:
            names = ", ".join(found.name for found in inputs)
            raise OracleError(f"{path} has the inputs {names}; observations are one array")
        obs = {inputs[0].name: obs}
    if missing := {found.name for found in inputs} - set(obs):
        raise OracleError(
            f"{path} takes {', '.join(sorted(missing))}; observations have {', '.join(sorted(obs))}"
        )
    return {found.name: np.asarray(obs[found.name], _dtype(found.type)) for found in inputs}


def _dtype(kind: str) -> np.dtype[Any]:
    """numpy's name for "tensor(float)"."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))
