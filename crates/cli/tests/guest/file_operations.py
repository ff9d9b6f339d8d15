"""Random file operations below a directory, the same ones for the same seed:
file_operations.py DIRECTORY SEED COUNT [careful]

Prints what became of each, and at last a line for everything that is there, which without operations (COUNT is 0) also tells
times, links and, of large files, where they have data. File systems that do the same print the same. `careful` operations
leave the owner's rights alone, and change files that are open only while their names lead to them.
"""

import errno
import hashlib
import mmap
import os
import random
import stat
import sys

top, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
careful = "careful" in sys.argv[4:]
# Links that lead upwards and were moved upwards stay below the directory.
inner = os.path.join(top, "in/in/in")
os.makedirs(inner, exist_ok=True)
os.chdir(inner)
os.umask(0o022)
dice = random.Random(seed)
NAMES = ["a", "b", "c", "d\u00e9", "e f", "l" * 200]
FOLDERS = ["", "x/", "x/y/", "z/"]
MODES = [0o700, 0o711, 0o744, 0o755] if careful else [0o600, 0o644, 0o755, 0o400]
LARGEST = 300_000
kept = []


def path():
    return dice.choice(FOLDERS) + dice.choice(NAMES + ["x", "y", "z"])


def data():
    return dice.randbytes(dice.choice([0, 1, 100, 4096, 5000, 70_000]))


def digest(content):
    return f"{len(content)} {hashlib.sha256(content).hexdigest()[:12]}"


def offset():
    return dice.choice([0, 1, 4095, 4096, 8192, 100_000, dice.randrange(LARGEST)])


def using(name, flags, use):
    opened = os.open(name, flags, 0o640)
    try:
        return use(opened)
    finally:
        os.close(opened)


def describe(found):
    words = [oct(found.st_mode)]
    if not stat.S_ISDIR(found.st_mode):
        words += [found.st_size, found.st_nlink]
    return words


def mapped(opened, length, at, content):
    with mmap.mmap(opened, length) as memory:
        content = content[: max(0, length - at)]
        memory[at : at + len(content)] = content
        memory.flush()
        return digest(memory[:])


def write_mapped(name):
    at, content = offset(), data()
    found = os.lstat(name)
    if not stat.S_ISREG(found.st_mode) or found.st_size == 0:
        return "not mapped"
    return using(name, os.O_RDWR, lambda opened: mapped(opened, found.st_size, at, content))


def set_times(name):
    times = (dice.randrange(10**18), dice.randrange(2 * 10**18))
    os.utime(name, ns=times, follow_symlinks=False)
    return os.lstat(name).st_mtime_ns


def keep(name):
    opened = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
    kept.append((opened, name))
    if len(kept) > 4:
        os.close(kept.pop(0)[0])
    return "kept"


def leads_to(name, opened):
    try:
        return os.path.samestat(os.lstat(name), os.fstat(opened))
    except OSError:
        return False


def use_kept(_):
    """What was opened before stays what it was, whatever became of its name."""
    if not kept:
        return "none"
    (opened, name), what = dice.choice(kept), dice.randrange(5)
    if careful and what in (1, 3, 4) and not leads_to(name, opened):
        return "its name leads elsewhere"
    if what == 0:
        return os.pwrite(opened, data(), offset())
    if what == 1:
        return os.ftruncate(opened, offset())
    if what == 2:
        return digest(os.pread(opened, LARGEST * 2, 0))
    if what == 3:
        return describe(os.fstat(opened))
    return os.fchmod(opened, dice.choice(MODES))


def two(function):
    return lambda name: function(name, path())


OPERATIONS = {
    "create": lambda name: using(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, lambda opened: os.write(opened, data())),
    "replace": lambda name: using(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, lambda opened: os.write(opened, data())),
    "write": lambda name: using(name, os.O_WRONLY, lambda opened: os.pwrite(opened, data(), offset())),
    "append": lambda name: using(name, os.O_WRONLY | os.O_APPEND, lambda opened: os.write(opened, data())),
    "read": lambda name: using(name, os.O_RDONLY, lambda opened: digest(os.pread(opened, LARGEST * 2, offset()))),
    "map": write_mapped,
    "truncate": lambda name: os.truncate(name, offset()),
    "sync": lambda name: using(name, os.O_RDWR, os.fsync),
    "rename": two(os.rename),
    "link": two(lambda name, other: os.link(name, other, follow_symlinks=False)),
    "symlink": two(lambda name, other: os.symlink(os.path.relpath(name, os.path.dirname(other) or "."), other)),
    "readlink": os.readlink,
    "unlink": os.unlink,
    "mkdir": lambda name: os.mkdir(name, dice.choice([0o700, 0o755, 0o1777])),
    "rmdir": os.rmdir,
    "list": lambda name: sorted(os.listdir(os.path.dirname(name) or ".")),
    "stat": lambda name: describe(os.lstat(name)),
    "stat through links": lambda name: describe(os.stat(name)),
    "chmod": lambda name: os.chmod(name, dice.choice(MODES)),
    "times": set_times,
    "keep": keep,
    "use kept": use_kept,
}

for number in range(count):
    word, name = dice.choice(list(OPERATIONS)), path()
    # What an operation draws does not depend on whether it works.
    state = dice.random()
    own, dice = dice, random.Random(state)
    try:
        result = OPERATIONS[word](name)
    except OSError as error:
        result = errno.errorcode[error.errno]
    dice = own
    print(number, word, name[:20], "->", result)

for opened, _ in kept:
    os.close(opened)


def extents(name, size):
    """Where a file has data, in pages: the tail of a page is stored with it."""
    found, at = [], 0
    with open(name, "rb") as opened:
        while at < size:
            try:
                begin = os.lseek(opened.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(opened.fileno(), begin, os.SEEK_HOLE)
            found.append(f"{begin // 4096}-{-(-at // 4096)}")
    return digest(",".join(found).encode())


everything, first = [], {}
for folder, folders, files in os.walk(os.fsencode(".")):
    folders.sort()
    for name in sorted(folders + files):
        name = os.path.join(folder, name)
        found = os.lstat(name)
        line = f"{os.fsdecode(name)} {oct(found.st_mode)}"
        if stat.S_ISLNK(found.st_mode):
            line += f" {os.readlink(os.fsdecode(name))}"
        elif stat.S_ISREG(found.st_mode):
            line += f" {found.st_nlink} {digest(open(name, 'rb').read())}"
        if count == 0:
            line += f" {found.st_mtime_ns}"
            if not stat.S_ISDIR(found.st_mode) and found.st_nlink > 1:
                line += f" is {first.setdefault((found.st_dev, found.st_ino), os.fsdecode(name))}"
            if stat.S_ISREG(found.st_mode) and found.st_size > 1 << 20:
                line += f" {extents(name, found.st_size)}"
        everything.append(line)
print("\n".join(["everything:", *sorted(everything)]))
