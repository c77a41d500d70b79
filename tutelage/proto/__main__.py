"""Regenerate the Python code of every .proto file here: `python -m tutelage.proto`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package `tutelage`


def generate(out: Path = ROOT) -> list[Path]:
    """Write `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` for every .proto under `out`; returns their paths."""
    import grpc_tools  # only developers have it
    from grpc_tools import protoc

    protos = sorted(path.relative_to(ROOT) for path in (ROOT / "tutelage" / "proto").rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    status = protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", *outputs, *map(str, protos)])
    if status != 0:
        raise SystemExit(status)
    endings = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
    return [out / proto.with_name(proto.stem + ending) for proto in protos for ending in endings]


if __name__ == "__main__":
    for path in generate():
        print(path.relative_to(ROOT))
