//! Access control lists that archives have as text become extended attributes.
//!
//! They wait as text until the image is complete: the names in them are those of its `/etc/passwd` and `/etc/group`, which
//! may come later in the archive, or in a later layer.

use microvm_archive::{Acl, AclKind, Principal, id_of};
use microvm_durable::error::bad_input;
use microvm_ports::StorageError;

use super::builder::Builder;
use crate::erofs::{Kind, NodeId, Xattr, xattrs_too_large};

/// Largest list of users or groups that is read, in bytes.
const NAMES_MAX: u64 = 1 << 20;

impl Builder {
    /// Puts lists among the attributes of an entry, as text.
    pub(super) fn hold_acls(&mut self, xattrs: &mut Vec<Xattr>, acls: Vec<(AclKind, Vec<u8>)>) {
        for (kind, text) in acls {
            self.has_acls = true;
            // Text counts: some archivers write the attribute, too.
            xattrs.retain(|xattr| xattr.name != kind.xattr());
            xattrs.push(Xattr { name: kind.record().to_vec(), value: text });
        }
    }

    /// Translates all lists that wait. `what` names the source in errors.
    ///
    /// # Errors
    /// If a list cannot be read, names somebody the image does not know, or is where none can be.
    pub(crate) fn translate_acls(&mut self, what: &str) -> Result<(), StorageError> {
        if !self.has_acls {
            return Ok(());
        }
        let (users, groups) = (
            self.content(b"etc/passwd", NAMES_MAX)?.unwrap_or_default(),
            self.content(b"etc/group", NAMES_MAX)?.unwrap_or_default(),
        );
        let id = |principal, name: &[u8]| match principal {
            Principal::User => id_of(&users, name),
            Principal::Group => id_of(&groups, name),
        };
        let mut waiting = vec![(0, Vec::new())];
        while let Some((node, path)) = waiting.pop() {
            self.translate(node, &id).map_err(|problem| {
                let shown = String::from_utf8_lossy(&path).escape_debug().to_string();
                bad_input(what, format!("the access control list of `{shown}` cannot be kept: {problem}"))
            })?;
            let below = self.tree.children(node);
            waiting.extend(below.map(|(name, child)| (child, [&path[..], b"/", name].concat())));
        }
        Ok(())
    }

