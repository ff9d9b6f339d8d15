"""Writes the same counter to memory and to disk, for ever; `check` tells whether both are of one moment.

The log on disk holds the number n at place n, written and synced one after the other: a disk older than the memory it is
paired with has a gap at its end that the next write jumps over, a newer one has a number that memory has not reached.
"""
import os
import signal
import struct
import subprocess
import sys

LOG, MEMORY, PID = "/root/counter.log", "/dev/shm/counter", "/dev/shm/counter.pid"


def count():
    log = os.open(LOG, os.O_RDWR | os.O_CREAT, 0o600)
    memory = os.open(MEMORY, os.O_RDWR | os.O_CREAT, 0o600)
    with open(PID, "w") as file:
        file.write(str(os.getpid()))
    number = 0
    while True:
        number += 1
        os.pwrite(memory, struct.pack("<Q", number), 0)
        os.pwrite(log, struct.pack("<Q", number), 8 * number)
        os.fsync(log)


def check():
    os.kill(int(open(PID).read()), signal.SIGSTOP)
    number = struct.unpack("<Q", open(MEMORY, "rb").read(8))[0]
    # From the disk itself, not from the memory that remembers it.
    subprocess.check_call(["sh", "-c", "echo 3 > /proc/sys/vm/drop_caches"])
    log = open(LOG, "rb").read()
    written = [struct.unpack_from("<Q", log, 8 * place)[0] for place in range(1, len(log) // 8)]
    wrong = [place for place, found in enumerate(written, 1) if found != place]
    if wrong or number - len(written) not in (0, 1):
        sys.exit(f"memory counts {number}, the disk {len(written)}; wrong places: {wrong[:10]}")
    print("agree", number)


if __name__ == "__main__":
    count() if sys.argv[1] == "count" else check()
