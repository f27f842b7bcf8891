"""The HTTP API v1: one module a resource, and one a concept that all of them share.

It knows requests, answers and the order of checks, charge and work; it does not know how anything
is computed (`craft_server.engine`) or counted (`craft_server.ledger`).
"""
