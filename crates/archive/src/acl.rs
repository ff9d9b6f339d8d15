//! Access control lists: as archives write them (text) and as Linux keeps them (an extended attribute).
//!
//! Text is what `acl_to_text(3)`, star and libarchive write: entries `TAG:QUALIFIER:PERMISSIONS`, separated by commas or line
//! feeds, tags in full or as one letter; star and libarchive add the number of a named user or group as a fourth field. The
//! attribute is that of `linux/posix_acl_xattr.h`: version 2 in four bytes, then eight bytes for each entry, little endian.

const VERSION: u32 = 2;
const HEADER: usize = 4;
const ENTRY: usize = 8;
/// Id of entries that name nobody.
const NO_ID: u32 = u32::MAX;

/// Which list of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AclKind {
    /// Who may do what.
    Access,
    /// The access list of what is made in a directory; directories only.
    Default,
}

impl AclKind {
    /// The list that a pax record `key` holds as text, if it holds one.
    #[must_use]
    pub fn of_record(key: &[u8]) -> Option<Self> {
        [Self::Access, Self::Default].into_iter().find(|kind| key == kind.record())
    }

    /// The list that an extended attribute is, if it is one.
    #[must_use]
    pub fn of_xattr(name: &[u8]) -> Option<Self> {
        [Self::Access, Self::Default].into_iter().find(|kind| name == kind.xattr())
    }

    /// Key of the pax record with the list as text (star, GNU tar, libarchive).
    #[must_use]
    pub const fn record(self) -> &'static [u8] {
        match self {
            Self::Access => b"SCHILY.acl.access",
            Self::Default => b"SCHILY.acl.default",
        }
    }

    /// Name of the extended attribute.
    #[must_use]
    pub const fn xattr(self) -> &'static [u8] {
        match self {
            Self::Access => b"system.posix_acl_access",
            Self::Default => b"system.posix_acl_default",
        }
    }
}

/// A user or a group, named in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Principal {
    /// A user: `/etc/passwd`.
    User,
    /// A group: `/etc/group`.
    Group,
}

/// A list that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AclError {
    /// An entry is not in the form `TAG:QUALIFIER:PERMISSIONS`.
    #[error("`{0}` is no entry of an access control list")]
    Entry(String),
    /// It names a user without a number, and no such user is known.
    #[error("no user is called `{0}` here")]
    UnknownUser(String),
    /// It names a group without a number, and no such group is known.
    #[error("no group is called `{0}` here")]
    UnknownGroup(String),
    /// Entries that every list has are missing, or some are there twice.
    #[error(
        "it needs one entry each for owner, group and others, a mask if it names anybody, and nobody twice"
    )]
    Incomplete,
}

/// Tags of entries, with the numbers that the attribute has for them; their order is that of the attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
enum Tag {
    Owner = 0x01,
    User = 0x02,
    OwningGroup = 0x04,
    Group = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

const TAGS: [Tag; 6] = [Tag::Owner, Tag::User, Tag::OwningGroup, Tag::Group, Tag::Mask, Tag::Other];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    tag: Tag,
    id: u32,
    /// Bits as in modes: 4 reads, 2 writes, 1 executes.
    permissions: u16,
}

/// A valid list: in the kernel's order, with the entries that every list needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

