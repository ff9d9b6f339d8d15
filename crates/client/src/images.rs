//! Images.

use hyper::Method;
use microvm_api::image::{AddImage, Freed, Image, ImageList};
use microvm_api::progress::ProgressLine;
use microvm_api::query::encode;

use crate::client::Client;
use crate::error::ClientError;
use crate::lines::Lines;

/// All fail with [`ClientError`].
#[expect(clippy::missing_errors_doc, reason = "said once for all above")]
impl Client {
    /// All images, newest first.
    pub async fn images(&self) -> Result<ImageList, ClientError> {
        self.get("/images", "listing images").await
    }

    /// One image by name or digest.
    pub async fn image(&self, reference: &str) -> Result<Image, ClientError> {
        self.get(&format!("/images/{}", segment(reference)), "reading an image").await
    }

    /// Makes an image; the lines tell how far it is.
    pub async fn add_image(&self, request: &AddImage) -> Result<Lines<ProgressLine>, ClientError> {
        let response = self.send_json(Method::POST, "/images", Some(request), "making an image").await?;
        Ok(Lines::new(response))
    }

    /// Removes a name, and the image with its last name.
    pub async fn remove_image(&self, reference: &str) -> Result<(), ClientError> {
        let path = format!("/images/{}", segment(reference));
        self.empty(Method::DELETE, &path, None::<&()>, "removing an image").await
    }

    /// Removes images nobody needs.
    pub async fn collect_garbage(&self) -> Result<Freed, ClientError> {
        self.json(Method::POST, "/images/prune", None::<&()>, "removing unused images").await
    }
}

/// One segment of a path: a slash in it is encoded too.
pub(crate) fn segment(text: &str) -> String {
    encode(text.as_bytes()).replace('/', "%2F")
}
