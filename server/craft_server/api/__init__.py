"""The HTTP API v1: one module a resource, and one a concept that all of them share."""
