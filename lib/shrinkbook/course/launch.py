"""First program in the box: it sets the limits, gives up root and becomes the kernel. It imports nothing of ours."""

import os
import resource
import sys

uid, nice, connection = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
for pair in sys.argv[4:]:
    name, value = pair.split("=")
    resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (int(value), int(value)))
os.nice(nice)
if uid >= 0:  # Linux exempts root from the limit on processes
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
os.umask(0o077)
options = ["--InteractiveShell.colors=nocolor", "--HistoryManager.enabled=False"]
os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", "-f", connection, *options])
