//! The loopback interface.
#![allow(unsafe_code)]

/// Brings `lo` up; a kernel without network does without.
pub(super) fn raise_loopback() {
    // SAFETY: an all-zero ifreq is a valid value of this plain C structure.
    // Needed: `libc` gives it no constructor.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    #[expect(clippy::cast_possible_truncation, reason = "both flags are below 2^15")]
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    request.ifr_ifru.ifru_flags = flags;
    let Ok(socket) = std::net::UdpSocket::bind("0.0.0.0:0") else { return };
    // SAFETY: the socket is open and the request is a whole ifreq that outlives the call.
    // Needed: `rustix` does not know the request; netlink for one flag would be a library more in every guest.
    let result = unsafe {
        libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCSIFFLAGS, &raw const request)
    };
    if result != 0 {
        crate::core::console::say(&format!("loopback stays down: {}", std::io::Error::last_os_error()));
    }
}
