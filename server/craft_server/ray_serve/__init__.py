"""The server on Ray Serve: replicas that speak HTTP before replicas that hold the model.

Needs the extra `ray`. `craft-server deploy ray` writes what `serve run` and `serve deploy` read.
"""
