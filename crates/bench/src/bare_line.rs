//! The command line of a bare machine: that of the driver, with files and sockets of the host in place of what a cage would
//! show, and running at once.

use std::collections::HashMap;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_driver_qemu::Recipe;
use serde_json::Value;

/// Arguments for a QEMU without a cage, whose sockets are in `directory`. Shared folders are not supported.
pub(crate) fn arguments(recipe: &Recipe, directory: &Utf8Path) -> Vec<String> {
    let mut outside: HashMap<String, String> =
        recipe.paths.iter().map(|(inside, path)| (inside.to_string(), path.to_string())).collect();
    for set in values(recipe, "-add-fd") {
        let (Some(descriptor), Some(number)) = (field(set, "fd"), field(set, "set")) else { continue };
        let is_it = |(found, _): &&(i32, Utf8PathBuf)| found.to_string() == descriptor;
        if let Some((_, path)) = recipe.files.iter().find(is_it) {
            outside.insert(format!("/dev/fdset/{number}"), path.to_string());
        }
    }
    let sockets: Vec<(String, String)> = recipe
        .sockets
        .iter()
        .map(|(descriptor, name)| (format!(",fd={descriptor},"), format!(",path={},", directory.join(name))))
        .collect();
    let mut arguments = Vec::new();
    let mut given = recipe.arguments.iter();
    while let Some(option) = given.next() {
        match option.as_str() {
            "-S" => continue,
            "-add-fd" => {
                given.next();
                continue;
            }
            _ => {}
        }
        arguments.push(match serde_json::from_str::<Value>(option) {
            Ok(mut node) if node.is_object() => {
                rename_files(&mut node, &outside);
                node.to_string()
            }
            _ => replaced(option, &outside, &sockets),
        });
    }
    arguments
}

/// Values of an option that may be given several times.
fn values<'a>(recipe: &'a Recipe, option: &'a str) -> impl Iterator<Item = &'a str> {
    let pairs = recipe.arguments.windows(2);
    pairs.filter(move |pair| pair[0] == option).map(|pair| pair[1].as_str())
}

/// The value of `name` in `a=b,c=d`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split(',')
        .find_map(|part| part.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
}

fn replaced(text: &str, outside: &HashMap<String, String>, sockets: &[(String, String)]) -> String {
    if let Some(path) = outside.get(text) {
        return path.clone();
    }
    let mut text = text.to_owned();
    for (inside, path) in sockets {
        text = text.replace(inside, path);
    }
    match field(&text, "mem-path").and_then(|inside| Some((inside.to_owned(), outside.get(inside)?))) {
        Some((inside, path)) => text.replace(&format!("mem-path={inside},"), &format!("mem-path={path},")),
        None => text,
    }
}

/// Puts paths of the host into a block node and all nodes below it.
fn rename_files(node: &mut Value, outside: &HashMap<String, String>) {
    for (key, value) in node.as_object_mut().into_iter().flatten() {
        match value {
            Value::String(path) if key == "filename" => {
                if let Some(found) = outside.get(path) {
                    path.clone_from(found);
                }
            }
            below => rename_files(below, outside),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_cage_is_left() {
        let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let disk = r#"{"driver":"qcow2","file":{"driver":"file","filename":"/dev/fdset/11"},"backing":{"driver":"raw","file":{"driver":"file","filename":"/disk-1-below-0"}}}"#;
        let recipe = Recipe {
            program: "/usr/bin/qemu".into(),
            arguments: text(&[
                "-nodefaults",
                "-S",
                "-kernel",
                "/kernel",
                "-object",
                "memory-backend-file,id=mem,mem-path=/memory,share=off",
                "-chardev",
                "socket,id=qmp,fd=10,server=on,wait=off",
                "-add-fd",
                "fd=21,set=11,opaque=disk1 scratch.qcow2",
                "-add-fd",
                "fd=61,set=11,opaque=disk1 scratch.qcow2",
                "-blockdev",
                disk,
            ]),
            paths: vec![
                ("/kernel".into(), "/k/vmlinux".into()),
                ("/memory".into(), "/m/zero".into()),
                ("/disk-1-below-0".into(), "/b/base.raw".into()),
            ],
            files: vec![(21, "/v/scratch.qcow2".into()), (61, "/v/scratch.qcow2".into())],
            sockets: vec![(10, "qmp.sock".to_owned())],
        };
        let bare = arguments(&recipe, Utf8Path::new("/v"));
        assert_eq!(
            bare[..7],
            text(&[
                "-nodefaults",
                "-kernel",
                "/k/vmlinux",
                "-object",
                "memory-backend-file,id=mem,mem-path=/m/zero,share=off",
                "-chardev",
                "socket,id=qmp,path=/v/qmp.sock,server=on,wait=off",
            ])
        );
        let node: Value = serde_json::from_str(&bare[8]).unwrap();
        assert_eq!(node["file"]["filename"], "/v/scratch.qcow2");
        assert_eq!(node["backing"]["file"]["filename"], "/b/base.raw");
        assert_eq!(bare.len(), 9);
    }
}
