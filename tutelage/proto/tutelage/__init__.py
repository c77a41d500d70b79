"""Mirrors the protobuf package `tutelage`."""
