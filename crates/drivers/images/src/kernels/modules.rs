//! Picks the modules a kernel needs to reach its root, in an order in which they can be loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::error::{bad_input, io_error};
use microvm_ports::StorageError;

use super::elf;
use crate::source::compression::decompress;

/// Modules that a kernel needs to boot, loadable or built in.
const NEEDED: [&str; 7] =
    ["virtio", "virtio_ring", "virtio_mmio", "virtio_blk", "virtio_console", "erofs", "overlay"];
/// Modules that are taken if they exist. The last three are devices that programs expect (images, file systems of their own, tunnels): the
/// guest has no modules to load later.
const WANTED: [&str; 8] =
    ["ext4", "virtio_balloon", "virtio_rng", "9pnet_virtio", "9p", "loop", "fuse", "tun"];
/// Largest module that is believed.
const MODULE_MAX: u64 = 64 << 20;

/// A module: its name and its uncompressed content.
pub(crate) type Module = (String, Vec<u8>);

/// Chooses from the unpacked tree `lib/modules/<release>` of a kernel package.
pub(crate) fn choose(tree: &Utf8Path) -> Result<Vec<Module>, StorageError> {
    let builtin_file = tree.join("modules.builtin");
    let builtin: BTreeSet<String> = std::fs::read_to_string(&builtin_file)
        .map_err(io_error("reading", &builtin_file))?
        .lines()
        .filter_map(module_name)
        .collect();
    let files = index(tree)?;
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in NEEDED.iter().chain(&WANTED) {
        let present = load(name, &files, &builtin, &mut order, &mut seen)?;
        if !present && NEEDED.contains(name) {
            return Err(bad_input(
                "the kernel package",
                format!("it has no module `{name}`, neither built in nor as a file"),
            ));
        }
    }
    Ok(order)
}

/// Puts a module behind all it depends on; says whether it is there at all. Recursion is bounded by `seen`.
fn load(
    name: &str,
    files: &BTreeMap<String, Utf8PathBuf>,
    builtin: &BTreeSet<String>,
    order: &mut Vec<Module>,
    seen: &mut BTreeSet<String>,
) -> Result<bool, StorageError> {
    if builtin.contains(name) || seen.contains(name) {
        return Ok(true);
    }
    let Some(path) = files.get(name) else { return Ok(false) };
    seen.insert(name.to_owned());
    let content = read(path)?;
    let info = elf::section(&content, b".modinfo")
        .ok_or_else(|| bad_input(path.as_str(), "it is not a kernel module"))?;
    for (key, value) in
        info.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='))
    {
        let names: Vec<&str> = match key {
            "depends" => value.split(',').filter(|name| !name.is_empty()).collect(),
            // "pre: a b post: c": what comes before; a name that is no module is somebody's alias, and optional.
            "softdep" => value.strip_prefix("pre:").map_or(Vec::new(), |rest| {
                rest.split_whitespace().take_while(|word| *word != "post:").collect()
            }),
            _ => continue,
        };
        for dependency in names {
            let dependency = dependency.replace('-', "_");
            if !load(&dependency, files, builtin, order, seen)? && key == "depends" {
                return Err(bad_input(
                    "the kernel package",
                    format!("the module `{name}` needs `{dependency}`, which is missing"),
                ));
            }
        }
    }
    order.push((name.to_owned(), content));
    Ok(true)
}

fn index(tree: &Utf8Path) -> Result<BTreeMap<String, Utf8PathBuf>, StorageError> {
    let mut files = BTreeMap::new();
    let mut pending = vec![tree.join("kernel")];
    while let Some(directory) = pending.pop() {
        for entry in directory.read_dir_utf8().map_err(io_error("listing", &directory))? {
            let entry = entry.map_err(io_error("listing", &directory))?;
            if entry.file_type().map_err(io_error("examining", entry.path()))?.is_dir() {
                pending.push(entry.into_path());
            } else if let Some(name) = module_name(entry.path().as_str()) {
                files.insert(name, entry.into_path());
            }
        }
    }
    Ok(files)
}

/// `kernel/fs/a-b.ko.xz` is the module `a_b`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = [".ko", ".ko.xz", ".ko.gz", ".ko.zst"].iter().find_map(|ending| file.strip_suffix(ending))?;
    Some(stem.replace('-', "_"))
}

fn read(path: &Utf8Path) -> Result<Vec<u8>, StorageError> {
    let file = std::fs::File::open(path).map_err(io_error("opening", path))?;
    let mut content = Vec::new();
    decompress(path.as_str(), file)?
        .take(MODULE_MAX)
        .read_to_end(&mut content)
        .map_err(io_error("reading", path))?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_the_names_the_kernel_uses() {
        assert_eq!(
            module_name("kernel/drivers/char/hw_random/virtio-rng.ko.xz").as_deref(),
            Some("virtio_rng")
        );
        assert_eq!(module_name("modules.order"), None);
    }
}
