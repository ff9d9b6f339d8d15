//! Bounds of requests into guests: settings of the operator.

use std::time::Duration;

use camino::Utf8PathBuf;
use microvm_server::Bounds;
use microvm_types::ByteSize;

use crate::{duration, variables};

const COMMAND_TIME: &str = "MICROVM_COMMAND_TIME";
const COMMAND_SIZE: &str = "MICROVM_COMMAND_SIZE";
const UPLOAD_LIMIT: &str = "MICROVM_UPLOAD_LIMIT";
const UPLOAD_ROOT: &str = "MICROVM_UPLOAD_ROOT";

/// The setting that raises the bound of a field, as remedies name it.
pub(crate) fn setting(field: &str) -> Option<&'static str> {
    match field {
        "timeout" | "timeout_ms" => Some(COMMAND_TIME),
        "command" => Some(COMMAND_SIZE),
        "upload" => Some(UPLOAD_LIMIT),
        _ => None,
    }
}

/// The defaults, or the operator's.
pub(crate) fn bounds() -> anyhow::Result<Bounds> {
    let mut bounds = Bounds::default();
    if let Some(text) = variables::read(COMMAND_TIME)? {
        bounds.command_time = command_time(&text)?;
    }
    if let Some(text) = variables::read(COMMAND_SIZE)? {
        bounds.command_bytes = command_size(&text)?;
    }
    if let Some(text) = variables::read(UPLOAD_LIMIT)? {
        bounds.upload_bytes = upload_limit(&text)?;
    }
    if let Some(text) = variables::read(UPLOAD_ROOT)? {
        bounds.upload_root = Some(upload_root(&text)?);
    }
    Ok(bounds)
}

/// Longest time limit of a command.
fn command_time(text: &str) -> anyhow::Result<Duration> {
    match duration::parse(text) {
        Ok(time) if time.subsec_millis() == 0 => Ok(time),
        Ok(_) => anyhow::bail!("{COMMAND_TIME} is `{text}`: it must be whole seconds"),
        Err(error) => anyhow::bail!("{COMMAND_TIME} is `{text}` ({error}): it must be a time such as 2h"),
    }
}

/// Most bytes of a command.
fn command_size(text: &str) -> anyhow::Result<usize> {
    let most = Bounds::COMMAND_BYTES_MAX;
    let size: ByteSize = text.parse().map_err(|error| {
        anyhow::anyhow!("{COMMAND_SIZE} is `{text}` ({error}): it must be a size such as 1MiB")
    })?;
    match usize::try_from(size.0) {
        Ok(bytes) if (1..=most).contains(&bytes) => Ok(bytes),
        _ => anyhow::bail!("{COMMAND_SIZE} is `{text}`: 1 byte to 1MiB are possible"),
    }
}

/// Most bytes of one upload.
fn upload_limit(text: &str) -> anyhow::Result<Option<u64>> {
    let size: ByteSize = text.parse().map_err(|error| {
        anyhow::anyhow!(
            "{UPLOAD_LIMIT} is `{text}` ({error}): it must be a size such as 10MiB, or 0 for none"
        )
    })?;
    Ok(Some(size.0).filter(|size| *size > 0))
}

/// Directory of guests that uploads must stay in.
fn upload_root(text: &str) -> anyhow::Result<Utf8PathBuf> {
    let plain = text.starts_with('/') && !text.contains('\0') && !text.split('/').any(|part| part == "..");
    anyhow::ensure!(
        plain,
        "{UPLOAD_ROOT} is `{text}`: it must be an absolute path such as /tmp, without `..`"
    );
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_uploads_are_a_size_and_a_directory() {
        assert_eq!(upload_limit("10MiB").unwrap(), Some(10 << 20));
        assert_eq!(upload_limit("0").unwrap(), None);
        assert!(upload_limit("much").unwrap_err().to_string().contains(UPLOAD_LIMIT));
        assert_eq!(upload_root("/tmp").unwrap(), "/tmp");
        for wrong in ["", "tmp", "/tmp/..", "/tmp/../etc"] {
            assert!(upload_root(wrong).unwrap_err().to_string().contains(UPLOAD_ROOT), "{wrong}");
        }
    }

    #[test]
    fn bounds_of_commands_are_times_and_sizes() {
        assert_eq!(command_time("2h").unwrap(), Duration::from_hours(2));
        for wrong in ["", "0", "500ms", "long", "-1"] {
            assert!(command_time(wrong).unwrap_err().to_string().contains(COMMAND_TIME), "{wrong}");
        }
        assert_eq!(command_size("1KiB").unwrap(), 1024);
        assert_eq!(command_size("1MiB").unwrap(), Bounds::COMMAND_BYTES_MAX);
        for wrong in ["", "0", "2MiB", "much"] {
            assert!(command_size(wrong).unwrap_err().to_string().contains(COMMAND_SIZE), "{wrong}");
        }
    }
}
