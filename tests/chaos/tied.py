"""Runs a command that dies with whoever started it: ``python -I -S tied.py COMMAND...``.

So that nothing is left running when a chaos run is killed. Standard library only.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
os.execvp(sys.argv[1], sys.argv[1:])
