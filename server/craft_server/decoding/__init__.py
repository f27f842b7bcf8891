"""Image files become pixels, in processes of their own that can be killed.

`pixels` decodes and cuts out what a model sees; `process` does so in a process that imports nothing
but what decoding needs; `decoders` starts such processes and gives them files. None of them knows
models, keys or HTTP, and the first two import no torch.
"""
