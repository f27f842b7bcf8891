"""The craftbox server."""
