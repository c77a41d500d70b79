"""Making experience: the env runner, the β-mixture, exact replay and clips.

May import `expert_oracle` and `tutelage`. Only `actors.env_runner` knows RLlib.
"""
