"""Published adapters: names, versions, aliases, owners, grants, and what serving them needs.

A name belongs to its owner; each publication under it is a new, immutable version, and aliases move
between versions. Every function is one transaction of its caller, or a part of one.
"""
