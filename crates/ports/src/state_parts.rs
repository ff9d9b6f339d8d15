//! Named parts of a saved state.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Longest name of a part, in bytes.
const LONGEST_NAME: usize = 32;

/// Name of one part of a saved state: 1 to 32 lower-case letters, digits and dashes, a letter first. Stores use it in file
/// names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PartName(String);

/// Refusal of a text as the name of a part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no name of a part of a saved state: 1 to 32 lower-case letters, digits and dashes, a letter first"
)]
pub struct BadPartName(String);

impl PartName {
    /// The name as a text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PartName {
    type Err = BadPartName;

    fn from_str(name: &str) -> Result<Self, BadPartName> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let begins = name.bytes().next().is_some_and(|first| first.is_ascii_lowercase());
        if begins && name.len() <= LONGEST_NAME && name.bytes().all(allowed) {
            Ok(Self(name.to_owned()))
        } else {
            Err(BadPartName(name.chars().take(2 * LONGEST_NAME).collect()))
        }
    }
}

impl TryFrom<String> for PartName {
    type Error = BadPartName;

    fn try_from(name: String) -> Result<Self, BadPartName> {
        name.parse()
    }
}

impl From<PartName> for String {
    fn from(name: PartName) -> Self {
        name.0
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Everything of a saved state but memory and disks: parts in the VMM's own formats, by name. Which parts there are is the
/// driver's choice (QEMU: its device state; Firecracker: one state file; Cloud Hypervisor: configuration and state). Clones
/// share the content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StateParts(BTreeMap<PartName, Bytes>);

impl StateParts {
    /// Name of the part of VMMs that have one only, which every store has kept since its first version.
    pub const DEVICE_STATE: &str = "device-state";

    /// Most parts of one state; the VMMs known have one to three.
    pub const MOST: usize = 16;

    /// A state of one part, named [`StateParts::DEVICE_STATE`].
    #[must_use]
    pub fn single(content: Bytes) -> Self {
        Self(BTreeMap::from([(PartName(Self::DEVICE_STATE.to_owned()), content)]))
    }

    /// Content of the only part, if that is named [`StateParts::DEVICE_STATE`].
    #[must_use]
    pub fn as_single(&self) -> Option<&Bytes> {
        self.get(Self::DEVICE_STATE).filter(|_| self.0.len() == 1)
    }

    /// Content of one part; `None` if there is none of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.0.iter().find(|(found, _)| found.as_str() == name).map(|(_, content)| content)
    }

    /// Parts in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&PartName, &Bytes)> {
        self.0.iter()
    }

    /// Bytes of all parts together.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.values().map(|content| content.len() as u64).sum()
    }

    /// True if there is no part, or none with content: a state that is not there yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if a store can keep these parts: 1 to 16 of them.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        (1..=Self::MOST).contains(&self.0.len())
    }
}

impl FromIterator<(PartName, Bytes)> for StateParts {
    /// Later parts replace earlier ones of the same name.
    fn from_iter<T: IntoIterator<Item = (PartName, Bytes)>>(parts: T) -> Self {
        Self(parts.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_file_names() {
        for good in ["device-state", "state", "config2", &"a".repeat(32)] {
            assert_eq!(good.parse::<PartName>().unwrap().as_str(), good);
        }
        for bad in ["", "../x", "a/b", "A", "1st", "-a", "a.b", "ä", &"a".repeat(33)] {
            bad.parse::<PartName>().unwrap_err();
            serde_json::from_value::<PartName>(serde_json::json!(bad)).unwrap_err();
        }
    }

    #[test]
    fn one_part_is_told_from_several() {
        let single = StateParts::single(Bytes::from_static(b"abc"));
        assert_eq!(single.as_single().unwrap().as_ref(), b"abc");
        assert_eq!((single.len(), single.is_empty(), single.is_possible()), (3, false, true));
        let named = |name: &str| (name.parse().unwrap(), Bytes::from_static(b"12"));
        let both: StateParts = [named("device-state"), named("configuration")].into_iter().collect();
        assert_eq!(both.as_single(), None, "a part that nobody looks at");
        assert_eq!(
            both.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["configuration", "device-state"]
        );
        assert!(!StateParts::default().is_possible());
        let many: StateParts = (0..17).map(|number| named(&format!("p{number}"))).collect();
        assert!(!many.is_possible());
    }
}
