//! Randomness that the host gives.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd as _;

/// The kernel's random number generator, held open: to open it costs an emulated child 500 pieces of translated code.
pub(in crate::platform::linux) struct EntropyPool(std::io::Result<File>);

impl EntropyPool {
    pub(in crate::platform::linux) fn open() -> Self {
        Self(File::options().write(true).open("/dev/urandom"))
    }

    /// Mixes 32 bytes in and has the generator start anew from them; nothing to do without any.
    pub(in crate::platform::linux) fn add(&self, entropy: &[u8]) -> Result<(), String> {
        if entropy.is_empty() {
            return Ok(());
        }
        let entropy: &[u8; 32] = entropy.try_into().map_err(|_| "entropy is 32 bytes".to_owned())?;
        /// `struct rand_pool_info` of `linux/random.h` with room for 32 bytes.
        #[repr(C)]
        struct Pool {
            bits: libc::c_int,
            bytes: libc::c_int,
            data: [u8; 32],
        }
        /// `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)` of `linux/random.h`.
        const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;
        const RESEED: libc::Ioctl = 0x5207;
        let device = self.0.as_ref().map_err(|error| format!("open /dev/urandom: {error}"))?;
        let pool = Pool { bits: 256, bytes: 32, data: *entropy };
        // SAFETY: the descriptor is open and the structure is what the kernel expects, whole for the time of the call.
        // Needed: no library wraps this request, nor the next.
        if unsafe { libc::ioctl(device.as_raw_fd(), ADD_ENTROPY, &raw const pool) } != 0 {
            return Err(format!("add entropy: {}", std::io::Error::last_os_error()));
        }
        // SAFETY: the request takes no argument.
        if unsafe { libc::ioctl(device.as_raw_fd(), RESEED, 0) } != 0 {
            return Err(format!("reseed the random number generator: {}", std::io::Error::last_os_error()));
        }
        Ok(())
    }
}
