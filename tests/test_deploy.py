"""What can be said about the deployment files without deploying them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

CLUSTER = Path(__file__).resolve().parents[1] / "deploy" / "ray-cluster.yaml"


@pytest.fixture(scope="module")
def ray_schema() -> dict:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    return json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())


def test_ray_cluster_file_fits_the_schema_of_ray(ray_schema: dict):
    jsonschema.validate(yaml.safe_load(CLUSTER.read_text()), ray_schema)


def test_schema_refuses_a_typing_error(ray_schema: dict):
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate(yaml.safe_load(CLUSTER.read_text()) | {"max_worker": 2}, ray_schema)
