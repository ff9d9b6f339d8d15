//! Names for what is not complete yet.

use microvm_types::ErrorKind;

use crate::error::CliError;

/// A name nobody else uses: hidden, ours, random.
pub(crate) fn name() -> Result<String, CliError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| {
        CliError::new(
            ErrorKind::Internal,
            "random_failed",
            format!("the host gives no random numbers: {error}"),
        )
    })?;
    Ok(format!(".microvm-{:016x}", u64::from_ne_bytes(bytes)))
}
