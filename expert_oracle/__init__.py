"""Whoever knows better: experts that act, labelers that judge, the gRPC expert service and its client.

May import `tutelage`. No ray; torch only where a checkpoint is loaded.
"""
