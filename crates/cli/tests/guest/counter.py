"""Writes the same counter to memory and to disk, for ever; whoever asks is told whether both are of one moment.

The log on disk holds the number n at place n, written and synced one after the other: a disk older than the memory it is
paired with misses its last numbers, a newer one has a number that memory has not reached. Every LAP numbers go into a new
file, and the file before the last is removed, so that a look takes the same time after an hour. A child counts on until it is asked:
laps are much longer than that takes.
"""
import array
import os
import signal
import sys

DIRECTORY, MEMORY, PID = "/root/counter", "/dev/shm/counter", "/dev/shm/counter.pid"
ASK, ANSWER = "/dev/shm/ask", "/dev/shm/answer"
LAP = 8192


def packed(numbers):
    return array.array("Q", numbers).tobytes()


def log_of(lap):
    return f"{DIRECTORY}/{lap}"


def count():
    os.mkdir(DIRECTORY)
    directory = os.open(DIRECTORY, os.O_RDONLY)
    memory = os.open(MEMORY, os.O_RDWR | os.O_CREAT, 0o600)
    log, number = None, 0
    with open(PID, "w") as file:
        file.write(str(os.getpid()))
    while True:
        lap, place = divmod(number, LAP)
        os.pwrite(memory, packed([number]), 0)
        if place == 0:
            if log is not None:
                os.close(log)
            if lap >= 2:
                os.unlink(log_of(lap - 2))
            log = os.open(log_of(lap), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.fsync(directory)
        os.pwrite(log, packed([number]), 8 * place)
        os.fsync(log)
        number += 1


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def look():
    pid = int(read(PID))
    os.kill(pid, signal.SIGSTOP)
    while b") T " not in read(f"/proc/{pid}/stat"):
        os.sched_yield()
    number = array.array("Q", read(MEMORY))[0]
    # From the disk itself, not from the memory that remembers it.
    with open("/proc/sys/vm/drop_caches", "w") as drop:
        drop.write("3")
    lap, place = divmod(number, LAP)
    written, expected = read(log_of(lap)), packed(range(lap * LAP, number + 1))
    # The last number, and with it its file, may not have been written yet.
    if written not in (expected, expected[:-8]) and not (written is None and place == 0):
        last = array.array("Q", (written or b"")[-8:])
        return f"memory counts {number}, the disk {list(last)}, in {len(written or b'')} bytes"
    if lap >= 1 and read(log_of(lap - 1)) != packed(range((lap - 1) * LAP, lap * LAP)):
        return f"memory counts {number}, and the log before is not whole"
    if place >= 1 and set(os.listdir(DIRECTORY)) - {str(lap), str(lap - 1)}:
        return f"memory counts {number}, and there are {os.listdir(DIRECTORY)}"
    return f"agree {number}"


def answer():
    """Waits in memory for the question: a child is asked without starting an interpreter first."""
    for path in ANSWER, ASK:
        os.mkfifo(path)
    with open(ASK) as ask:
        ask.readline()
    try:
        said = look()
    except Exception as error:
        said = repr(error)
    with open(ANSWER, "w") as file:
        print(said, file=file)


if __name__ == "__main__":
    {"count": count, "answer": answer}[sys.argv[1]]()
