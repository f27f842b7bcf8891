"""What tuning runs will take of a server and its clients, from measured constants.

`costs` has the constants and scales them to other models, `runs` adds up what a run takes, and
`measure` measures a machine.
"""
