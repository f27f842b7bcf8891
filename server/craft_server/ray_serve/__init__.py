"""The server on Ray Serve: replicas that speak HTTP before replicas that hold the model.

Needs the extra `ray`. `deployments` are the two kinds of replicas, `engine` is how one kind reaches
the other, `config` what `craft-server deploy ray` writes for `serve run` and `serve deploy`.
"""
