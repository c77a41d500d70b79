"""Turning experience and answers into weights: losses, nets, the dataset, the learner, one file a method.

May import `expert_oracle` and `tutelage`. Only `learner.learner`, `nets` and `encoders` know RLlib.
"""
