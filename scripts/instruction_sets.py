"""Print the instruction sets that a build of the CPU library serves on this machine.

usage: scripts/instruction_sets.py LIBRARY

A library chooses one when it is loaded, the one that is asked for if the machine has it: so each is
asked for in a process of its own.
"""

import ctypes
import os
import sys

from flowformer.ops.backends.cpu.library import INSTRUCTION_SETS

for name in reversed(INSTRUCTION_SETS):
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    os.environ["FLOWFORMER_ISA"] = name
    library = ctypes.CDLL(sys.argv[1])
    library.flowformer_isa.restype = ctypes.c_char_p
    if library.flowformer_isa().decode() == name:
        print(name, flush=True)
    sys.exit()
