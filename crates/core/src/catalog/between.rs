//! Names of images between the steps of a build: held while the build goes on, and removed with it.

use std::sync::PoisonError;

use microvm_types::VmId;

use super::Catalog;
use crate::error::ServiceError;

/// Begins every such name; the rest is an id.
const FORM: &str = "build-";

/// True for names that only builds may give.
pub(super) fn is_reserved(name: &str) -> bool {
    name.strip_prefix(FORM).is_some_and(|id| id.parse::<VmId>().is_ok())
}

/// Names that one build gave. When the build is dropped, they are removed in the background.
pub(super) struct Between {
    catalog: Catalog,
    /// Those that are not removed yet.
    names: Vec<String>,
    /// All of them.
    given: Vec<String>,
}

impl Between {
    pub(super) fn new(catalog: &Catalog) -> Self {
        Self { catalog: catalog.clone(), names: Vec::new(), given: Vec::new() }
    }

    /// A name that nobody uses.
    pub(super) fn name(&mut self) -> String {
        let shared = &self.catalog.context.shared;
        let name = format!("{FORM}{}", shared.ports.new_vm_id());
        // Held before the image exists, so that a garbage collection in between leaves it alone.
        shared.build_names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        self.names.push(name.clone());
        self.given.push(name.clone());
        name
    }

    /// Removes all images but those of these names: the one on which the next step builds, and the one that it makes. So a build takes the
    /// disk space of two images, however many steps it has.
    pub(super) async fn keep_only(&mut self, kept: &[&str]) {
        while let Some(at) = self.names.iter().position(|name| !kept.contains(&name.as_str())) {
            // Forgotten afterwards: a build that is dropped here removes it in the background.
            remove(&self.catalog, &self.names[at]).await;
            self.names.remove(at);
        }
    }

    /// Removes the images that nothing else needs, and the names of all; returns these.
    pub(super) async fn remove(mut self) -> Vec<String> {
        self.keep_only(&[]).await;
        std::mem::take(&mut self.given)
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        let shared = &self.catalog.context.shared;
        // A server that ends removes them when it starts again.
        if self.names.is_empty() || shared.ending.is_cancelled() {
            return;
        }
        let (catalog, names) = (self.catalog.clone(), std::mem::take(&mut self.names));
        shared.actors.spawn(async move {
            for name in names {
                remove(&catalog, &name).await;
            }
        });
    }
}

/// Removes one name, and its image if nothing else needs that. A failure is logged: the build has something else to tell.
async fn remove(catalog: &Catalog, name: &str) {
    let shared = &catalog.context.shared;
    let images = &shared.ports.images;
    // A step that failed never used its name.
    if let Ok(found) = images.image(name).await {
        let removed = if catalog.is_needed(&found.info.digest) {
            images.remove_image_name(name).await
        } else {
            images.remove_image(name, &[]).await
        };
        if let Err(error) = removed {
            tracing::warn!(image = name, %error, "an image between the steps of a build could not be removed");
        }
    }
    shared.build_names.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
}

/// Removes, when a server begins, what builds left that were cut off with an earlier one.
pub(crate) async fn remove_cut_off(catalog: Catalog) {
    let removed = async {
        catalog.require_known_users().await?;
        remove_strays(&catalog).await
    };
    if let Err(error) = removed.await {
        tracing::warn!(%error, "images of builds that were cut off could not be removed");
    }
}

/// Removes the names of this form that no build holds.
pub(super) async fn remove_strays(catalog: &Catalog) -> Result<(), ServiceError> {
    let shared = &catalog.context.shared;
    let listed = shared.ports.images.images().await?;
    for name in listed.found.into_iter().flat_map(|image| image.names).filter(|name| is_reserved(name)) {
        let held = shared.build_names.lock().unwrap_or_else(PoisonError::into_inner).contains(&name);
        if !held {
            remove(catalog, &name).await;
        }
    }
    Ok(())
}
