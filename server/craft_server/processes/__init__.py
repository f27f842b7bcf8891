"""One server made of several processes: one that holds the model, some that speak HTTP.

`supervisor` starts them and starts them again when they die; `engine_app` is the model's process,
`remote_engine` how the others reach it, over a socket in a folder that only the operator's user can
enter.
"""
