"""The ledger: who may call, within which bounds, and what was charged.

`keys` has who calls, `budgets` what bounds them, `prices` what units cost, `charges` reservations
and what becomes of them, `calls` answers that can be given again, `leases` the living server
processes; `account` and `exports` read, and `administration` serves the operator. Every function
takes the `Connection` of a transaction that its caller opened.
"""
