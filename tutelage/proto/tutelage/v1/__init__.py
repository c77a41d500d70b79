"""Version 1 of the services: `oracle_pb2`, `oracle_pb2_grpc`."""
