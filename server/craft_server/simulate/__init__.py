"""A remote provider, simulated: how slow, how narrow, how strict and how unreliable it is."""
