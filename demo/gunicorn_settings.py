# SPDX-License-Identifier: Apache-2.0
"""How gunicorn serves the bank in the demo: two processes, four requests at once in each."""

import ctypes
import os
import signal
import sys

workers = 2
worker_class = "gthread"
threads = 4
graceful_timeout = 20
# gunicorn 25 and later open a socket in the home directory to be controlled by. Nobody would use it.
control_socket_disable = True

if sys.platform == "linux":
    # Should the demo be killed outright, this process is told to stop and takes its workers with it.
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(os.environ["DEMO_PID"]):
        sys.exit("the demo that started this has gone")