impl Acl {
    /// Reads a list in text form. `id` gives the number of a name that stands without one.
    ///
    /// # Errors
    /// [`AclError`] if an entry cannot be read, a name is not known, or the kernel would refuse the list.
    pub fn parse(text: &[u8], id: impl Fn(Principal, &[u8]) -> Option<u32>) -> Result<Self, AclError> {
        let mut entries = Vec::new();
        for line in text.split(|byte| *byte == b'\n') {
            // `getfacl` adds a comment with the rights that the mask leaves.
            let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
            for entry in line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if !entry.is_empty() {
                    entries.push(parse_entry(entry, &id)?);
                }
            }
        }
        Self::of(entries).ok_or(AclError::Incomplete)
    }

    /// Reads the value of the extended attribute; `None` if the kernel would not have written it.
    #[must_use]
    pub fn from_xattr(value: &[u8]) -> Option<Self> {
        let (version, entries) = value.split_first_chunk::<HEADER>()?;
        let (entries, []) = entries.as_chunks::<ENTRY>() else { return None };
        if u32::from_le_bytes(*version) != VERSION {
            return None;
        }
        let entry = |entry: &[u8; ENTRY]| {
            let number = u16::from_le_bytes([entry[0], entry[1]]);
            Some(Entry {
                tag: TAGS.into_iter().find(|tag| *tag as u16 == number)?,
                permissions: Some(u16::from_le_bytes([entry[2], entry[3]])).filter(|bits| *bits <= 7)?,
                id: u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]),
            })
        };
        Self::of(entries.iter().map(entry).collect::<Option<_>>()?)
    }

    fn of(mut entries: Vec<Entry>) -> Option<Self> {
        for entry in &mut entries {
            match entry.tag {
                Tag::User | Tag::Group if entry.id == NO_ID => return None,
                Tag::User | Tag::Group => {}
                _ => entry.id = NO_ID,
            }
        }
        entries.sort_unstable();
        let twice = entries.windows(2).any(|pair| (pair[0].tag, pair[0].id) == (pair[1].tag, pair[1].id));
        let list = Self(entries);
        let base = [Tag::Owner, Tag::OwningGroup, Tag::Other].into_iter().all(|tag| list.bits(tag).is_some());
        let named = list.0.iter().any(|entry| matches!(entry.tag, Tag::User | Tag::Group));
        (base && !twice && (!named || list.bits(Tag::Mask).is_some())).then_some(list)
    }

    fn bits(&self, tag: Tag) -> Option<u16> {
        self.0.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions)
    }

    /// Permission bits (`0o000` to `0o777`) of a file with this access list: those of the mask stand for the group.
    #[must_use]
    pub fn mode(&self) -> u16 {
        let bits = |tag| self.bits(tag).unwrap_or(0);
        let group = self.bits(Tag::Mask).unwrap_or_else(|| bits(Tag::OwningGroup));
        bits(Tag::Owner) << 6 | group << 3 | bits(Tag::Other)
    }

    /// True if the mode alone says all that the list says.
    #[must_use]
    pub const fn is_mode_only(&self) -> bool {
        self.0.len() == 3
    }

    /// Value of the extended attribute.
    #[must_use]
    pub fn to_xattr(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(HEADER + ENTRY * self.0.len());
        value.extend(VERSION.to_le_bytes());
        for Entry { tag, id, permissions } in &self.0 {
            value.extend((*tag as u16).to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    /// Text with numbers in place of names, its entries separated by commas: some readers of pax end a value at a line feed.
    #[must_use]
    pub fn to_text(&self) -> String {
        let entry = |Entry { tag, id, permissions }: &Entry| {
            let (name, number) = match tag {
                Tag::Owner => ("user", String::new()),
                Tag::User => ("user", id.to_string()),
                Tag::OwningGroup => ("group", String::new()),
                Tag::Group => ("group", id.to_string()),
                Tag::Mask => ("mask", String::new()),
                Tag::Other => ("other", String::new()),
            };
            let bit = |bit, shown| if permissions & bit == 0 { '-' } else { shown };
            format!("{name}:{number}:{}{}{}", bit(4, 'r'), bit(2, 'w'), bit(1, 'x'))
        };
        self.0.iter().map(entry).collect::<Vec<_>>().join(",")
    }
}

fn parse_entry(text: &[u8], id: &impl Fn(Principal, &[u8]) -> Option<u32>) -> Result<Entry, AclError> {
    let bad = || AclError::Entry(shown(text));
    let fields: Vec<&[u8]> = text.split(|byte| *byte == b':').map(<[u8]>::trim_ascii).collect();
    let (tag, rest) = fields.split_first().ok_or_else(bad)?;
    let (name, permissions, number) = match (*tag, rest) {
        // Neither names anybody; the field for it may be missing.
        (b"m" | b"mask" | b"o" | b"other", [permissions]) => (&b""[..], *permissions, None),
        (_, [name, permissions]) => (*name, *permissions, None),
        (_, [name, permissions, number]) => (*name, *permissions, Some(*number)),
        _ => return Err(bad()),
    };
    let decimal = |text: &[u8]| {
        // `parse` takes a sign, too.
        let digits = text.iter().all(u8::is_ascii_digit).then_some(text)?;
        let number: Option<u32> = std::str::from_utf8(digits).ok()?.parse().ok();
        number.filter(|number| *number != NO_ID)
    };
    let (tag, named) = match (*tag, name.is_empty()) {
        (b"u" | b"user", true) => (Tag::Owner, None),
        (b"u" | b"user", false) => (Tag::User, Some(Principal::User)),
        (b"g" | b"group", true) => (Tag::OwningGroup, None),
        (b"g" | b"group", false) => (Tag::Group, Some(Principal::Group)),
        (b"m" | b"mask", true) => (Tag::Mask, None),
        (b"o" | b"other", true) => (Tag::Other, None),
        _ => return Err(bad()),
    };
    let id = match (named, number) {
        (None, None) => NO_ID,
        (None, Some(_)) => return Err(bad()),
        (Some(_), Some(number)) => decimal(number).ok_or_else(bad)?,
        (Some(principal), None) => {
            let name = unquote(name);
            decimal(&name).or_else(|| id(principal, &name)).ok_or_else(|| match principal {
                Principal::User => AclError::UnknownUser(shown(&name)),
                Principal::Group => AclError::UnknownGroup(shown(&name)),
            })?
        }
    };
    let mut bits = 0;
    for letter in permissions {
        bits |= match letter {
            b'r' => 4,
            b'w' => 2,
            b'x' => 1,
            b'-' => 0,
            _ => return Err(bad()),
        };
    }
    if permissions.is_empty() { Err(bad()) } else { Ok(Entry { tag, id, permissions: bits }) }
}

fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(200)]).escape_debug().to_string()
}

/// A name without the quoting of `acl_to_text(3)`, which writes spaces, commas and colons as `\` and three octal digits.
fn unquote(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        let byte = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    plain
}

/// Number of `name` in the text of `/etc/passwd` or `/etc/group`: both have it in their third field.
#[must_use]
pub fn id_of(database: &[u8], name: &[u8]) -> Option<u32> {
    database.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let found = fields.next() == Some(name);
        let number = fields.nth(1).filter(|_| found)?;
        std::str::from_utf8(number).ok()?.parse().ok()
    })
}

#[cfg(test)]
#[path = "acl_tests.rs"]
mod tests;
