"""What lives long, and the wiring: the trainer, the run directory, the reports, the command line.

May import everything.
"""
