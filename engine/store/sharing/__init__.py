"""An embedded index for several processes: the one that has it open serves the others by a socket.

Whoever finds an index in use asks the process that has it open, and takes the index over when that
process ends.
"""
