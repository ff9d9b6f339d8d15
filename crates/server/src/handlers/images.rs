//! Images.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use camino::Utf8PathBuf;
use microvm_api::image::{AddImage, Freed, Image, ImageList, ImageSource};
use microvm_api::progress::ProgressLine;
use microvm_ports::storage::{ImageSource as StoreSource, RecipeFile};
use microvm_types::ErrorKind;

use crate::app::App;
use crate::convert;
use crate::extract::Body;
use crate::failure::Failure;
use crate::lines::progress;

pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<Json<ImageList>, Failure> {
    let images = app.service.images().images().await?;
    Ok(Json(ImageList { images: images.into_iter().map(|info| app.image(info)).collect() }))
}

/// Finds by name or digest without reading the whole image; use verifies it.
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Path(reference): Path<String>,
) -> Result<Json<Image>, Failure> {
    let images = app.service.images().images().await?;
    let found = images.into_iter().find(|info| {
        info.names.contains(&reference) || (reference.len() >= 19 && info.digest.starts_with(&reference))
    });
    let info = found.ok_or_else(|| {
        let advice = "`microvm image ls` lists those that exist";
        Failure::new(
            ErrorKind::NotFound,
            "image_not_found",
            format!("no image is called `{reference}`: {advice}"),
        )
    })?;
    Ok(Json(app.image(info)))
}

pub(crate) async fn remove(
    State(app): State<Arc<App>>,
    Path(reference): Path<String>,
) -> Result<StatusCode, Failure> {
    app.service.remove_image(&reference).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn prune(State(app): State<Arc<App>>) -> Result<Json<Freed>, Failure> {
    Ok(Json(Freed { bytes: app.service.collect_garbage().await? }))
}

pub(crate) async fn add(
    State(app): State<Arc<App>>,
    Body(request): Body<AddImage>,
) -> Result<Response, Failure> {
    let source = source(&request)?;
    if !request.commands.is_empty() {
        return Err(Failure::new(
            ErrorKind::Unsupported,
            "build_commands_unavailable",
            "commands: running commands in a VM while an image is built is not available yet; \
             use packages and files, or build the image elsewhere and import it",
        ));
    }
    let files: Vec<RecipeFile> = request
        .files
        .into_iter()
        .map(|file| RecipeFile {
            path: file.path,
            content: file.content,
            source: file.source,
            mode: file.mode,
        })
        .collect();
    let config = convert::image_config(request.config);
    let name = request.name;
    Ok(progress(move |progress| async move {
        let info = app.service.images().add_image(&name, &source, &files, &config, progress).await?;
        Ok(ProgressLine::Image { image: app.image(info) })
    }))
}

fn source(request: &AddImage) -> Result<StoreSource, Failure> {
    match &request.source {
        ImageSource::Path { path } => Ok(StoreSource::Path { path: absolute(path)? }),
        ImageSource::Registry { reference, plain_http } => {
            Ok(StoreSource::Registry { reference: reference.clone(), plain_http: *plain_http })
        }
        ImageSource::Debian { suite, packages } => {
            Ok(StoreSource::Debian { suite: suite.clone(), packages: packages.clone() })
        }
        ImageSource::Image { reference } => Err(Failure::new(
            ErrorKind::Unsupported,
            "build_on_image_unavailable",
            format!(
                "source: building on the image `{reference}` is not available yet; name packages instead"
            ),
        )),
    }
}

/// A path on the server's host; the server's own folder means nothing to the caller.
pub(crate) fn absolute(path: &str) -> Result<Utf8PathBuf, Failure> {
    let path = Utf8PathBuf::from(path);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(Failure::invalid(
            "path_invalid",
            format!("`{path}` is not an absolute path on the server's host"),
        ))
    }
}
