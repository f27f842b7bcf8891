"""What every process that serves does, whoever started it: a command, a supervisor or Ray.

It loads the model, takes the address, and ends in good order; it does not know the command line.
"""
