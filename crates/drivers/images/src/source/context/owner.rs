//! Owners by the names that an image has.

use microvm_durable::error::bad_input;
use microvm_ports::StorageError;

use crate::source::builder::Builder;

/// Most bytes of `/etc/passwd` and `/etc/group`.
const FILE_MAX: u64 = 1 << 20;

/// Group of a user who is named without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsaid {
    /// The user's own, or for a number the same one, as with `COPY --chown`.
    SameNumber,
    /// The user's own, as with `USER`.
    OfUser,
}

/// User and group for `user[:group]`; root for an empty text.
pub(super) fn find(
    builder: &mut Builder,
    what: &str,
    text: &str,
    unsaid: Unsaid,
) -> Result<(u32, u32), StorageError> {
    if text.is_empty() {
        return Ok((0, 0));
    }
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let (uid, own) = match number(what, user)? {
        // A number need not be in the file.
        Some(uid) => (uid, line(builder, "etc/passwd", |fields| fields.get(2) == Some(&user))?),
        None => {
            let found = line(builder, "etc/passwd", |fields| fields.first() == Some(&user))?;
            let uid = found.as_ref().and_then(|fields| fields.get(2)?.parse().ok());
            (uid.ok_or_else(|| unknown(what, "user", user))?, found)
        }
    };
    let gid = match group {
        Some(group) => match number(what, group)? {
            Some(gid) => gid,
            None => {
                let found = line(builder, "etc/group", |fields| fields.first() == Some(&group))?;
                let gid = found.and_then(|fields| fields.get(2)?.parse().ok());
                gid.ok_or_else(|| unknown(what, "group", group))?
            }
        },
        None if unsaid == Unsaid::SameNumber && user.parse() == Ok(uid) => uid,
        None => own.and_then(|fields| fields.get(3)?.parse().ok()).unwrap_or(0),
    };
    Ok((uid, gid))
}

fn unknown(what: &str, kind: &str, name: &str) -> StorageError {
    bad_input(what, format!("the image has no {kind} `{}`", name.escape_debug()))
}

fn number(what: &str, text: &str) -> Result<Option<u32>, StorageError> {
    if text.is_empty() {
        return Err(bad_input(what, "an owner is `user` or `user:group`"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    // The greatest number means "nobody" to the kernel.
    let number = text.parse().ok().filter(|number| *number != u32::MAX);
    number
        .map(Some)
        .ok_or_else(|| bad_input(what, format!("`{text}` is too large for the number of an owner")))
}

/// Fields of the first line that fits.
fn line(
    builder: &mut Builder,
    file: &str,
    fits: impl Fn(&[&str]) -> bool,
) -> Result<Option<Vec<String>>, StorageError> {
    let content = builder.content(file.as_bytes(), FILE_MAX)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&content);
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    Ok(lines.find(|fields| fits(fields)).map(|fields| fields.into_iter().map(str::to_owned).collect()))
}
