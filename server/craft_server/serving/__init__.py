"""What every process that serves does, whoever started it: a command, a supervisor or Ray.

`listening` loads the model, takes the address and ends in good order; `connections` bounds what
clients may take, and `turns` decides whose call is next.
"""
