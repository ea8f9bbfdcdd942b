"""Moves bytes and understands none of them.

process.py    the process: configuration, loop, life        control.py    the supervisor's orders
serve.py      accepts, joins, drains                        addresses.py  where to listen, where the upstream is
dial.py       the way to the upstream                       farewell.py   the one case in which we speak
splice.py     client socket ⇄ upstream socket               readiness.py  which socket can be read, written, is dead
tap.py        the copy, with its times                      pipe.py       its format; spill.py: where it waits
guard.py      ends an answer on order; off by default       chunks.py     where an answer can be ended
"""
