//! Images.

use axum::Json;
use camino::Utf8PathBuf;
use microvm_api::image::{BuildStep, CommitImage, Freed, Image, ImageList, ImageSource, TagImage};
use microvm_api::operation::{ImageRef, Lines};
use microvm_api::operations::image;
use microvm_api::progress::ProgressLine;
use microvm_core::{ImageBase, ImageRecipe};
use microvm_ports::storage::{Additions, ImageInfo, ImageSource as StoreSource, RecipeFile};
use microvm_types::Listed;

use crate::call::Call;
use crate::failure::Failure;
use crate::lines::progress;
use crate::reply::{Done, Reply};
use crate::session::Session;

pub(crate) async fn list(app: Session, _: Call<image::List>) -> Result<Json<ImageList>, Failure> {
    let Listed { found, unreadable } = app.services.catalog.images().await?;
    Ok(Json(ImageList { images: found.into_iter().map(|info| app.image(info)).collect(), unreadable }))
}

/// Finds by name or digest without reading the whole image; use verifies it.
pub(crate) async fn get(
    app: Session,
    Call { path: ImageRef(reference), .. }: Call<image::Get>,
) -> Result<Json<Image>, Failure> {
    let images = app.services.catalog.images().await?.found;
    let info = ImageInfo::find(&images, &reference)?;
    Ok(Json(app.image(info.clone())))
}

pub(crate) async fn remove(
    app: Session,
    Call { path: ImageRef(reference), .. }: Call<image::Remove>,
) -> Result<Done, Failure> {
    app.services.catalog.remove_image(&reference).await?;
    Ok(Done)
}

pub(crate) async fn prune(app: Session, _: Call<image::Prune>) -> Result<Json<Freed>, Failure> {
    Ok(Json(Freed { bytes: app.services.catalog.collect_garbage().await? }))
}

pub(crate) async fn add(
    app: Session,
    Call { body: request, .. }: Call<image::Add>,
) -> Result<Reply<Lines<ProgressLine>>, Failure> {
    let base = base(request.source)?;
    let files = request
        .files
        .into_iter()
        .map(|file| RecipeFile {
            path: file.path,
            content: file.content,
            source: file.source,
            mode: file.mode,
        })
        .collect::<Vec<_>>();
    check_sources(&files)?;
    check_contexts(&request.steps)?;
    let additions = Additions {
        packages: request.packages,
        pip: request.pip,
        npm: request.npm,
        files,
        placements: Vec::new(),
    };
    let recipe = ImageRecipe {
        name: request.name,
        base,
        additions,
        commands: request.commands,
        steps: request.steps,
        config: request.config,
        cache: !request.no_cache,
    };
    Ok(progress(move |progress| async move {
        let info = app.services.catalog.build_image(&recipe, progress).await?;
        Ok(ProgressLine::Image { image: app.image(info) })
    }))
}

pub(crate) async fn commit(
    app: Session,
    Call { body: request, .. }: Call<image::Commit>,
) -> Result<Reply<Lines<ProgressLine>>, Failure> {
    Ok(progress(move |progress| async move {
        let CommitImage { vm, name, config } = request;
        let info = app.services.catalog.commit(&vm, &name, &config, progress).await?;
        Ok(ProgressLine::Image { image: app.image(info) })
    }))
}

pub(crate) async fn tag(
    app: Session,
    Call { body: TagImage { image, name }, .. }: Call<image::Tag>,
) -> Result<Json<Image>, Failure> {
    let info = app.services.catalog.tag_image(&image, &name).await?;
    Ok(Json(app.image(info)))
}

fn base(source: ImageSource) -> Result<ImageBase, Failure> {
    Ok(ImageBase::Source(match source {
        ImageSource::Image { reference } => return Ok(ImageBase::Image(reference)),
        ImageSource::Path { path } => StoreSource::Path { path: absolute(&path)? },
        ImageSource::Registry { reference, plain_http, authorities, login } => {
            StoreSource::Registry { reference, plain_http, authorities, login }
        }
        ImageSource::Debian { suite, packages, users } => StoreSource::Debian { suite, packages, users },
    }))
}

/// Refuses sources that would be relative to the working directory of the server.
fn check_sources(files: &[RecipeFile]) -> Result<(), Failure> {
    files.iter().filter_map(|file| file.source.as_ref()).try_for_each(|source| absolute(source).map(drop))
}

/// Refuses contexts that would be relative to the working directory of the server.
fn check_contexts(steps: &[BuildStep]) -> Result<(), Failure> {
    steps.iter().try_for_each(|step| match step {
        BuildStep::Copy(copy) => absolute(&copy.context).map(drop),
        BuildStep::Run(_) | BuildStep::Directory(_) => Ok(()),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_files_are_absolute() {
        let file = |source: Option<&str>| RecipeFile {
            path: "/x".to_owned(),
            content: None,
            source: source.map(str::to_owned),
            mode: None,
        };
        assert!(check_sources(&[file(None), file(Some("/srv/x"))]).is_ok());
        for source in ["app", "./app", "../app", ""] {
            assert!(check_sources(&[file(Some("/srv/x")), file(Some(source))]).is_err(), "{source}");
        }
    }
}
