//! Extended attributes and access control lists through archives, against an agent on this host.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say why they skip"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{HostAgent, bytes_of, collect};
use microvm_archive::Acl;
use microvm_ports::Holes;

/// An archive of one file with these pax records.
fn with_records(kind: tar::EntryType, records: &[(&str, &[u8])], content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().copied()).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    if kind.is_symlink() {
        builder.append_link(&mut header, "made", "nowhere").unwrap();
    } else {
        builder.append_data(&mut header, "made", content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Value of an extended attribute; `None` if there is none.
fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0u8; 4096];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    Some(value[..length].to_vec())
}

/// The attribute of a list in text form.
fn list(text: &str) -> Vec<u8> {
    Acl::parse(text.as_bytes(), |_, _| None).unwrap().to_xattr()
}

/// False where directories for temporary files have no access control lists, which is said.
fn has_lists(folder: &Path) -> bool {
    let probe = folder.join("probe");
    std::fs::write(&probe, "").unwrap();
    let value = list("u::rw,u:7:r,g::r,m::r,o::-");
    let set =
        rustix::fs::setxattr(&probe, "system.posix_acl_access", &value, rustix::fs::XattrFlags::empty());
    if set.is_err() {
        println!("SKIPPED: no access control lists in {}", folder.display());
    }
    set.is_ok()
}

#[tokio::test]
async fn extended_attributes_are_set_and_what_is_not_is_told() {
    let Some(agent) = HostAgent::start().await else { return };
    let guest = agent.connect().await;
    let records: [(&str, &[u8]); 3] = [
        ("SCHILY.xattr.user.kept", b"a=b\n\0c"),
        ("SCHILY.xattr.nowhere.x", b"y"),
        (
            "SCHILY.acl.access",
            b"user::rw-\nuser:nobody-has-this-name:r--\ngroup::r--\nmask::r--\nother::---\n",
        ),
    ];
    for kind in [tar::EntryType::Regular, tar::EntryType::Directory] {
        let (name, bytes) = (format!("{kind:?}"), with_records(kind, &records, b""));
        let target = agent.path(&name);
        let left_out = guest.push_archive(&target, None, bytes_of(vec![bytes])).await.unwrap().left_out;
        let told: Vec<_> = left_out.entries.iter().map(|entry| entry.reason.as_str()).collect();
        assert_eq!(left_out.count, 2, "{kind:?}: {told:?}");
        assert!(told[0].contains("no user is called `nobody-has-this-name`"), "{told:?}");
        assert!(told[1].contains("nowhere.x"), "{told:?}");
        let made = agent.directory.path().join(&name).join("made");
        assert_eq!(xattr(&made, "user.kept").unwrap(), b"a=b\n\0c", "{kind:?}");
        // The group bits of the entry are the mask of the list that could not be set: the group itself gets none of them.
        let mode = std::os::unix::fs::PermissionsExt::mode(&made.metadata().unwrap().permissions());
        assert_eq!(mode & 0o070, 0, "{kind:?}: {mode:o}");
    }
    // The kernel has no such attributes on links.
    let bytes = with_records(tar::EntryType::Symlink, &records[..1], b"");
    let left_out =
        guest.push_archive(&agent.path("link"), None, bytes_of(vec![bytes])).await.unwrap().left_out;
    assert_eq!(left_out.count, 1);
    assert!(agent.directory.path().join("link/made").is_symlink());
}

#[tokio::test]
async fn access_control_lists_go_in_and_out() {
    let Some(agent) = HostAgent::start().await else { return };
    if !has_lists(agent.directory.path()) {
        return;
    }
    let guest = agent.connect().await;
    // Lines with names, as GNU tar writes them; commas with names and numbers, as star and libarchive do.
    let access: [&[u8]; 2] = [
        b"user::rw-\nuser:root:r--\nuser:1000:rw-\ngroup::r--\nmask::rw-\nother::---\n",
        b"user::rw-,user:root:r--:0,user:somebody:rw-:1000,group::r--,mask::rw-,other::---",
    ];
    let default = "user::rwx,group::r-x,group:44:rwx,mask::rwx,other::---";
    let kept = list("u::rw,u:0:r,u:1000:rw,g::r,m::rw,o::-");
    for (number, text) in access.into_iter().enumerate() {
        let records = [("SCHILY.acl.access", text), ("SCHILY.acl.default", default.as_bytes())];
        let in_file = with_records(tar::EntryType::Regular, &records[..1], b"content");
        let in_directory = with_records(tar::EntryType::Directory, &records, b"");
        for (kind, bytes) in [("file", in_file), ("directory", in_directory)] {
            let name = format!("{kind}-{number}");
            let pushed = guest.push_archive(&agent.path(&name), None, bytes_of(vec![bytes])).await.unwrap();
            assert_eq!(pushed.left_out.count, 0, "{name}: {:?}", pushed.left_out);
            // Out, and in again.
            let pulled = guest.pull_archive(&agent.path(&name), &[], Holes::Zeros).await.unwrap();
            let packed = collect(pulled.data).await;
            assert_eq!(pulled.left_out.await.unwrap().count, 0);
            let again = agent.path("again");
            guest.push_archive(&again, None, bytes_of(vec![packed])).await.unwrap();
            let folder = agent.directory.path();
            for made in [folder.join(&name).join("made"), folder.join("again").join(&name).join("made")] {
                assert_eq!(xattr(&made, "system.posix_acl_access"), Some(kept.clone()), "{}", made.display());
                let default = (kind == "directory").then(|| list(default));
                assert_eq!(xattr(&made, "system.posix_acl_default"), default, "{}", made.display());
            }
        }
    }
}

