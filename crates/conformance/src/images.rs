//! The suite of [`ImageStore`]: images.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use microvm_ports::progress::Progress;
use microvm_ports::storage::{ImageConfig, ImageSource, ImageStore, StorageError};

use crate::{Must, Suite};

/// Gives the suite its store.
#[async_trait]
pub trait ImageHarness: Send + Sync {
    /// Images, none yet.
    async fn images(&self) -> Arc<dyn ImageStore>;

    /// A folder on the host that an image can be made of. `variant`: 0 gives always the same content, others differ.
    async fn folder(&self, variant: u32) -> Utf8PathBuf;

    /// Longest time one check may take.
    fn limit(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// Runs every check over the images of `harness`.
///
/// # Panics
/// If a check fails.
pub async fn run(harness: &dyn ImageHarness) {
    let mut suite = Suite::new("images", harness.limit());
    suite.check("an image is added, found and removed", image_life(harness)).await;
    suite.check("the same content is stored once", image_same(harness)).await;
    suite.check("equal files with another configuration are another image", image_config(harness)).await;
    suite.check("a name moves to the newer image, garbage is collected", image_name_moves(harness)).await;
    suite.check("an image in use is not removed", image_in_use(harness)).await;
    suite.check("a damaged image is refused and named", image_damaged(harness)).await;
    suite.check("a source that is not there is refused", image_bad_source(harness)).await;
    suite.finish();
}

async fn add(
    images: &Arc<dyn ImageStore>,
    name: &str,
    folder: &Utf8PathBuf,
) -> microvm_ports::storage::ImageInfo {
    let source = ImageSource::Path { path: folder.clone() };
    let config = ImageConfig {
        environment: BTreeMap::from([("KEY".to_owned(), "value".to_owned())]),
        ..ImageConfig::default()
    };
    images.add_image(name, &source, &[], &config, Progress::ignored()).await.must("adding an image")
}

async fn image_life(harness: &dyn ImageHarness) {
    let images = harness.images().await;
    assert_eq!(images.images().await.must("listing").found, []);
    let error = images.image("sample").await.must_fail("finding what is not there");
    assert!(matches!(error, StorageError::UnknownImage(_)), "wrong error: {error}");
    let info = add(&images, "sample", &harness.folder(0).await).await;
    assert_eq!(info.names, ["sample"]);
    assert_eq!(info.config.environment["KEY"], "value");
    let hash = info.digest.strip_prefix("sha256:").unwrap_or_default();
    assert!(hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "odd digest {}", info.digest);
    for reference in ["sample", &info.digest, &info.digest[..19]] {
        let found = images.image(reference).await.must("finding it");
        assert_eq!(found.info, info, "found by {reference}");
        assert_eq!(std::fs::metadata(&found.path).must("its file").len(), info.size);
    }
    images.remove_image("sample", &[]).await.must("removing it");
    let error = images.image("sample").await.must_fail("finding it after removal");
    assert!(matches!(error, StorageError::UnknownImage(_)), "wrong error: {error}");
    assert_eq!(images.images().await.must("listing").found, []);
}

async fn image_same(harness: &dyn ImageHarness) {
    let images = harness.images().await;
    let folder = harness.folder(0).await;
    let first = add(&images, "one", &folder).await;
    let second = add(&images, "two", &folder).await;
    assert_eq!(first.digest, second.digest, "the same folder gave two digests");
    assert_eq!(images.images().await.must("listing").found.len(), 1);
    images.remove_image("one", &[]).await.must("removing one name");
    images.image("two").await.must("finding it by the other name");
}

async fn image_config(harness: &dyn ImageHarness) {
    let images = harness.images().await;
    let source = ImageSource::Path { path: harness.folder(0).await };
    let mut digests = Vec::new();
    for user in ["1000:1000", ""] {
        let config = ImageConfig { user: user.to_owned(), ..ImageConfig::default() };
        let name = format!("user{}", user.len());
        let added = images.add_image(&name, &source, &[], &config, Progress::ignored()).await;
        digests.push(added.must("adding an image").digest);
    }
    assert_ne!(digests[0], digests[1], "two configurations gave one digest");
    for reference in ["user9", &digests[0]] {
        let found = images.image(reference).await.must("finding the first").info;
        assert_eq!(found.config.user, "1000:1000", "a later import changed the user of {reference}");
        assert_eq!(found.names, ["user9"]);
    }
    images.remove_image("user0", &digests[..1]).await.must("removing the second");
    let left = images.image("user9").await.must("finding the first after the second is gone");
    assert!(std::fs::read(&left.path).is_ok_and(|data| data.len() as u64 == left.info.size));
}

async fn image_name_moves(harness: &dyn ImageHarness) {
    let images = harness.images().await;
    let old = add(&images, "moving", &harness.folder(0).await).await;
    let new = add(&images, "moving", &harness.folder(1).await).await;
    assert_ne!(old.digest, new.digest, "different folders gave one digest");
    assert_eq!(images.image("moving").await.must("finding by name").info.digest, new.digest);
    let kept = images.collect_garbage(std::slice::from_ref(&old.digest)).await.must("collecting");
    images.image(&old.digest).await.must("finding the old one, which is in use");
    let freed = images.collect_garbage(&[]).await.must("collecting again");
    assert!(freed > 0, "nothing was freed ({kept} before)");
    images.image(&old.digest).await.must_fail("finding the old one after it was collected");
    images.image("moving").await.must("finding the new one");
}

async fn image_in_use(harness: &dyn ImageHarness) {
    let images = harness.images().await;
    let info = add(&images, "used", &harness.folder(0).await).await;
    let error = images
        .remove_image("used", std::slice::from_ref(&info.digest))
        .await
        .must_fail("removing an image in use");
    assert!(matches!(error, StorageError::InUse { .. }), "wrong error: {error}");
    images.image("used").await.must("finding it after the refusal");
}

async fn image_damaged(harness: &dyn ImageHarness) {
    let images = harness.images().await;
    add(&images, "hurt", &harness.folder(0).await).await;
    let path = images.image("hurt").await.must("finding it").path;
    let mut permissions = std::fs::metadata(&path).must("its permissions").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    std::fs::set_permissions(&path, permissions).must("making it writable");
    let mut data = std::fs::read(&path).must("reading it");
    let middle = data.len() / 2;
    data[middle] ^= 1;
    std::fs::write(&path, data).must("flipping one bit");
    let error = images.image("hurt").await.must_fail("using a damaged image");
    assert!(matches!(error, StorageError::Damaged { .. }), "wrong error: {error}");
    let wrong = images.verify_all(Progress::ignored()).await.must("verifying");
    assert_eq!(wrong.len(), 1, "{wrong:?}");
}

async fn image_bad_source(harness: &dyn ImageHarness) {
    let images = harness.images().await;
    let source = ImageSource::Path { path: harness.folder(7).await.join("absent") };
    let config = ImageConfig::default();
    images.add_image("bad", &source, &[], &config, Progress::ignored()).await.must_fail("adding nothing");
    assert_eq!(images.images().await.must("listing").found, []);
}
