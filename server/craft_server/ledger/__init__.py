"""The ledger: who may call, within which bounds, and what was charged.

Every function takes the `Connection` of a transaction that the caller opened. The ledger knows
keys, budgets and charges in integers; it does not know models, HTTP or prices.
"""
