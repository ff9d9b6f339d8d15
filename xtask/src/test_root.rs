//! The root of the machine tests: a copy of what they need of the user's root, and of nothing else.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{microvm, run};

/// Copies the default image, which has this digest, and both kernels. They are copied, not linked: some tests damage them.
pub(crate) fn furnish(root: &Path, from: &Path, digest: &str) -> Result<()> {
    let parts = [
        format!("images/{digest}"),
        format!("images/names/{}", microvm::IMAGE),
        format!("kernels/{}", microvm::BUILT_KERNEL),
        format!("kernels/{}", microvm::KERNEL),
    ];
    if let Some(part) = parts.iter().find(|part| !from.join(part).exists()) {
        bail!("{} has no {part}, which the machine tests need", from.display());
    }
    std::fs::create_dir_all(root).with_context(|| format!("making {}", root.display()))?;
    // What an earlier run had and this one has not would change what tests see.
    for folder in ["images", "kernels"].map(|name| root.join(name)).iter().filter(|folder| folder.exists()) {
        std::fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    let root = root.canonicalize().with_context(|| format!("looking at {}", root.display()))?;
    let mut copy = run::program("cp", Duration::from_secs(10 * 60));
    copy.args(["--archive", "--parents", "--sparse=always", "--reflink=auto", "--"]).args(parts);
    run::run(copy.arg(root).current_dir(from))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_the_default_image_and_the_kernels_are_copied_and_all_of_an_earlier_run_goes() {
        let place = std::env::temp_dir().join(format!("xtask-test-root-{}", std::process::id()));
        let (from, root) = (place.join("from"), place.join("root"));
        let write = |path: &Path, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let names = [
            "images/76e4/root.erofs",
            "images/names/debian-python",
            "kernels/built/vmlinux",
            "kernels/distribution/vmlinux",
        ];
        let other =
            ["images/99/root.erofs", "images/names/mine", "images/builds/key", "kernels/mine/vmlinux"];
        for name in names[..3].iter().chain(&other) {
            write(&from.join(name), name);
        }
        write(&root.join("images/names/old"), "old");
        let missing = furnish(&root, &from, "76e4").unwrap_err().to_string();
        assert!(missing.contains("kernels/distribution"), "{missing}");
        assert!(root.join("images/names/old").exists(), "a refusal changes nothing");
        write(&from.join(names[3]), names[3]);
        furnish(&root, &from, "76e4").unwrap();
        for name in names {
            assert_eq!(fs::read_to_string(root.join(name)).unwrap(), name);
        }
        for name in other.iter().chain(&["images/names/old"]) {
            assert!(!root.join(name).exists(), "{name}");
        }
        fs::remove_dir_all(&place).unwrap();
    }
}
