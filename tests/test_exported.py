"""TorchScript and ONNX files that PyTorch exported answer as the network does."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from expert_oracle.loading import OracleSpec, checked
from tutelage.errors import ConfigError, OracleError

OBS = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)


class Network(nn.Module):
    """Means and log standard deviations of two actions, and a value."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.ELU(), nn.Linear(8, 4))
        self.value = nn.Linear(5, 1)

    def forward(self, obs):
        return self.body(obs), self.value(obs)


class Camera(nn.Module):
    """A network of two inputs."""

    def forward(self, image, speed):
        return image.float().mean((1, 2))[:, None] * speed


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The network, and it in both formats, with outputs `params` and `value`."""
    folder, network = tmp_path_factory.mktemp("exported"), Network().eval()
    example = torch.zeros(3, 5)
    torch.jit.save(torch.jit.trace(network, example), str(folder / "network.pt"))
    export(network, (example,), folder / "network.onnx", ["obs"], ["params", "value"])
    return network, {"torchscript": folder / "network.pt", "onnx": folder / "network.onnx"}


def export(network, example, path, inputs, outputs):
    axes = {name: {0: "N"} for name in (*inputs, *outputs)}
    torch.onnx.export(
        network, example, str(path), input_names=inputs, output_names=outputs, dynamic_axes=axes, dynamo=False
    )


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_outputs(files, kind, dtype):
    network, paths = files
    with torch.no_grad():
        params, value = (part.numpy() for part in network(torch.as_tensor(OBS)))
    for arguments, expected in (
        ({}, params),
        ({"output": "mean"}, params[:, :2]),
        ({"output": "logits"}, params.argmax(1)),
        ({"result": 1}, value),
    ):
        expert = OracleSpec(f"{kind}:{paths[kind]}", arguments).build()
        for N in (40, 1, 40):
            np.testing.assert_allclose(expert.act(OBS[:N].astype(dtype)), expected[:N], atol=1e-6)


def test_the_result_may_be_named(files):
    network, paths = files
    value = OracleSpec(f"onnx:{paths['onnx']}", {"result": "value"}).build().act(OBS)
    np.testing.assert_allclose(value, network(torch.as_tensor(OBS))[1].detach(), atol=1e-6)


def test_dict_observations_go_to_the_inputs_of_their_names(tmp_path):
    example = torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, 3)
    export(Camera(), example, tmp_path / "camera.onnx", ["image", "speed"], ["action"])
    obs = {"image": np.full((6, 4, 4), 2, np.uint8), "speed": np.ones((6, 3)), "unused": np.ones(6)}
    expert = OracleSpec(f"onnx:{tmp_path / 'camera.onnx'}").build()
    np.testing.assert_array_equal(expert.act(obs), np.full((6, 3), 2))
    with pytest.raises(OracleError, match=r"takes image; observations have speed"):
        expert.act({"speed": obs["speed"]})
    with pytest.raises(OracleError, match=r"inputs image, speed; observations are one array"):
        expert.act(OBS)


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_what_is_wrong_is_one_line(files, kind, tmp_path):
    _, paths = files
    (tmp_path / "text").write_text("no network")
    for error, path, arguments, line in (
        (ConfigError, "gone", {}, r"no such file: .*gone"),
        (
            ConfigError,
            paths[kind],
            {"output": "logit"},
            r"output='logit' is unknown; did you mean 'logits'\?",
        ),
        (OracleError, tmp_path / "text", {}, "text is no (TorchScript|ONNX) file: "),
    ):
        with pytest.raises(error, match=line) as info:
            OracleSpec(f"{kind}:{path}", arguments).build()
        assert "\n" not in str(info.value)
    with pytest.raises(ConfigError, match="has no result 5; known: 0, 1"):
        OracleSpec(f"{kind}:{paths[kind]}", {"result": 5}).build().act(OBS)
    odd = OracleSpec(f"{kind}:{paths[kind]}", {"output": "mean", "result": 1}).build()
    with pytest.raises(OracleError, match="got 1 numbers; are they the actions, set output=action"):
        odd.act(OBS)
    wrong = checked(OracleSpec(f"{kind}:{paths[kind]}").build(), None, spaces.Box(-1, 1, (4,)), kind)
    with pytest.raises(OracleError, match=f"expert {kind} failed for 40 states") as info:
        wrong.act(OBS[:, :3])
    assert "\n" not in str(info.value)
