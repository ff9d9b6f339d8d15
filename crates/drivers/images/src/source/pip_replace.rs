//! Removes the files of Python packages that other versions replace: pip itself does so, but not in a folder of its own.

use std::collections::BTreeSet;

use camino::Utf8Path;
use microvm_durable::files::names_in;
use microvm_ports::StorageError;

use super::builder::{Builder, path_error};

/// Largest list of files of one package.
const RECORD_MAX: u64 = 16 << 20;
const INFO: &str = ".dist-info";

/// Removes from `packages`, a folder of the image, what it has of each package that `target`, a folder of the host, brings.
pub(super) fn remove_old(
    builder: &mut Builder,
    packages: &str,
    target: &Utf8Path,
) -> Result<(), StorageError> {
    let new: BTreeSet<String> = names_in(target)?.iter().filter_map(|name| package(name)).collect();
    for info in builder.names(packages.as_bytes()) {
        if !package(&info).is_some_and(|name| new.contains(&name)) {
            continue;
        }
        let record = builder.content(format!("{packages}/{info}/RECORD").as_bytes(), RECORD_MAX)?;
        let record = String::from_utf8_lossy(&record.unwrap_or_default()).into_owned();
        for path in record.lines().filter_map(|line| resolve(packages, file(line))) {
            remove(builder, &path)?;
        }
        remove(builder, &format!("{packages}/{info}"))?;
    }
    Ok(())
}

fn remove(builder: &mut Builder, path: &str) -> Result<(), StorageError> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let removed = builder.tree.white_out(directory.as_bytes(), name.as_bytes());
    removed.map_err(|error| path_error(path, error))
}

/// The package of a folder `Name-version.dist-info`, spelled as all spellings of its name are compared.
fn package(info: &str) -> Option<String> {
    let (name, _version) = info.strip_suffix(INFO)?.rsplit_once('-')?;
    let parts: Vec<&str> = name.split(['-', '_', '.']).filter(|part| !part.is_empty()).collect();
    Some(parts.join("-").to_ascii_lowercase())
}

/// The first field of a line of RECORD, which is CSV.
fn file(line: &str) -> &str {
    match line.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().unwrap_or_default(),
        None => line.split(',').next().unwrap_or_default(),
    }
}

/// The path in the image of a file of a list; `None` for what is outside of the image or for the folder itself.
fn resolve(packages: &str, file: &str) -> Option<String> {
    if file.is_empty() || file.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = packages.split('/').collect();
    for part in file.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop()?;
        } else {
            parts.push(part);
        }
    }
    let path = parts.join("/");
    (!packages.starts_with(&path)).then_some(path)
}

#[cfg(test)]
mod tests {
    use microvm_durable::cancel::Cancel;
    use microvm_ports::Progress;

    use super::*;
    use crate::config::ArchiveLimits;
    use crate::erofs::TreeMemory;

    #[test]
    fn the_old_version_of_a_package_goes_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let (limits, memory) = (ArchiveLimits::default(), TreeMemory::of(1 << 20));
        let mut builder =
            Builder::new(folder.join("spool"), limits, memory, Cancel::default(), Progress::ignored())
                .unwrap();
        let packages = "usr/lib/python3.11/site-packages";
        let record = "the_tool/old.py,sha256=x,1\n\"the_tool/a,b.py\",,\n../../../bin/tool,,\n../../../../../../etc/name,,\n/etc/name,,\n..,,\n";
        for (path, content) in [
            (format!("{packages}/The.Tool-1.0.dist-info/RECORD"), record),
            (format!("{packages}/The.Tool-1.0.dist-info/METADATA"), "Name: The.Tool"),
            (format!("{packages}/the_tool/old.py"), ""),
            (format!("{packages}/the_tool/a,b.py"), ""),
            (format!("{packages}/the_tool/own.py"), ""),
            (format!("{packages}/other-1.0.dist-info/RECORD"), "other.py,,\n"),
            (format!("{packages}/other.py"), ""),
            ("usr/bin/tool".to_owned(), ""),
            ("etc/name".to_owned(), ""),
        ] {
            builder.put(&path, 0o644, content.as_bytes()).unwrap();
        }
        builder.tree.next_layer();
        std::fs::create_dir_all(folder.join("target/the_tool-2.0.dist-info")).unwrap();
        remove_old(&mut builder, packages, &folder.join("target")).unwrap();
        assert_eq!(builder.names(packages.as_bytes()), ["other-1.0.dist-info", "other.py", "the_tool"]);
        assert_eq!(builder.names(format!("{packages}/the_tool").as_bytes()), ["own.py"]);
        assert!(builder.has(b"etc/name") && !builder.has(b"usr/bin/tool"));
    }
}
