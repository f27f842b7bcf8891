"""The craftbox client: tunes a vision-language model that it may only call.

`craft_client.api` speaks HTTP, `craft_client.remote` makes of it the black box that
`craft_client.tune` asks, `craft_client.data` reads picture folders, `craft_client.cli` is the
command `craft`. Importing the package itself loads none of them.
"""
