//! Recognition of directories that hold images of ours.

use camino::Utf8Path;
use microvm_durable::files::names_in;
use microvm_durable::manifest;

use crate::images::MANIFEST;

/// True if the store in `root` has an image whose manifest verifies. Changes nothing; whatever cannot be read is none of
/// ours.
#[must_use]
pub fn has_own_images(root: &Utf8Path) -> bool {
    let images = root.join("images");
    names_in(&images).unwrap_or_default().iter().any(|name| {
        // The checksum is over bytes that only we write in this way.
        let body = manifest::read::<serde_json::Value>(&images.join(name).join(MANIFEST), name);
        body.is_ok_and(|body| body["sha256"].is_string())
    })
}
