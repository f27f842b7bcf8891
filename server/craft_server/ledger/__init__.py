"""The ledger: who may call, within which bounds, and what was charged.

`keys` knows who calls, `budgets` what bounds them, `prices` what units cost, `charges` what was
charged, `leases` which server processes live, `calls` which answers can be given again. Every
function takes the `Connection` of a transaction that the caller opened. The ledger counts integers;
it does not know models or HTTP.
"""
