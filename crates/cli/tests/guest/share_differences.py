"""What a folder of the host does otherwise than other file systems, each in a line: share_differences.py DIRECTORY"""

import errno
import os
import sys

os.makedirs(sys.argv[1])
os.chdir(sys.argv[1])


def tell(what, operation):
    try:
        result = operation()
    except OSError as error:
        result = errno.errorcode[error.errno]
    print(f"{what}: {result}")


def make(name, content=b"0123456789"):
    opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(opened, content)
    return opened


os.close(make("read-only"))
os.chmod("read-only", 0o400)
tell("write to a file without the owner's w", lambda: os.close(os.open("read-only", os.O_WRONLY)))
os.mkdir("closed")
os.close(make("closed/inner"))
os.chmod("closed", 0o600)
tell("look into a directory without the owner's x", lambda: os.stat("closed/inner").st_size)
os.chmod("closed", 0o700)

removed = make("removed")
os.unlink("removed")
tell("read a removed file", lambda: os.pread(removed, 20, 0))
tell("write to a removed file", lambda: os.pwrite(removed, b"x", 0))
tell("look at a removed file", lambda: os.fstat(removed).st_size)
tell("truncate a removed file", lambda: os.ftruncate(removed, 5))
tell("change the mode of a removed file", lambda: os.fchmod(removed, 0o640))

closed = make("made-read-only")
os.fchmod(closed, 0o400)
tell("truncate an open file that was made read-only", lambda: os.ftruncate(closed, 5))

old = make("replaced")
os.close(make("new"))
os.rename("new", "replaced")
tell("truncate a replaced file", lambda: os.ftruncate(old, 5))
tell("its size then", lambda: len(os.pread(old, 20, 0)))
tell("the size of what replaced it", lambda: len(open("replaced", "rb").read()))

tell("make an unnamed file", lambda: os.close(os.open(".", os.O_TMPFILE | os.O_RDWR)))
tell("make a FIFO", lambda: os.mkfifo("pipe"))
holes = make("holes", b"")
os.ftruncate(holes, 1 << 20)
tell("find data in a hole", lambda: os.lseek(holes, 0, os.SEEK_DATA))
