"""The ledger: who may call, within which bounds, and what was charged.

`keys` has who calls, `budgets` what bounds them, `users` what bounds each end user of a key,
`prices` what units cost, `charges` reservations and what becomes of them, `calls` answers that can
be given again, `notices` who is told what is spent, `leases` the living server processes; `account`
reads for a key, `exports`, `sums` and `monthly` read what a `selection` names, and `administration`
serves the operator. Every function takes the `Connection` of a transaction that its caller opened.
"""