/// A list of the target would give others what the archive does not.
#[tokio::test]
async fn what_is_unpacked_inherits_no_list_of_its_directory() {
    let Some(agent) = HostAgent::start().await else { return };
    let folder = agent.directory.path();
    if !has_lists(folder) {
        return;
    }
    let guest = agent.connect().await;
    let inherited = list("u::rwx,u:1000:rwx,g::r-x,m::rwx,o::---");
    let flags = rustix::fs::XattrFlags::empty();
    for kind in
        [tar::EntryType::Regular, tar::EntryType::Directory, tar::EntryType::Symlink, tar::EntryType::Fifo]
    {
        let target = folder.join(format!("{kind:?}"));
        std::fs::create_dir(&target).unwrap();
        rustix::fs::setxattr(&target, "system.posix_acl_default", &inherited, flags).unwrap();
        let bytes = with_records(kind, &[("comment", b"none")], b"");
        let pushed = guest.push_archive(&agent.path(&format!("{kind:?}")), None, bytes_of(vec![bytes])).await;
        assert_eq!(pushed.unwrap().left_out.count, 0, "{kind:?}");
        let made = target.join("made");
        for name in ["system.posix_acl_access", "system.posix_acl_default"] {
            assert_eq!(xattr(&made, name), None, "{kind:?}");
        }
        if kind != tar::EntryType::Symlink {
            let mode = std::os::unix::fs::PermissionsExt::mode(&made.metadata().unwrap().permissions());
            assert_eq!(mode & 0o777, 0o644, "{kind:?}");
        }
        // What is there already keeps its own.
        assert_eq!(xattr(&target, "system.posix_acl_default"), Some(inherited.clone()));
    }
}

/// The output of a program; `None` where it is not installed, which is said.
fn run(program: &str, arguments: &[&str], folder: &Path) -> Option<Vec<u8>> {
    match Command::new(program).args(arguments).current_dir(folder).output() {
        Ok(output) => {
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            Some(output.stdout)
        }
        Err(error) => {
            println!("SKIPPED: {program}: {error}");
            None
        }
    }
}

/// Every attribute of everything below a folder.
fn attributes(folder: &Path) -> Vec<(PathBuf, String, Vec<u8>)> {
    let mut found = Vec::new();
    for name in ["file", "folder", "folder/empty"] {
        for key in ["user.note", "system.posix_acl_access", "system.posix_acl_default"] {
            let value = xattr(&folder.join(name), key);
            found.extend(value.map(|value| (name.into(), key.to_owned(), value)));
        }
    }
    found
}

#[tokio::test]
async fn archives_of_gnu_tar_and_libarchive_keep_their_attributes_both_ways() {
    let Some(agent) = HostAgent::start().await else { return };
    let (guest, folder) = (agent.connect().await, agent.directory.path());
    if !has_lists(folder) {
        return;
    }
    let source = folder.join("source");
    std::fs::create_dir_all(source.join("folder")).unwrap();
    std::fs::write(source.join("file"), "content").unwrap();
    std::fs::write(source.join("folder/empty"), "").unwrap();
    let set = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::setxattr(source.join(name), key, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("file", "user.note", b"two\nlines");
    set("file", "system.posix_acl_access", &list("u::rw,u:0:r,u:4242:rw,g::r,m::rw,o::-"));
    set("folder", "system.posix_acl_access", &list("u::rwx,g::rx,g:4242:rwx,m::rwx,o::-"));
    set("folder", "system.posix_acl_default", &list("u::rwx,u:4242:rx,g::rx,m::rx,o::-"));
    let wanted = attributes(&source);
    assert_eq!(wanted.len(), 4);
    let gnu: &[&str] = &["--acls", "--xattrs", "--format=posix", "-cf", "-", "-C", "source", "."];
    let bsd: &[&str] = &["--acls", "--xattrs", "--format=pax", "-cf", "-", "-C", "source", "."];
    for (program, pack) in [("tar", gnu), ("bsdtar", bsd)] {
        let Some(bytes) = run(program, pack, folder) else { continue };
        let target = folder.join(format!("from-{program}"));
        let pushed =
            guest.push_archive(target.as_os_str().as_encoded_bytes(), None, bytes_of(vec![bytes])).await;
        let left_out = pushed.unwrap().left_out;
        assert_eq!((attributes(&target), left_out.count), (wanted.clone(), 0), "{program}: {left_out:?}");
        // And out: that program unpacks what the agent packs.
        let pulled =
            guest.pull_archive(target.as_os_str().as_encoded_bytes(), &[], Holes::Zeros).await.unwrap();
        std::fs::write(folder.join("out.tar"), collect(pulled.data).await).unwrap();
        let back = folder.join(format!("back-{program}"));
        std::fs::create_dir(&back).unwrap();
        let into = format!("back-{program}");
        run(program, &["--acls", "--xattrs", "-xpf", "out.tar", "-C", &into], folder);
        assert_eq!(attributes(&back.join(format!("from-{program}"))), wanted, "unpacked by {program}");
    }
}