    fn translate(
        &mut self,
        node: NodeId,
        id: &impl Fn(Principal, &[u8]) -> Option<u32>,
    ) -> Result<(), String> {
        let kind = &self.tree.node(node).kind;
        let (is_directory, is_link) = (matches!(kind, Kind::Directory(_)), matches!(kind, Kind::Symlink(_)));
        let attributes = self.tree.attributes_mut(node);
        while let Some((at, kind)) = attributes
            .xattrs
            .iter()
            .enumerate()
            .find_map(|(at, xattr)| Some((at, AclKind::of_record(&xattr.name)?)))
        {
            let text = attributes.xattrs.swap_remove(at).value;
            let list = Acl::parse(&text, id).map_err(|error| {
                format!("{error}: pack it with numbers (tar --numeric-owner), or without it")
            })?;
            match kind {
                _ if is_link => return Err("it is a symbolic link, and has none on Linux".into()),
                AclKind::Default if !is_directory => {
                    return Err("only directories have a default list".into());
                }
                AclKind::Default => {}
                // The kernel keeps both alike, and goes by the mode where it says all.
                AclKind::Access => attributes.mode = attributes.mode & 0o7000 | list.mode(),
            }
            if kind == AclKind::Default || !list.is_mode_only() {
                attributes.xattrs.push(Xattr { name: kind.xattr().to_vec(), value: list.to_xattr() });
            }
        }
        xattrs_too_large(&attributes.xattrs).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;
    use microvm_durable::cancel::Cancel;
    use microvm_ports::Progress;
    use tar::{EntryType, Header};

    use super::super::tar_image::{Whiteouts, add_tar};
    use super::*;
    use crate::config::ArchiveLimits;
    use crate::erofs::TreeMemory;

    const ACCESS: &str = "SCHILY.acl.access";
    const DEFAULT: &str = "SCHILY.acl.default";

    fn append(
        tar: &mut tar::Builder<Vec<u8>>,
        kind: EntryType,
        name: &str,
        content: &str,
        lists: &[(&str, &str)],
    ) {
        tar.append_pax_extensions(lists.iter().map(|(key, text)| (*key, text.as_bytes()))).unwrap();
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_size(content.len() as u64);
        if kind.is_symlink() {
            tar.append_link(&mut header, name, "nowhere").unwrap();
        } else {
            tar.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
    }

    /// Takes in one layer after the other and translates their lists.
    fn translated(layers: &[Vec<u8>]) -> Result<(tempfile::TempDir, Builder), StorageError> {
        let folder = tempfile::tempdir().unwrap();
        let spool = Utf8Path::from_path(folder.path()).unwrap().join("spool");
        let memory = TreeMemory::of(1 << 20);
        let limits = ArchiveLimits::default();
        let mut builder =
            Builder::new(spool, limits, memory, Cancel::default(), Progress::ignored()).unwrap();
        for layer in layers {
            builder.tree.next_layer();
            add_tar(&mut builder, "test", &layer[..], Whiteouts::Oci)?;
        }
        builder.translate_acls("test")?;
        Ok((folder, builder))
    }

    fn one(kind: EntryType, lists: &[(&str, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        append(&mut tar, kind, "made", "", lists);
        tar.into_inner().unwrap()
    }

    #[test]
    fn lists_become_attributes_and_modes_with_the_names_of_the_image() {
        let mut tar = tar::Builder::new(Vec::new());
        // As GNU tar writes them, before the files that say who these are.
        let access =
            "user::rw-\nuser:ann:rw-\nuser:root:r--\ngroup::r--\ngroup:video:r--\nmask::rw-\nother::---\n";
        append(&mut tar, EntryType::Regular, "file", "x", &[(ACCESS, access)]);
        append(
            &mut tar,
            EntryType::Directory,
            "d",
            "",
            &[(DEFAULT, "u::rwx,g::rx,o::-"), (ACCESS, "u::rwx,g::rx,o::-")],
        );
        append(&mut tar, EntryType::Regular, "etc/passwd", "root:x:0:0::/:\nann:x:7:7::/:\n", &[]);
        let mut later = tar::Builder::new(Vec::new());
        append(&mut later, EntryType::Regular, "etc/passwd", "root:x:0:0::/:\nann:x:1000:7::/:\n", &[]);
        append(&mut later, EntryType::Regular, "etc/group", "video:x:44:\n", &[]);
        let layers = [tar.into_inner().unwrap(), later.into_inner().unwrap()];
        let (_folder, builder) = translated(&layers).unwrap();
        let attributes = |path: &[u8]| {
            let node = builder.tree.find(path).unwrap().unwrap();
            builder.tree.node(node).attributes.clone()
        };
        let list = |text: &str| Acl::parse(text.as_bytes(), |_, _| None).unwrap().to_xattr();
        let file = attributes(b"file");
        assert_eq!((file.mode, file.xattrs.len()), (0o4660, 1));
        assert_eq!(file.xattrs[0].name, b"system.posix_acl_access");
        assert_eq!(file.xattrs[0].value, list("u::rw,u:1000:rw,u:0:r,g::r,g:44:r,m::rw,o::-"));
        // Where the mode says all, nothing else does.
        let directory = attributes(b"d");
        assert_eq!((directory.mode, directory.xattrs.len()), (0o4750, 1));
        assert_eq!(directory.xattrs[0].name, b"system.posix_acl_default");
        assert_eq!(directory.xattrs[0].value, list("u::rwx,g::rx,o::-"));
    }

    #[test]
    fn what_cannot_be_translated_is_refused_by_name() {
        let base = "u::rwx,g::rx,o::rx,m::rx";
        let many: String = (0..600).map(|id| format!(",u:{id}:r")).collect();
        for (kind, record, text, part) in [
            (EntryType::Regular, ACCESS, format!("{base},user:ann:r"), "no user is called `ann`"),
            (EntryType::Regular, ACCESS, format!("{base},group:ann:r"), "no group is called `ann`"),
            (EntryType::Regular, ACCESS, "rwx".to_owned(), "no entry"),
            (EntryType::Regular, DEFAULT, base.to_owned(), "only directories"),
            (EntryType::Symlink, ACCESS, base.to_owned(), "symbolic link"),
            (EntryType::Directory, DEFAULT, format!("{base}{many}"), "at most 4096"),
        ] {
            let refused = translated(&[one(kind, &[(record, &text)])]).err().map(|error| error.to_string());
            let refused = refused.unwrap_or_else(|| panic!("{text} was taken"));
            assert!(refused.contains("made") && refused.contains(part), "{refused}");
        }
    }
}
