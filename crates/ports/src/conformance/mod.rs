//! The suites that every driver of a port must pass, the fake included.
