//! The core on Linux, over streams that a machine may have besides virtio-serial.

mod host;
mod streams;
