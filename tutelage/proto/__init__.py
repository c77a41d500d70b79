"""The gRPC definitions and the code generated from them; `python -m tutelage.proto` regenerates it."""
